"""Load a checkpoint, or build an untrained net, on a device and ready for inference."""

from __future__ import annotations

import dataclasses
import logging
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from promise.data.transforms.recipes import plain_recipe, recipe_code
from promise.inference.postprocess import Postprocess
from promise.models import checkpoint
from promise.models.cpu import optimize_for_cpu
from promise.models.promise import Promise
from promise.models.prompters.lesions import check_settings
from promise.models.registry import DEFAULT_POINTS, build_net, change_lesions, parse_net_name, resolve_sam
from promise.models.sam.weights import weights_setting
from promise.runtime.device import resolve_device, resolve_precision
from promise.runtime.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedNet:
    """A net with everything that determines its masks."""

    net: Promise
    metadata: checkpoint.Metadata
    device: torch.device
    precision: str
    seed: int  # the argument's, else the checkpoint's, else random
    recipe: str  # of the pixels, without augmentation
    postprocess: Postprocess  # at the size of the image
    postprocess_source: str  # default, flag or checkpoint

    @property
    def side(self) -> int:
        """Side of the net's input in pixels."""
        return self.net.sam.backbone.image_size

    @property
    def mask_side(self) -> int:
        """Side of the decoder's logits and of mask prompts, 4E."""
        return 4 * self.net.sam.backbone.embedding_side


def load_net(  # noqa: PLR0913 (one keyword for each setting that determines the masks of a net)
    ckpt: str | Path | None = None,
    *,
    net: str | None = None,
    sam: str | None = None,
    sam_checkpoint: str | Path | None = None,
    num_points: int | None = None,
    seed: int | None = None,
    recipe: str | None = None,
    postprocess: str | None = None,
    max_lesions: int | None = None,
    lesion_settings: str | Mapping[str, Any] | None = None,
    device: str | torch.device = "auto",
    precision: str = "auto",
    compile: bool = False,
) -> LoadedNet:
    """Load a checkpoint, or build an untrained net, and optimise it for its device.

    Args:
        ckpt: path of a checkpoint, or name of a bundled one; ``None``: build the untrained ``net``.
        net: the net in the file, if the file does not name it; without ``ckpt``, the net to build.
        sam: backbone, if the checkpoint does not name it.
        sam_checkpoint: weight file of SAM, if it is not the published one; ``random`` for tests.
        num_points: number of points of an untrained net.
        seed: seed of random prompts and of the weights of an untrained net.
        recipe: augmentation recipe whose pixel statistics are used; default: the checkpoint's, without augmentation.
        postprocess: as ``--postprocess`` takes it. ``None``: the one tuned into the checkpoint, else none;
            ``default``: none.
        max_lesions: largest number of lesions that the net prompts in an image; default: the checkpoint's.
        lesion_settings: changes of the checkpoint's lesion settings, as ``--lesion-settings`` takes them or by name;
            see :class:`promise.models.prompters.lesions.LesionSettings`.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        precision: ``auto``, ``fp32``, ``bf16``, ``fp16``.
        compile: compile the modules that run for every batch.

    Raises:
        UserError: files, names or a device that cannot be used; lesion settings of a net that does not find
            lesions.
    """
    lesion_values = check_settings(lesion_settings)
    if max_lesions is not None:
        lesion_values["max_lesions"] = max_lesions
    target = resolve_device(str(device))
    number_format = resolve_precision(precision, target)
    if ckpt is not None:
        loaded, metadata = checkpoint.load(
            ckpt, net_name=net, sam=sam, sam_checkpoint=_explicit_weights(sam_checkpoint), precision=number_format
        )
        metadata = dataclasses.replace(metadata, net=parse_net_name(net)[0].name if net else metadata.net)
    else:
        loaded, metadata = _build(
            net or "", sam=sam, sam_checkpoint=sam_checkpoint, num_points=num_points, seed=seed, precision=number_format
        )
    if lesion_values:
        change_lesions(loaded, lesion_values, net_name=metadata.net)
    optimize_for_cpu(loaded).to(target)
    if compile:
        loaded.compile_parts()
    random_seed = random.SystemRandom().randrange(2**31)
    return LoadedNet(
        loaded,
        metadata,
        target,
        number_format,
        next(s for s in (seed, metadata.seed, random_seed) if s is not None),
        recipe_code(recipe) if recipe else plain_recipe(metadata.config.get("augment")),
        *_postprocess(postprocess, metadata, ckpt),
    )


def _explicit_weights(sam_checkpoint: str | Path | None) -> str | Path | None:
    """A named weight file; ``None``: the one that the checkpoint names."""
    return None if sam_checkpoint in (None, "random") else sam_checkpoint


def _postprocess(
    setting: str | None, metadata: checkpoint.Metadata, ckpt: str | Path | None
) -> tuple[Postprocess, str]:
    """The postprocessing, and where it comes from."""
    if setting not in (None, "default"):
        return Postprocess.parse(setting or ""), "flag"
    if setting is None and metadata.postprocess is not None:
        try:
            return Postprocess.parse(metadata.postprocess), "checkpoint"
        except UserError as error:
            raise UserError(f"{ckpt}: {error} Override it with --postprocess.", code=error.code) from error
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
        log.warning(
            "no --ckpt: %s is not trained (initial weights, seed %d). Pass a checkpoint with --ckpt.",
            spec.name,
            seed or 0,
        )
    net = build_net(
        spec.name,
        sam=backbone,
        num_points=points,
        sam_checkpoint=weights_setting(sam_checkpoint),
        precision=precision,
        seed=seed or 0,
    )
    return net, checkpoint.Metadata(spec.name, backbone, points, net.sam.weights_sha256(), seed=seed)
