"""What is scored: a net on its device with its prompts and its postprocessing, as an evaluation's settings say.

Reads checkpoints and prompts files; writes nothing and scores nothing.
"""

from __future__ import annotations

import dataclasses
import logging
import random
from dataclasses import dataclass
from typing import Any

import torch

from promise import checkpoint
from promise.config import EvalConfig
from promise.device import keep_freed_memory, resolve_device
from promise.errors import UserError
from promise.models.promise import Promise, resolve_precision
from promise.postprocess import Postprocess
from promise.prompting import Prompting, check_prompting, settle_prompting
from promise.registry import build_net, parse_net_name, resolve_sam
from promise.scoring import NATIVE_POSTPROCESS, REFERENCE_POSTPROCESS
from promise.transforms import build_transform, plain_recipe

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Subject:
    """A net and everything about it that decides its scores."""

    net: Promise
    metadata: checkpoint.Metadata
    device: torch.device
    precision: str
    prompting: Prompting
    seed: int
    recipe: str  # of pixels
    reference: Postprocess
    native: Postprocess
    postprocess_source: str  # default, flag or checkpoint

    @property
    def side(self) -> int:
        """Of the net's input, pixels."""
        return self.net.sam.backbone.image_size

    def describe(self) -> dict[str, Any]:
        """For the summary."""
        metadata = self.metadata
        return {
            "net": metadata.net,
            "sam": metadata.sam,
            "epoch": metadata.epoch,
            "num_points": self.prompting.num_points or metadata.num_points,
            "sam_sha256": metadata.sam_sha256,
            **self.prompting.describe(),
            "seed": self.seed,
            "precision": self.precision,
            "recipe": self.recipe,
            "postprocess": {"reference": str(self.reference), "native": str(self.native)},
            "postprocess_source": self.postprocess_source,
        }


def check_eval(config: EvalConfig) -> None:
    """Raise one ``UserError`` with all settings that make no sense, before any file is opened."""
    faults = []
    if not config.split_csv:
        faults.append("--split-csv is missing: which images? (data_format/README.md shows the format)")
    if config.ckpt is None and config.net is None:
        faults.append("give a --ckpt, or an untrained --net")
    if config.batch_size < 1 or config.workers < 0 or config.overlays < 0 or config.gallery < 0:
        faults.append("--batch-size must be at least 1, --workers, --overlays and --gallery at least 0")
    try:
        if config.net is not None:
            parse_net_name(config.net)
        if config.postprocess not in (None, "default"):
            Postprocess.parse(config.postprocess or "")
        if config.recipe and not build_transform(config.recipe, image_size=64, pixels="imagenet").deterministic:
            faults.append(
                f"--recipe {config.recipe} draws augmentations; evaluation wants one without, such as basic_color"
            )
    except UserError as error:
        faults.append(str(error).rstrip("."))
    faults += check_prompting(config)
    if faults:
        raise UserError("; ".join(faults) + ".")


def load_subject(config: EvalConfig) -> Subject:
    """Load what is scored.

    Raises:
        UserError: weights, prompts or a device that cannot be used.
    """
    device = resolve_device(config.device)
    precision = resolve_precision(config.precision, device)
    keep_freed_memory()
    net, metadata = _load(config, precision)
    seed = next(s for s in (config.seed, metadata.seed, random.SystemRandom().randrange(2**31)) if s is not None)
    prompting = settle_prompting(
        config, net=metadata.net, own_prompts=not net.needs_prompts, num_points=metadata.num_points, seed=seed
    )
    net.to(device)
    if config.compile:
        net.compile_parts()
    recipe = config.recipe or plain_recipe(metadata.config.get("augment"))
    return Subject(
        net, metadata, device, precision, prompting, seed, recipe, *_postprocess(config, metadata, prompting)
    )


def _postprocess(
    config: EvalConfig, metadata: checkpoint.Metadata, prompting: Prompting
) -> tuple[Postprocess, Postprocess, str]:
    """Of the reference protocol, of the native one, and who said so."""
    if config.postprocess not in (None, "default"):
        given = Postprocess.parse(config.postprocess or "")
        return given, given, "flag"
    if config.postprocess is None and metadata.postprocess is not None:
        tuned = metadata.tuning.get("prompt_source", prompting.source)
        if tuned != prompting.source:
            log.warning(
                "the checkpoint's postprocessing, %s, was chosen with prompts %s, not %s; --postprocess none leaves "
                "it out.",
                metadata.postprocess,
                tuned,
                prompting.source,
            )
        # It was chosen on masks of their own size; the reference protocol is the original's whatever the net.
        return REFERENCE_POSTPROCESS, Postprocess.parse(metadata.postprocess), "checkpoint"
    return REFERENCE_POSTPROCESS, NATIVE_POSTPROCESS, "default"


def _load(config: EvalConfig, precision: str) -> tuple[Promise, checkpoint.Metadata]:
    sam_source = {None: "auto", "random": None}.get(config.sam_checkpoint, config.sam_checkpoint)
    if config.ckpt is not None:
        net, metadata = checkpoint.load(
            config.ckpt,
            net_name=config.net,
            sam=config.sam,
            sam_checkpoint=None if config.sam_checkpoint in (None, "random") else config.sam_checkpoint,
            precision=precision,
        )
        name = parse_net_name(config.net)[0].name if config.net else metadata.net
        return net, dataclasses.replace(metadata, net=name)
    assert config.net is not None
    spec, sam = parse_net_name(config.net)[0], resolve_sam(config.net, config.sam)
    seed, points = config.seed or 0, config.num_points or 16
    if spec.head or spec.ips:
        log.warning("no --ckpt: %s is scored untrained, with the first weights of seed %d.", spec.name, seed)
    net = build_net(
        spec.name,
        sam=sam,
        num_points=points,
        sam_checkpoint=sam_source,
        precision=precision,
        seed=seed,
    )
    return net, checkpoint.Metadata(spec.name, sam, points, net.sam.weights_sha256(), seed=config.seed)
