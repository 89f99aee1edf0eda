"""Convolutions by Winograd's algorithm against PyTorch's convolutions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from promise.models.cpu.winograd import Conv3x3, _Winograd, plain_convolutions
from promise.models.prompters.resnet import ResNetHead


def _expected(conv: Conv3x3, x: Tensor, grad: Tensor) -> list[Tensor]:
    """Output and gradients in double precision: of x, weight, bias."""
    inputs = [t.detach().double().requires_grad_() for t in (x, conv.weight, conv.bias) if t is not None]
    y = F.conv2d(*inputs, padding=1)
    return [y.detach(), *torch.autograd.grad(y, inputs, grad.double())]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(1, 3, 4, 4), (2, 48, 8, 20), (3, 256, 16, 16)])
def test_outputs_and_gradients_equal_those_of_pytorch(
    shape: tuple[int, ...], layout: torch.memory_format, bias: bool
) -> None:
    torch.manual_seed(0)
    conv = Conv3x3(shape[1], 32, bias=bias)
    x = torch.randn(shape).contiguous(memory_format=layout).requires_grad_()
    y = conv(x)
    assert isinstance(y.grad_fn if not bias else y.grad_fn.next_functions[0][0], _Winograd._backward_cls)
    assert y.is_contiguous(memory_format=torch.channels_last)
    grad = torch.randn(y.shape).contiguous(memory_format=layout)
    ours = [y.detach(), *torch.autograd.grad(y, [x, *conv.parameters()], grad)]
    for a, b in zip(ours, _expected(conv, x, grad), strict=True):
        assert a.shape == b.shape
        assert float((a - b).abs().max()) < 2e-5 * max(1.0, float(b.abs().max()))


def test_the_rounding_error_of_large_sums_is_small() -> None:
    """800 channels, as in LiteMedSAM's taps: a relative error of 2e-6, as of PyTorch on a CPU with AVX2."""
    torch.manual_seed(0)
    conv = Conv3x3(800, 256)
    x = torch.rand(1, 800, 32, 32)  # not centred, as after a ReLU
    y = conv(x)
    grad = torch.randn(y.shape)
    weight, bias = torch.autograd.grad(y, [conv.weight, conv.bias], grad)
    exact = _expected(conv, x, grad)
    for a, b in zip((y.detach(), weight, bias), (exact[0], exact[2], exact[3]), strict=True):
        assert float((a - b).square().mean().sqrt()) < 2e-6 * float(b.square().mean().sqrt())


def test_pytorchs_convolution_is_used_in_all_other_cases() -> None:
    conv, x = Conv3x3(8, 16), torch.randn(2, 8, 12, 12)
    plain = F.conv2d(x, conv.weight, conv.bias, padding=1)
    with torch.no_grad():
        assert torch.equal(conv(x), plain)
    with plain_convolutions():
        assert torch.equal(conv(x), plain)
    assert not torch.equal(conv(x), plain)  # otherwise the comparisons above would be trivial
    with torch.autocast("cpu", torch.bfloat16):
        assert conv(x).dtype == torch.bfloat16
    odd = torch.randn(2, 8, 12, 10)
    assert torch.equal(conv(odd), F.conv2d(odd, conv.weight, conv.bias, padding=1))
    assert conv.double()(x.double()).dtype == torch.float64
    conv.float().requires_grad_(False)
    assert torch.equal(conv(x), plain)


def test_no_gradient_for_frozen_features() -> None:
    conv, x = Conv3x3(8, 16), torch.randn(2, 8, 12, 12)
    conv(x).sum().backward()
    assert x.grad is None
    assert conv.weight.grad is not None


def test_the_gradients_of_a_head_do_not_change() -> None:
    torch.manual_seed(0)
    head = ResNetHead(
        tap_channels=(16, 24), num_points=4, width=32
    ).eval()  # batch normalisation would amplify rounding errors
    taps = [torch.randn(2, 16, 16, 16), torch.randn(2, 24, 16, 16)]

    def gradients() -> list[Tensor]:
        return list(torch.autograd.grad(head(taps).square().sum(), list(head.parameters())))

    ours = gradients()
    with plain_convolutions():
        plain = gradients()
    for a, b in zip(ours, plain, strict=True):
        assert float((a - b).abs().max()) <= 1e-4 * float(b.abs().max())
