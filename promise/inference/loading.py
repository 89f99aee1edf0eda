"""A checkpoint, or the name of a net → a net on its device, ready to predict; reads files and writes none."""

from __future__ import annotations

import dataclasses
import logging
import random
from dataclasses import dataclass
from pathlib import Path

import torch

from promise.data.transforms.recipes import plain_recipe
from promise.inference.postprocess import Postprocess
from promise.models import checkpoint
from promise.models.cpu import optimize_for_cpu
from promise.models.promise import Promise
from promise.models.registry import DEFAULT_POINTS, build_net, parse_net_name, resolve_sam
from promise.models.sam.weights import weights_setting
from promise.runtime.device import resolve_device, resolve_precision

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedNet:
    """A net and everything about it that decides its masks."""

    net: Promise
    metadata: checkpoint.Metadata
    device: torch.device
    precision: str
    seed: int  # given, else the checkpoint's, else drawn
    recipe: str  # of pixels
    postprocess: Postprocess  # of masks in the image's own size
    postprocess_source: str  # default, flag or checkpoint

    @property
    def side(self) -> int:
        """Side of the net's input, pixels."""
        return self.net.sam.backbone.image_size


def load_net(
    ckpt: str | Path | None = None,
    *,
    net: str | None = None,
    sam: str | None = None,
    sam_checkpoint: str | Path | None = None,
    num_points: int | None = None,
    seed: int | None = None,
    recipe: str | None = None,
    postprocess: str | None = None,
    device: str | torch.device = "auto",
    precision: str = "auto",
    compile: bool = False,
) -> LoadedNet:
    """Load a checkpoint, or build an untrained net, and arrange it for its device.

    Args:
        ckpt: a checkpoint; ``None``: the untrained ``net``.
        net: the net that the file holds, where it does not say; the untrained net.
        sam: backbone, where the checkpoint does not name it.
        sam_checkpoint: SAM's weight file where it is not the published one; ``random`` for tests.
        num_points: of an untrained net.
        seed: of drawn prompts and of an untrained net's weights.
        recipe: of pixels; default: the checkpoint's without augmentation.
        postprocess: as ``--postprocess`` takes it; ``None``: what was tuned into the checkpoint, else none;
            ``default``: none.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        precision: ``auto``, ``fp32``, ``bf16``, ``fp16``.
        compile: compile what runs for every batch.

    Raises:
        UserError: files, names or a device that cannot be used.
    """
    place = resolve_device(str(device))
    numbers = resolve_precision(precision, place)
    if ckpt is not None:
        loaded, metadata = checkpoint.load(
            ckpt, net_name=net, sam=sam, sam_checkpoint=_explicit(sam_checkpoint), precision=numbers
        )
        metadata = dataclasses.replace(metadata, net=parse_net_name(net)[0].name if net else metadata.net)
    else:
        loaded, metadata = _build(
            net or "", sam=sam, sam_checkpoint=sam_checkpoint, num_points=num_points, seed=seed, precision=numbers
        )
    optimize_for_cpu(loaded).to(place)
    if compile:
        loaded.compile_parts()
    drawn = random.SystemRandom().randrange(2**31)
    return LoadedNet(
        loaded,
        metadata,
        place,
        numbers,
        next(s for s in (seed, metadata.seed, drawn) if s is not None),
        recipe or plain_recipe(metadata.config.get("augment")),
        *_postprocess(postprocess, metadata),
    )


def _explicit(sam_checkpoint: str | Path | None) -> str | Path | None:
    """A weight file that was named; ``None``: the checkpoint says which."""
    return None if sam_checkpoint in (None, "random") else sam_checkpoint


def _postprocess(given: str | None, metadata: checkpoint.Metadata) -> tuple[Postprocess, str]:
    if given not in (None, "default"):
        return Postprocess.parse(given or ""), "flag"
    if given is None and metadata.postprocess is not None:
        return Postprocess.parse(metadata.postprocess), "checkpoint"
    return Postprocess(), "default"


def _build(
    name: str,
    *,
    sam: str | None,
    sam_checkpoint: str | Path | None,
    num_points: int | None,
    seed: int | None,
    precision: str,
) -> tuple[Promise, checkpoint.Metadata]:
    spec, backbone = parse_net_name(name)[0], resolve_sam(name, sam)
    points = num_points or DEFAULT_POINTS
    if spec.prompter or spec.token_shift:
        log.warning("no --ckpt: %s is scored untrained, with the initial weights of seed %d.", spec.name, seed or 0)
    net = build_net(
        spec.name,
        sam=backbone,
        num_points=points,
        sam_checkpoint=weights_setting(sam_checkpoint),
        precision=precision,
        seed=seed or 0,
    )
    return net, checkpoint.Metadata(spec.name, backbone, points, net.sam.weights_sha256(), seed=seed)
