"""The table of nets, and functions that build a net from its name.

A net is a row of :data:`NETS`: its prompter, whether it has a token shift, where its prompts come from, and the loss of
its prompter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from promise.models.promise import Promise
from promise.models.prompters.base import PointPrompter, Prompter, fixed_labels
from promise.models.prompters.cross import CrossHead
from promise.models.prompters.dense import DenseHead, DensePrompter
from promise.models.prompters.hybrid import HybridHead, HybridPrompter, ImageUNet
from promise.models.prompters.lesions import change_settings
from promise.models.prompters.resnet import ResNetHead
from promise.models.sam.backbones import Backbone, build_sam, get_backbone
from promise.models.sam.frozen import FrozenSam
from promise.models.token_shift import IncrementalPatternShifting
from promise.runtime.errors import MissingFileError, UserError, unknown_name
from promise.types import Batch, Prediction

DEFAULT_SAM = "lite_medsam"
DEFAULT_POINTS = 16  # the published setting

# (backbone, number of points, their labels) → a prompter with fresh weights
BuildPrompter: TypeAlias = Callable[[Backbone, int, tuple[int, ...]], Prompter]
# (prediction, its batch) → a scalar: the loss of a prompter, which is added to the mask loss in training
PromptLoss: TypeAlias = Callable[[Prediction, Batch], Tensor]


def resnet_prompter(backbone: Backbone, num_points: int, labels: tuple[int, ...]) -> Prompter:
    """The paper's ResNet head."""
    head = ResNetHead(tap_channels=backbone.tap_channels, num_points=num_points)
    return PointPrompter(head, labels=labels, image_size=backbone.image_size)


def cross_prompter(backbone: Backbone, num_points: int, labels: tuple[int, ...]) -> Prompter:
    """The paper's cross-attention head."""
    head = CrossHead(tap_channels=backbone.tap_channels, num_points=num_points)
    return PointPrompter(head, labels=labels, image_size=backbone.image_size)


def dense_prompter(backbone: Backbone, num_points: int, labels: tuple[int, ...]) -> Prompter:
    """The map of lesions, and the prompts that are placed on it."""
    head = DenseHead(embedding_channels=backbone.embedding_channels, tap_channels=backbone.tap_channels)
    return DensePrompter(head, num_points=num_points, image_size=backbone.image_size)


def hybrid_prompter(backbone: Backbone, num_points: int, labels: tuple[int, ...]) -> Prompter:
    """The mean of the map of lesions and that of a CNN on the image, and the prompts that are placed on it."""
    dense = DenseHead(embedding_channels=backbone.embedding_channels, tap_channels=backbone.tap_channels)
    return HybridPrompter(HybridHead(dense, ImageUNet()), num_points=num_points, image_size=backbone.image_size)


@dataclass(frozen=True)
class NetSpec:
    """One row of the table of nets."""

    name: str
    prompter: BuildPrompter | None = None  # None: prompts must be passed
    token_shift: bool = False
    prompts: str = "auto"  # source of the prompts: "auto": the net's prompter, "oracle": the ground truth
    trainable: bool = True
    aliases: tuple[str, ...] = ()
    prompt_loss: PromptLoss | None = None  # default: that of the map, if there is one
    trains_map: bool = False  # the prompter has a map of lesions, which is trained without decoding
    # Nets whose checkpoints can be loaded for their token shift, to evaluate it with ground-truth prompts.
    learned_by: tuple[str, ...] = ()
    # Nets whose checkpoints a training can start from because their head is a part of this one: net → name of the part.
    head_parts: Mapping[str, str] = field(default_factory=dict)

    @property
    def two_stages(self) -> bool:
        """Whether the token shift is trained after the map of lesions, which is then frozen."""
        return self.trains_map and self.token_shift


