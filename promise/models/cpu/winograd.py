"""3 × 3 convolutions that learn on a CPU: fewer products by Winograd's algorithm; knows neither SAM nor points.

A tile of 6 × 6 inputs gives 4 × 4 outputs by 36 products instead of 144, and so do both gradients. Sources: Lavin and
Gray, *Fast Algorithms for Convolutional Neural Networks* (arXiv 1509.09308), F(4 × 4, 3 × 3); that other points round
less: Barabasz et al., *Error Analysis and Improving the Accuracy of Winograd Convolution for Deep Neural Networks*
(arXiv 1803.10986).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

TILE = 4  # outputs a side of a tile
SPAN = TILE + 2  # inputs a side


# Where polynomials are evaluated, beside infinity. With the usual 0, ±1, ±2 rounding takes twice as much.
POINTS = (0.0, 0.625, -0.625, 1.5, -1.5)


def _transforms() -> tuple[Tensor, Tensor, Tensor]:
    """Matrices of flattened tiles: of inputs (36, 36) and filters (36, 9) to products, of products to outputs (16, 36).

    In one dimension (Toom and Cook): both factors are evaluated at the points, multiplied, and interpolated; that a
    filter is correlated, not convolved, transposes the interpolation. In two, the same along height and width.
    """
    at = torch.tensor(POINTS, dtype=torch.float64)

    def evaluate(length: int) -> Tensor:
        """Powers of the points, and the highest one at infinity: (6, length)."""
        infinity = torch.eye(length, dtype=torch.float64)[-1:]
        return torch.cat((at[:, None] ** torch.arange(length), infinity))

    # Factors that could stand with either input; here they keep entries of the larger one near 1.
    between = at[:, None] - at + torch.eye(len(at), dtype=torch.float64)
    balance = torch.cat((between.prod(1), torch.ones(1, dtype=torch.float64)))[:, None]
    inputs, weight, output = torch.linalg.inv(evaluate(SPAN)).T * balance, evaluate(3) / balance, evaluate(TILE).T
    return tuple(torch.kron(one, one).to(torch.float32) for one in (inputs, weight, output))  # type: ignore[return-value]


_INPUT, _WEIGHT, _OUTPUT = _transforms()
_plain: ContextVar[bool] = ContextVar("plain", default=False)


@contextlib.contextmanager
def plain_convolutions() -> Iterator[None]:
    """Within it, :class:`Conv3x3` is PyTorch's convolution everywhere: what there is to compare with."""
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


class Conv3x3(nn.Conv2d):
    """A 3 × 3 convolution, stride 1, padding 1: (B, C, H, W) → (B, K, H, W); its parameters are those of ``nn.Conv2d``.

    Where it learns on a CPU in fp32 and H and W are multiples of four, it goes Winograd's way, which differs from the
    plain one by rounding, and is no less exact; everywhere else, evaluation included, it is the plain one.
    """

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool = True) -> None:
        """Size the convolution."""
        super().__init__(in_channels, out_channels, 3, padding=1, bias=bias)

    @classmethod
    def of(cls, convolution: nn.Conv2d) -> Conv3x3:
        """The same convolution, with the same parameters."""
        with torch.device("meta"):
            other = cls(convolution.in_channels, convolution.out_channels, bias=convolution.bias is not None)
        other.weight, other.bias = convolution.weight, convolution.bias
        return other.train(convolution.training)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve a batch."""
        if not self._pays(input):
            return super().forward(input)
        y: Tensor = _Winograd.apply(input, self.weight)
        return y if self.bias is None else y + self.bias.view(1, -1, 1, 1)

    def _pays(self, x: Tensor) -> bool:
        return (
            not torch.compiler.is_compiling()
            and not _plain.get()
            and torch.is_grad_enabled()
            and self.weight.requires_grad
            and x.device.type == "cpu"
            and x.dtype == self.weight.dtype == torch.float32
            and not torch.is_autocast_enabled("cpu")
            and x.shape[2] % TILE == x.shape[3] % TILE == 0
        )


def use_winograd(module: nn.Module) -> None:
    """Replace the convolutions that a module, or a part of it, lists in ``large_convolutions`` by :class:`Conv3x3`."""
    for part in list(module.modules()):
        for name in getattr(part, "large_convolutions", ()):
            parent, _, leaf = name.rpartition(".")
            owner = part.get_submodule(parent)
            found = getattr(owner, leaf)
            if not isinstance(found, Conv3x3):
                setattr(owner, leaf, Conv3x3.of(found))


class _Winograd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        tiles = _tiles(x)
        ctx.save_for_backward(tiles, weight)
        return _image(torch.bmm(tiles, _filters(weight)), x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        tiles, weight = ctx.saved_tensors
        to_x, to_weight = ctx.needs_input_grad
        grad_x = grad_weight = None
        if to_x:  # the convolution of the gradient with the filters turned around
            turned = weight.flip(2, 3).transpose(0, 1)
            grad_x = _image(torch.bmm(_tiles(grad), _filters(turned)), grad.shape)
        if to_weight:
            channels, kernels = weight.shape[1], weight.shape[0]
            products = torch.bmm(tiles.transpose(1, 2), _image_transposed(grad)).view(SPAN**2, -1)
            grad_weight = (_WEIGHT.T @ products).view(3, 3, channels, kernels).permute(3, 2, 0, 1)
        return grad_x, grad_weight


def _tiles(x: Tensor) -> Tensor:
    """Transformed tiles of a map: (B, C, H, W) → (36, B·H/4·W/4, C)."""
    cut = F.pad(x, (1, 1, 1, 1)).unfold(2, SPAN, TILE).unfold(3, SPAN, TILE)  # (B, C, H/4, W/4, 6, 6)
    return (_INPUT @ cut.permute(4, 5, 0, 2, 3, 1).reshape(SPAN**2, -1)).view(SPAN**2, -1, x.shape[1])


def _filters(weight: Tensor) -> Tensor:
    """Transformed filters: (K, C, 3, 3) → (36, C, K)."""
    kernels, channels = weight.shape[:2]
    return (_WEIGHT @ weight.permute(2, 3, 1, 0).reshape(9, -1)).view(SPAN**2, channels, kernels)


def _image(products: Tensor, shape: torch.Size) -> Tensor:
    """The map that products stand for: (36, B·H/4·W/4, K) → (B, K, H, W), channels last in memory."""
    batch, _, height, width = shape
    tiles = (_OUTPUT @ products.view(SPAN**2, -1)).view(TILE, TILE, batch, height // TILE, width // TILE, -1)
    return tiles.permute(2, 3, 0, 4, 1, 5).reshape(batch, height, width, -1).permute(0, 3, 1, 2)


def _image_transposed(grad: Tensor) -> Tensor:
    """What reaches the products from a map's gradient: (B, K, H, W) → (36, B·H/4·W/4, K)."""
    batch, kernels, height, width = grad.shape
    rows = grad.permute(0, 2, 3, 1).reshape(batch, height // TILE, TILE, width // TILE, TILE, kernels)
    return (_OUTPUT.T @ rows.permute(2, 4, 0, 1, 3, 5).reshape(TILE**2, -1)).view(SPAN**2, -1, kernels)
