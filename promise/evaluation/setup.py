"""Check the settings of an evaluation and load what they name: net, prompts and postprocessing."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from promise.data.images import read_size
from promise.data.selection import DataSet
from promise.data.table import Row
from promise.data.transforms.recipes import build_transform
from promise.evaluation.config import EvalConfig
from promise.evaluation.scoring import REFERENCE_POSTPROCESS
from promise.features.loader import CacheOptions, LoaderOptions, row_loader
from promise.features.store import cache_folder
from promise.inference.loading import LoadedNet, load_net
from promise.inference.postprocess import Postprocess
from promise.models.prompters.base import fixed_labels
from promise.models.prompters.lesions import check_settings
from promise.models.registry import parse_net_name
from promise.prompts.file import Draw
from promise.prompts.source import Prompting, PromptSettings, PromptSource, find_prompting_errors, resolve_prompting
from promise.runtime.errors import UserError, raise_all
from promise.runtime.notices import OTHER_TUNING, Notice, describe
from promise.runtime.settings import find_out_of_range

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

log = logging.getLogger(__name__)

Draws: TypeAlias = Sequence[Draw] | None


@dataclass(frozen=True)
class EvaluationSetup:
    """A loaded net with its prompts and its postprocessing."""

    loaded: LoadedNet
    prompting: Prompting
    reference: Postprocess  # of the reference protocol
    notices: tuple[Notice, ...] = ()

    @property
    def native(self) -> Postprocess:
        """Postprocessing of the native protocol."""
        return self.loaded.postprocess

    def read_draws(self, datasets: Sequence[DataSet]) -> Draws:
        """The draws of a prompts file for the images of the data sets; ``None`` where prompts come from no file.

        Raises:
            UserError: the file does not hold valid prompts of every image.
        """
        if self.prompting.file is None:
            return None
        sizes = {d.name: {row.name: read_size(row.image)[::-1] for row in d.rows} for d in datasets}
        return self.prompting.draws(sizes, side=self.loaded.side, mask_side=self.loaded.mask_side)

    def prompt_sources(self, dataset: DataSet, draws: Draws) -> list[PromptSource]:
        """A prompt source per draw for the images of a data set; ``draws`` as returned by :meth:`read_draws`."""
        return self.prompting.sources(dataset.name, draws, side=self.loaded.side)

    def describe(self) -> dict[str, Any]:
        """The entries of summary.json."""
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
            "lesions": None if loaded.net.lesions is None else dataclasses.asdict(loaded.net.lesions),
            "postprocess": {"reference": str(self.reference), "native": str(self.native)},
            "postprocess_source": loaded.postprocess_source,
        }


def prompt_settings(config: EvalConfig) -> PromptSettings:
    """The settings of prompts in the settings of an evaluation."""
    return PromptSettings(
        source=config.prompts,
        num_points=config.num_points,
        gt_points=config.gt_points,
        gt_box=config.gt_box,
        seeds=config.prompt_seeds,
    )


def check_eval(config: EvalConfig) -> None:
    """Check the settings before any file is opened.

    Raises:
        UserError: invalid settings; all faults are reported together.
    """
    errors = [*_check_required(config), *find_out_of_range(config, code="number-too-small")]
    for check in (_check_net, _check_points, _check_postprocess, _check_lesions, _check_recipe):
        try:
            check(config)
        except UserError as error:
            errors.append(error)
    errors += find_prompting_errors(prompt_settings(config))
    raise_all(errors)


def _check_required(config: EvalConfig) -> Iterator[UserError]:
    if not config.split_csv:
        yield UserError(
            "--split-csv is missing: name the CSV files of the data sets (format: data_format/README.md).",
            code="missing-split-csv",
        )
    if config.ckpt is None and config.net is None:
        yield UserError("--ckpt is missing; to score an untrained net, use --net.", code="missing-net")


def _check_net(config: EvalConfig) -> None:
    if config.net is not None:
        parse_net_name(config.net)


def _check_points(config: EvalConfig) -> None:
    if config.num_points is not None:
        fixed_labels(config.num_points)


def _check_postprocess(config: EvalConfig) -> None:
    if config.postprocess not in (None, "default"):
        Postprocess.parse(config.postprocess or "")


def _check_lesions(config: EvalConfig) -> None:
    check_settings(config.lesion_settings)


def _check_recipe(config: EvalConfig) -> None:
    if config.recipe and not build_transform(config.recipe, image_size=64, pixels="imagenet").deterministic:
        raise UserError(
            f"--recipe {config.recipe} draws augmentations; evaluation requires a recipe without, e.g. none.",
            code="augmenting-recipe",
        )


def load_setup(config: EvalConfig) -> EvaluationSetup:
    """Load the net, its prompts and its postprocessing.

    Raises:
        UserError: invalid weights, prompts or device.
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
        max_lesions=config.max_lesions,
        lesion_settings=config.lesion_settings,
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
    notices = _tuning_notices(loaded, prompting)
    for notice in notices:
        log.warning(describe(notice))
    # Postprocessing is tuned at the size of the ground truth; it does not apply to the reference protocol.
    reference = loaded.postprocess if loaded.postprocess_source == "flag" else REFERENCE_POSTPROCESS
    return EvaluationSetup(loaded, prompting, reference, notices)


def evaluation_loader(rows: Sequence[Row], setup: EvaluationSetup, config: EvalConfig) -> DataLoader[Any]:
    """A loader of batches for the net, from features on disk if the settings allow it."""
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


def _tuning_notices(loaded: LoadedNet, prompting: Prompting) -> tuple[Notice, ...]:
    """A notice where the stored postprocessing was chosen with prompts of another source."""
    tuned = loaded.metadata.tuning.get("prompt_source", prompting.source)
    if loaded.postprocess_source != "checkpoint" or tuned == prompting.source:
        return ()
    data = {"postprocess": loaded.metadata.postprocess, "tuned": tuned, "source": prompting.source}
    return (Notice(OTHER_TUNING, data),)