NETS: dict[str, NetSpec] = {
    spec.name: spec
    for spec in (
        NetSpec("APM_resnet", resnet_prompter),
        NetSpec("APM_cross", cross_prompter),
        NetSpec("APM_IPS_resnet", resnet_prompter, token_shift=True),
        NetSpec("APM_IPS_cross", cross_prompter, token_shift=True),
        NetSpec("APM_dense", dense_prompter, trains_map=True),
        NetSpec("APM_IPS_dense", dense_prompter, token_shift=True, trains_map=True),
        NetSpec("APM_hybrid", hybrid_prompter, trains_map=True, head_parts={"APM_dense": "dense"}),
        NetSpec("IPS_GT", token_shift=True, prompts="oracle", aliases=("IPS_GT_resnet",)),
        NetSpec(
            "APM_IPS_GT_resnet", token_shift=True, prompts="oracle", trainable=False, learned_by=("APM_IPS_resnet",)
        ),
        NetSpec("APM_IPS_GT_cross", token_shift=True, prompts="oracle", trainable=False, learned_by=("APM_IPS_cross",)),
        NetSpec("SAM", prompts="oracle", trainable=False),
    )
}

_SHORT = {alias: spec.name for spec in NETS.values() for alias in (spec.name, *spec.aliases)}
_LONG = re.compile(r"SAM_vit-(?P<size>[blh])_(?P<net>.+?)_(train|test)(_FZ\d)?$")


def register(spec: NetSpec) -> NetSpec:
    """Add a net to the table under its name and its aliases; an existing name is replaced."""
    NETS[spec.name] = spec
    _SHORT.update(dict.fromkeys((spec.name, *spec.aliases), spec.name))
    return spec


def parse_net_name(name: str) -> tuple[NetSpec, str | None]:
    """Look up a net by its name or by the reference implementation's long name ``SAM_vit-b_<net>_train``.

    Returns:
        The row of the table, and the backbone in a long name (``None`` for a short name).

    Raises:
        UserError: the name is unknown; the error lists the known names and the nearest.
    """
    if not isinstance(name, str):  # of the Python API
        raise unknown_name("net", repr(name), NETS)
    long = _LONG.match(name)
    short = long["net"] if long else name
    if short not in _SHORT:
        raise unknown_name("net", name, NETS)
    return NETS[_SHORT[short]], f"vit_{long['size']}" if long else None


def resolve_sam(name: str, sam: str | None) -> str:
    """The name of the backbone: ``sam`` if it is not ``None``, else the one in the net's long name, else the default.

    Raises:
        UserError: ``sam`` and the long name differ (code ``backbone-contradicts-net``).
    """
    _, backbone = parse_net_name(name)
    if sam is not None and backbone is not None and not sam.endswith(backbone):
        raise UserError(
            f"--net {name} names the backbone {backbone}, but --sam is {sam}. Drop --sam, or use the short name of the "
            "net.",
            code="backbone-contradicts-net",
        )
    return sam or backbone or DEFAULT_SAM


def build_parts(
    spec: NetSpec, backbone: Backbone, *, num_points: int, point_labels: tuple[int, ...] | None = None
) -> tuple[Prompter | None, IncrementalPatternShifting | None]:
    """Build a net's learned parts with fresh weights: the prompter or ``None``, the token shift or ``None``."""
    labels = fixed_labels(num_points, point_labels)
    apm = None if spec.prompter is None else spec.prompter(backbone, num_points, labels)
    ips = IncrementalPatternShifting(channels=backbone.embedding_channels) if spec.token_shift else None
    return apm, ips


