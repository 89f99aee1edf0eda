"""What an evaluation scores: a net with its prompts and its postprocessing, as the settings say.

Reads checkpoints and prompts files; writes nothing and scores nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from promise.data.table import Row
from promise.data.transforms.recipes import build_transform
from promise.evaluation.config import EvalConfig
from promise.evaluation.scoring import REFERENCE_POSTPROCESS
from promise.features.loader import CacheOptions, LoaderOptions, row_loader
from promise.features.store import cache_folder
from promise.inference.loading import LoadedNet, load_net
from promise.inference.postprocess import Postprocess
from promise.models.prompters.base import fixed_labels
from promise.models.registry import parse_net_name
from promise.prompts.source import Prompting, PromptSettings, check_prompting, resolve_prompting
from promise.runtime.errors import UserError

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationSetup:
    """A loaded net and everything else that decides its scores."""

    loaded: LoadedNet
    prompting: Prompting
    reference: Postprocess  # of the reference protocol

    @property
    def native(self) -> Postprocess:
        """Postprocessing of the native protocol."""
        return self.loaded.postprocess

    def describe(self) -> dict[str, Any]:
        """For the summary."""
        loaded, metadata = self.loaded, self.loaded.metadata
        return {
            "net": metadata.net,
            "sam": metadata.sam,
            "epoch": metadata.epoch,
            "num_points": self.prompting.num_points or metadata.num_points,
            "sam_sha256": metadata.sam_sha256,
            **self.prompting.describe(),
            "seed": loaded.seed,
            "precision": loaded.precision,
            "recipe": loaded.recipe,
            "postprocess": {"reference": str(self.reference), "native": str(self.native)},
            "postprocess_source": loaded.postprocess_source,
        }


def prompt_settings(config: EvalConfig) -> PromptSettings:
    """The settings of prompts alone."""
    return PromptSettings(
        source=config.prompts,
        num_points=config.num_points,
        gt_points=config.gt_points,
        gt_box=config.gt_box,
        seeds=config.prompt_seeds,
    )


def check_eval(config: EvalConfig) -> None:
    """Raise one ``UserError`` with all settings that make no sense, before any file is opened."""
    faults = []
    if not config.split_csv:
        faults.append("--split-csv is missing: which images? (data_format/README.md shows the format)")
    if config.ckpt is None and config.net is None:
        faults.append("give a --ckpt, or an untrained --net")
    if config.batch_size < 1 or config.workers < 0 or config.overlays < 0 or config.gallery < 0:
        faults.append("--batch-size must be at least 1, --workers, --overlays and --gallery at least 0")
    for check in (_check_net, _check_points, _check_postprocess, _check_recipe):
        try:
            check(config)
        except UserError as error:
            faults.append(str(error).rstrip("."))
    faults += check_prompting(prompt_settings(config))
    if faults:
        raise UserError("; ".join(faults) + ".")


def _check_net(config: EvalConfig) -> None:
    if config.net is not None:
        parse_net_name(config.net)


def _check_points(config: EvalConfig) -> None:
    if config.num_points is not None:
        fixed_labels(config.num_points)


def _check_postprocess(config: EvalConfig) -> None:
    if config.postprocess not in (None, "default"):
        Postprocess.parse(config.postprocess or "")


def _check_recipe(config: EvalConfig) -> None:
    if config.recipe and not build_transform(config.recipe, image_size=64, pixels="imagenet").deterministic:
        raise UserError(f"--recipe {config.recipe} augments; evaluation needs one that does not, such as none.")


def load_setup(config: EvalConfig) -> EvaluationSetup:
    """Load what is scored.

    Raises:
        UserError: weights, prompts or a device that cannot be used.
    """
    loaded = load_net(
        config.ckpt,
        net=config.net,
        sam=config.sam,
        sam_checkpoint=config.sam_checkpoint,
        num_points=config.num_points,
        seed=config.seed,
        recipe=config.recipe,
        postprocess=config.postprocess,
        device=config.device,
        precision=config.precision,
        compile=config.compile,
    )
    metadata = loaded.metadata
    prompting = resolve_prompting(
        prompt_settings(config),
        net=metadata.net,
        own_prompts=not loaded.net.needs_prompts,
        num_points=metadata.num_points,
        seed=loaded.seed,
    )
    _warn_of_other_tuning(loaded, prompting)
    # What was tuned was chosen on masks of their own size; the reference protocol stays the reference's whatever the net.
    reference = loaded.postprocess if loaded.postprocess_source == "flag" else REFERENCE_POSTPROCESS
    return EvaluationSetup(loaded, prompting, reference)


def evaluation_loader(rows: Sequence[Row], setup: EvaluationSetup, config: EvalConfig) -> DataLoader[Any]:
    """The rows of a data set as batches for the net, from stored features where the settings allow it."""
    cache = CacheOptions(
        config.cache,
        cache_folder(config.cache_dir),
        config.cache_dtype,
        workers=config.workers,
        batch_size=config.batch_size,
        quiet=config.quiet,
    )
    loaded = setup.loaded
    return row_loader(
        rows,
        loaded.net,
        LoaderOptions(config.batch_size, config.workers),
        cache,
        recipe=loaded.recipe,
        seed=0,
        device=loaded.device,
    )


def _warn_of_other_tuning(loaded: LoadedNet, prompting: Prompting) -> None:
    tuned = loaded.metadata.tuning.get("prompt_source", prompting.source)
    if loaded.postprocess_source == "checkpoint" and tuned != prompting.source:
        log.warning(
            "the checkpoint's postprocessing, %s, was chosen with prompts %s, not %s; --postprocess none leaves it out.",
            loaded.metadata.postprocess,
            tuned,
            prompting.source,
        )
