"""3 × 3 convolutions by Winograd's algorithm, for training on a CPU.

A tile of 6 × 6 inputs yields 4 × 4 outputs with 36 products instead of 144; the same holds for both gradients.
Sources: Lavin and Gray, *Fast Algorithms for Convolutional Neural Networks* (arXiv 1509.09308), F(4 × 4, 3 × 3).
Evaluation points with smaller rounding errors: Barabasz et al., *Error Analysis and Improving the Accuracy of Winograd
Convolution for Deep Neural Networks* (arXiv 1803.10986).
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

TILE = 4  # side of a tile of outputs, pixels
SPAN = TILE + 2  # side of a tile of inputs, pixels


# Evaluation points of the polynomials, in addition to infinity. The usual 0, ±1, ±2 double the rounding error.
POINTS = (0.0, 0.625, -0.625, 1.5, -1.5)


def _transforms() -> tuple[Tensor, Tensor, Tensor]:
    """Transforms of flattened tiles: of inputs (36, 36), of filters (36, 9), and from products to outputs (16, 36).

    In one dimension (Toom and Cook) both factors are evaluated at the points, multiplied, and interpolated. The
    interpolation is transposed because the filter is correlated, not convolved. In two dimensions the transforms are
    applied along height and width.
    """
    points = torch.tensor(POINTS, dtype=torch.float64)

    def evaluate(length: int) -> Tensor:
        """Powers of the points, and the highest one at infinity: (6, length)."""
        infinity = torch.eye(length, dtype=torch.float64)[-1:]
        return torch.cat((points[:, None] ** torch.arange(length), infinity))

    # Scale factors may be applied to either input; here they keep the entries of the larger matrix near 1.
    differences = points[:, None] - points + torch.eye(len(points), dtype=torch.float64)
    balance = torch.cat((differences.prod(1), torch.ones(1, dtype=torch.float64)))[:, None]
    inputs, weight, output = torch.linalg.inv(evaluate(SPAN)).T * balance, evaluate(3) / balance, evaluate(TILE).T
    return tuple(torch.kron(matrix, matrix).to(torch.float32) for matrix in (inputs, weight, output))  # type: ignore[return-value]


_INPUT, _WEIGHT, _OUTPUT = _transforms()
_plain: ContextVar[bool] = ContextVar("plain", default=False)


@contextlib.contextmanager
def plain_convolutions() -> Iterator[None]:
    """Context manager that makes :class:`Conv3x3` use PyTorch's convolution, for comparisons."""
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


class Conv3x3(nn.Conv2d):
    """A 3 × 3 convolution, stride 1, padding 1: (B, C, H, W) → (B, K, H, W); the parameters are those of ``nn.Conv2d``.

    Winograd's algorithm is used for training on a CPU in fp32 if H and W are multiples of four. Its results differ from
    those of PyTorch's convolution by rounding and are equally accurate. In all other cases, which include evaluation,
    PyTorch's convolution is used.
    """

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool = True) -> None:
        """Create the convolution with fresh weights."""
        super().__init__(in_channels, out_channels, 3, padding=1, bias=bias)

    @classmethod
    def of(cls, convolution: nn.Conv2d) -> Conv3x3:
        """Convert a 3 × 3 convolution; the parameters are shared with it."""
        with torch.device("meta"):
            converted = cls(convolution.in_channels, convolution.out_channels, bias=convolution.bias is not None)
        converted.weight, converted.bias = convolution.weight, convolution.bias
        return converted.train(convolution.training)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve a batch (B, C, H, W)."""
        if not self._uses_winograd(input):
            return super().forward(input)
        y: Tensor = _Winograd.apply(input, self.weight)
        return y if self.bias is None else y + self.bias.view(1, -1, 1, 1)

    def _uses_winograd(self, x: Tensor) -> bool:
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
    """Replace the convolutions that a module or a submodule lists in ``large_convolutions`` by :class:`Conv3x3`."""
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
        return _output_map(torch.bmm(tiles, _filters(weight)), x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        tiles, weight = ctx.saved_tensors
        to_x, to_weight = ctx.needs_input_grad
        grad_x = grad_weight = None
        if to_x:  # the convolution of the gradient with the flipped filters
            flipped = weight.flip(2, 3).transpose(0, 1)
            grad_x = _output_map(torch.bmm(_tiles(grad), _filters(flipped)), grad.shape)
        if to_weight:
            channels, kernels = weight.shape[1], weight.shape[0]
            products = torch.bmm(tiles.transpose(1, 2), _output_gradient(grad)).view(SPAN**2, -1)
            grad_weight = (_WEIGHT.T @ products).view(3, 3, channels, kernels).permute(3, 2, 0, 1)
        return grad_x, grad_weight


def _tiles(x: Tensor) -> Tensor:
    """Transform the tiles of a map: (B, C, H, W) → (36, B·H/4·W/4, C)."""
    cut = F.pad(x, (1, 1, 1, 1)).unfold(2, SPAN, TILE).unfold(3, SPAN, TILE)  # (B, C, H/4, W/4, 6, 6)
    return (_INPUT @ cut.permute(4, 5, 0, 2, 3, 1).reshape(SPAN**2, -1)).view(SPAN**2, -1, x.shape[1])


def _filters(weight: Tensor) -> Tensor:
    """Transform filters: (K, C, 3, 3) → (36, C, K)."""
    kernels, channels = weight.shape[:2]
    return (_WEIGHT @ weight.permute(2, 3, 1, 0).reshape(9, -1)).view(SPAN**2, channels, kernels)


def _output_map(products: Tensor, shape: torch.Size) -> Tensor:
    """Transform products to the output map: (36, B·H/4·W/4, K) → (B, K, H, W), channels-last in memory."""
    batch, _, height, width = shape
    tiles = (_OUTPUT @ products.view(SPAN**2, -1)).view(TILE, TILE, batch, height // TILE, width // TILE, -1)
    return tiles.permute(2, 3, 0, 4, 1, 5).reshape(batch, height, width, -1).permute(0, 3, 1, 2)


def _output_gradient(grad: Tensor) -> Tensor:
    """Gradient of the products from that of the output map: (B, K, H, W) → (36, B·H/4·W/4, K)."""
    batch, kernels, height, width = grad.shape
    rows = grad.permute(0, 2, 3, 1).reshape(batch, height // TILE, TILE, width // TILE, TILE, kernels)
    return (_OUTPUT.T @ rows.permute(2, 4, 0, 1, 3, 5).reshape(TILE**2, -1)).view(SPAN**2, -1, kernels)
