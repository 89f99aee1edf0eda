"""The net_name table: a name → a built net; knows no data and no training.

A net is a row of :data:`NETS`: which prompter, whether a token shift, whose prompts it is meant for, and the prompter's
own loss.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from promise.models.promise import Promise
from promise.models.prompters.base import PointPrompter, Prompter, fixed_labels
from promise.models.prompters.cross import CrossHead
from promise.models.prompters.resnet import ResNetHead
from promise.models.sam.backbones import Backbone, build_sam, get_backbone
from promise.models.sam.frozen import FrozenSam
from promise.models.token_shift import IncrementalPatternShifting
from promise.runtime.errors import UserError, unknown_name
from promise.types import Batch, Prediction

DEFAULT_SAM = "lite_medsam"
DEFAULT_POINTS = 16  # the published setting

# (backbone, number of points, their labels) → a prompter with fresh weights
BuildPrompter: TypeAlias = Callable[[Backbone, int, tuple[int, ...]], Prompter]
# (prediction, its batch) → a scalar: a prompter's own loss, added to that of the mask while training
PromptLoss: TypeAlias = Callable[[Prediction, Batch], Tensor]


def resnet_prompter(backbone: Backbone, num_points: int, labels: tuple[int, ...]) -> Prompter:
    """The paper's ResNet head."""
    head = ResNetHead(tap_channels=backbone.tap_channels, num_points=num_points)
    return PointPrompter(head, labels=labels, image_size=backbone.image_size)


def cross_prompter(backbone: Backbone, num_points: int, labels: tuple[int, ...]) -> Prompter:
    """The paper's cross-attention head."""
    head = CrossHead(tap_channels=backbone.tap_channels, num_points=num_points)
    return PointPrompter(head, labels=labels, image_size=backbone.image_size)


@dataclass(frozen=True)
class NetSpec:
    """One row of the net_name table."""

    name: str
    prompter: BuildPrompter | None = None  # None: prompts must be given
    token_shift: bool = False
    prompts: str = "auto"  # where prompts come from: "auto" the net's prompter, "oracle" the ground truth
    trainable: bool = True
    aliases: tuple[str, ...] = ()
    prompt_loss: PromptLoss | None = None
    # The nets whose checkpoints this one takes its token shift from, to be evaluated with ground-truth prompts.
    learned_by: tuple[str, ...] = ()


NETS: dict[str, NetSpec] = {
    spec.name: spec
    for spec in (
        NetSpec("APM_resnet", resnet_prompter),
        NetSpec("APM_cross", cross_prompter),
        NetSpec("APM_IPS_resnet", resnet_prompter, token_shift=True),
        NetSpec("APM_IPS_cross", cross_prompter, token_shift=True),
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
    """Look a net up by its name or by the original's spelling ``SAM_vit-b_<net>_train``.

    Returns:
        The table's row, and the backbone that the long spelling names (``None`` for a short one).

    Raises:
        UserError: an unknown name; lists the known ones and the nearest.
    """
    long = _LONG.match(name)
    short = long["net"] if long else name
    if short not in _SHORT:
        raise unknown_name("net", name, NETS)
    return NETS[_SHORT[short]], f"vit_{long['size']}" if long else None


def resolve_sam(name: str, sam: str | None) -> str:
    """The backbone's name: what was asked for, else what the net's long spelling names, else the default.

    Raises:
        UserError: the two contradict each other.
    """
    _, spelt = parse_net_name(name)
    if sam is not None and spelt is not None and not sam.endswith(spelt):
        raise UserError(
            f"--net {name} names the backbone {spelt}, but --sam says {sam}: drop one of the two.",
            code="backbone-contradicts-net",
        )
    return sam or spelt or DEFAULT_SAM


def build_parts(
    spec: NetSpec, backbone: Backbone, *, num_points: int, point_labels: tuple[int, ...] | None = None
) -> tuple[Prompter | None, IncrementalPatternShifting | None]:
    """Build a net's learned parts with fresh weights: the prompter or ``None``, the token shift or ``None``."""
    labels = fixed_labels(num_points, point_labels)
    apm = None if spec.prompter is None else spec.prompter(backbone, num_points, labels)
    ips = IncrementalPatternShifting(channels=backbone.embedding_channels) if spec.token_shift else None
    return apm, ips


def build_net(
    name: str,
    *,
    sam: str | None = None,
    num_points: int = DEFAULT_POINTS,
    point_labels: tuple[int, ...] | None = None,
    sam_checkpoint: Path | str | None = "auto",
    freeze: str = "FZ0",
    precision: str = "fp32",
    seed: int | None = None,
) -> Promise:
    """Assemble a net on a frozen SAM.

    Args:
        name: a net of the table, or the original's long spelling.
        sam: backbone; see :data:`promise.models.sam.backbones.BACKBONES`. Default: as the long spelling says,
            else ``lite_medsam``.
        num_points: point prompts an image: 1 or an even number.
        point_labels: labels of automatic prompts, 1 or 0 each; default half positive, half negative.
        sam_checkpoint: ``"auto"`` finds or fetches the published weights, a path loads that file (for backbones
            ``hf_…`` a folder or a name on the Hugging Face hub), ``None`` leaves SAM random, with a warning.
        freeze: which parts of SAM stay frozen: ``all``, ``encoder+decoder``, ``encoders``, ``encoder``, ``none``, or
            the code ``FZ0`` … ``FZ4``; see :class:`promise.models.sam.frozen.FrozenSam`.
        precision: ``fp32``, ``bf16``, ``fp16``.
        seed: of the learned parts' first weights; ``None`` draws from torch's global generator.

    Returns:
        The net, learned parts in training mode, SAM always in evaluation mode, on the CPU.

    Raises:
        UserError: an unknown name or count, or weights that cannot be had or do not fit.
    """
    spec, _ = parse_net_name(name)
    backbone = get_backbone(resolve_sam(name, sam))
    fixed_labels(num_points, point_labels)  # before the slow part
    frozen = FrozenSam(build_sam(backbone, sam_checkpoint), backbone, freeze=freeze)
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        apm, ips = build_parts(spec, backbone, num_points=num_points, point_labels=point_labels)
    return Promise(frozen, apm=apm, ips=ips, precision=precision)


def list_nets(sam: str | None = None, num_points: int = DEFAULT_POINTS) -> str:
    """The table of nets with the number of trainable parameters on one backbone, as text."""
    backbone = get_backbone(sam or DEFAULT_SAM)
    lines = [f"{'net':<18} {'prompts':<8} {'train':<6} {'trainable parameters':>20}   learned parts"]
    for spec in NETS.values():
        with torch.device("meta"):
            parts = build_parts(spec, backbone, num_points=num_points)
        count = sum(p.numel() for part in parts if part is not None for p in part.parameters())
        learned = " + ".join(["APM"] * (spec.prompter is not None) + ["IPS"] * spec.token_shift) or "none (frozen SAM)"
        lines.append(
            f"{spec.name:<18} {spec.prompts:<8} {'yes' if spec.trainable else 'no':<6} {count:>20,}   {learned}"
        )
    lines.append(f"on {backbone.name} with {num_points} points; APM_IPS_GT_* take IPS from an APM_IPS checkpoint")
    return "\n".join(lines)