def build_net(  # noqa: PLR0913
    name: str,
    *,
    sam: str | None = None,
    num_points: int = DEFAULT_POINTS,
    point_labels: tuple[int, ...] | None = None,
    sam_checkpoint: Path | str | None = "auto",
    freeze: str = "FZ0",
    precision: str = "fp32",
    seed: int | None = None,
    pretrained: bool = True,
) -> Promise:
    """Assemble a net on a frozen SAM.

    Args:
        name: a net of the table, or a long name of the reference implementation.
        sam: backbone; see :data:`promise.models.sam.backbones.BACKBONES`. Default: the one in the long name, else
            ``lite_medsam``.
        num_points: point prompts per image: 1 or an even number.
        point_labels: labels of automatic points, 1 or 0 each; default: half positive, half negative.
        sam_checkpoint: ``"auto"`` finds or downloads the published weights, a path loads that file (for backbones
            ``hf_…`` a folder or a name on the Hugging Face hub), ``None`` leaves SAM's weights random, with a warning.
        freeze: which parts of SAM stay frozen: ``all``, ``encoder+decoder``, ``encoders``, ``encoder``, ``none``, or
            the code ``FZ0`` … ``FZ4``; see :class:`promise.models.sam.frozen.FrozenSam`.
        precision: ``fp32``, ``bf16``, ``fp16``.
        seed: seed of the initial weights of the learned parts; ``None`` uses torch's global generator.
        pretrained: whether a prompter with a pretrained part loads its weights; not needed before a checkpoint is
            loaded.

    Returns:
        The net on the CPU: the learned parts in training mode, SAM in evaluation mode.

    Raises:
        MissingFileError: the weights, or a package that the backbone requires, are missing.
        UserError: a name is unknown, a number of points is invalid, or the weights do not match the backbone.
    """
    spec, _ = parse_net_name(name)
    backbone = get_backbone(resolve_sam(name, sam))
    fixed_labels(num_points, point_labels)  # fail before the slow part
    frozen = FrozenSam(build_sam(backbone, sam_checkpoint), backbone, freeze=freeze)
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        apm, ips = build_parts(spec, backbone, num_points=num_points, point_labels=point_labels)
    if apm is not None and pretrained:
        apm.load_pretrained()
    return Promise(frozen, apm=apm, ips=ips, precision=precision)


def change_lesions(net: Promise, values: Mapping[str, Any], *, net_name: str) -> None:
    """Change settings of a net that finds lesions; see :class:`promise.models.prompters.lesions.LesionSettings`.

    Raises:
        UserError: the net does not find lesions (``net-without-lesions``), or as
            :func:`promise.models.prompters.lesions.change_settings`.
    """
    if net.apm is None or net.apm.lesions is None:
        raise net_without_lesions(net_name, values)
    net.apm.lesions = change_settings(net.apm.lesions, values)


def net_without_lesions(net_name: str, values: Mapping[str, Any]) -> UserError:
    """The error for lesion settings of a net that does not find lesions."""
    known = ", ".join(spec.name for spec in NETS.values() if spec.trains_map)
    pairs = ",".join(f"{name}={value}" for name, value in values.items())
    flag = f"--max-lesions {values['max_lesions']}" if list(values) == ["max_lesions"] else f"--lesion-settings {pairs}"
    return UserError(
        f"{net_name} does not find lesions: remove {flag}. Nets that do: {known}.", code="net-without-lesions"
    )


def list_nets(sam: str | None = None, num_points: int = DEFAULT_POINTS) -> str:
    """The table of nets as text, with the number of trainable parameters on one backbone."""
    backbone = get_backbone(sam or DEFAULT_SAM)
    lines = [f"{'net':<18} {'prompts':<8} {'train':<6} {'trainable parameters':>20}   learned parts"]
    for spec in NETS.values():
        start = f"{spec.name:<18} {spec.prompts:<8} {'yes' if spec.trainable else 'no':<6}"
        try:
            with torch.device("meta"):
                parts = build_parts(spec, backbone, num_points=num_points)
        except MissingFileError as error:  # a package of an extra
            lines.append(f"{start} {'':>20}   {error}")
            continue
        count = sum(p.numel() for part in parts if part is not None for p in part.parameters())
        learned = " + ".join(["APM"] * (spec.prompter is not None) + ["IPS"] * spec.token_shift) or "none (frozen SAM)"
        lines.append(f"{start} {count:>20,}   {learned}")
    lines.append(f"on {backbone.name} with {num_points} points; APM_IPS_GT_* load the IPS of an APM_IPS checkpoint")
    return "\n".join(lines)
