"""Evaluate a net: load it, predict, score and write the results."""

from __future__ import annotations

import dataclasses
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from promise.data.leaks import count_seen, find_seen, hash_data, hash_images
from promise.data.masks import read_mask
from promise.data.selection import DataSet, select_rows
from promise.evaluation import clicks
from promise.evaluation.clicks import ClickStudy
from promise.evaluation.config import EMPTY_RULES, EvalConfig
from promise.evaluation.drawing import draw_row, file_name, remove_overlays, warn_if_unwritten
from promise.evaluation.gallery import Gallery
from promise.evaluation.score_table import ScoreTable
from promise.evaluation.scoring import Scored, score
from promise.evaluation.setup import EvaluationSetup, check_eval, evaluation_loader, load_setup
from promise.evaluation.statistics import LEVEL, RESAMPLES, SEED
from promise.inference.loop import RowPrediction, encode_batch, predict_draws
from promise.models import checkpoint
from promise.prompts.file import Draw, write_prompts
from promise.prompts.sampling import NONE
from promise.prompts.sets import ImagePrompts
from promise.prompts.source import PromptSource
from promise.runtime.environment import describe_environment
from promise.runtime.errors import WriteError
from promise.runtime.files import check_output_dir, remove_leftovers, write_json, write_lines
from promise.runtime.lock import exclusive
from promise.runtime.memory import explain_out_of_memory, peak_memory
from promise.runtime.notices import describe, unique
from promise.runtime.progress import progress_bar
from promise.runtime.workers import default_workers, ordered_map
from promise.types import Batch, Encoded

log = logging.getLogger(__name__)

PROMPTS = "prompts.json"
CLICKS = "clicks.csv"
STATEMENT = (
    "All scores are of the foreground alone, computed per image; the background is not averaged in. Intervals are "
    "95 % bootstrap intervals of the mean over images."
)


@dataclass(frozen=True)
class EvalResult:
    """The folder and the summary of an evaluation."""

    folder: Path
    summary: dict[str, Any]


def evaluate(config: EvalConfig) -> EvalResult:
    """Score a checkpoint, or an untrained net, on the rows of one or more split CSVs.

    Returns:
        The folder with summary.json, per_image.csv, prompts.json, overlays and, with ``clicks``, clicks.csv; the
        content of summary.json.

    Raises:
        UserError: invalid settings, files or weights; nothing has been written.
    """
    check_eval(config)
    if config.ckpt is not None:
        checkpoint.require(config.ckpt)
    folder = check_output_dir(_folder(config), ("summary.json", "per_image.csv"), overwrite=config.overwrite)
    with exclusive(folder):
        check_output_dir(folder, ("summary.json", "per_image.csv"), overwrite=config.overwrite)
        return _evaluate(config, folder)


def _evaluate(config: EvalConfig, folder: Path) -> EvalResult:
    remove_leftovers(folder)
    datasets, notes = select_rows(
        config.split_csv, data_root=config.data_root, split=config.split, level=config.check, progress=not config.quiet
    )
    for note in notes:
        log.warning(note)
    setup = load_setup(config)
    draws = setup.read_draws(datasets)
    if config.overwrite:
        remove_overlays(folder)
        (folder / CLICKS).unlink(missing_ok=True)
    scored = [
        _DataSetScorer(config, setup, dataset, folder).run(setup.prompt_sources(dataset, draws)) for dataset in datasets
    ]
    notices = unique([*setup.notices, *(notice for one in scored for notice in one.notices)])
    summary = {
        **setup.describe(),
        "checkpoint": config.ckpt,
        "trained": config.ckpt is not None,
        "empty_masks": config.empty_masks,
        "empty_masks_rule": EMPTY_RULES[config.empty_masks],
        "foreground_only": True,
        "statement": STATEMENT,
        "bootstrap": {"level": LEVEL, "resamples": RESAMPLES, "seed": SEED, "over": "images"},
        "warnings": [describe(notice) for notice in notices],
        "notices": [notice.as_dict() for notice in notices],
        "datasets": {one.dataset.name: one.summarise() for one in scored},
        "gallery": [entry for one in scored for entry in one.draw_gallery()],
        "prompt_files": [PROMPTS],
        **({"clicks": {"prompts": clicks.ORIGIN, "statement": clicks.STATEMENT}} if config.clicks else {}),
        "settings": dataclasses.asdict(config),
        "environment": describe_environment(setup.loaded.device),
        "peak_memory_gib": peak_memory(setup.loaded.device),
    }
    try:
        _write(folder, summary, setup, scored)
    except WriteError as error:
        _keep(error, summary, setup, scored)
    return EvalResult(folder, summary)


def _folder(config: EvalConfig) -> Path:
    name = "eval" if config.prompts is None else f"eval-{config.prompts.split(':')[0]}"
    runs = Path("runs")
    if config.ckpt is None:
        parent = runs / f"{config.net}-untrained"
    else:  # a bundled checkpoint is not in a folder of the user
        parent = Path(config.ckpt).parent if Path(config.ckpt).is_file() else runs / config.ckpt
    return Path(config.output) if config.output else parent / name


class _DataSetScorer:
    """Scores a data set; stores only the scores, the prompts and a compressed mask of each row."""

    def __init__(self, config: EvalConfig, setup: EvaluationSetup, dataset: DataSet, folder: Path) -> None:
        self.config = config
        self.setup = setup
        self.dataset = dataset
        self.folder = folder
        self.seeds = setup.prompting.seeds
        self.table = ScoreTable(len(dataset.rows), len(self.seeds))
        self.prompts: list[dict[str, ImagePrompts]] = [{} for _ in self.seeds]  # per draw: name → prompts
        self.gallery = Gallery(dataset.rows, config.gallery)
        self.clicks = self._click_study() if config.clicks else None
        self.hashes = hash_images(dataset.rows)
        self.seen = count_seen(self.hashes, setup.loaded.metadata.seen)
        # Images of the tuning matter only where the tuned postprocessing or tuned lesion settings are used.
        tuned = setup.loaded.postprocess_source == "checkpoint" or setup.loaded.net.lesions is not None
        used = self.seen if tuned else {**self.seen, "tune": 0}
        self.notices = find_seen(dataset.name, used, len(dataset.rows))
        for notice in self.notices:
            log.warning(describe(notice))
        self.caption = f"{setup.loaded.metadata.net}, {setup.prompting.origin}"

    def run(self, sources: Sequence[PromptSource]) -> _DataSetScorer:
        """Score every row under every draw; scoring runs in threads while the net predicts."""
        config, setup, rows = self.config, self.setup, self.dataset.rows
        loader = evaluation_loader(rows, setup, config)
        total = len(rows) * len(sources)
        bar = progress_bar(total=total, name=self.dataset.name, unit="image", quiet=config.quiet)
        with bar, explain_out_of_memory(config.batch_size):
            predicted = self._predict(loader, sources)
            for row, prompts, scored in ordered_map(self._score, predicted, workers=default_workers()):
                self._store(row, prompts, scored)
                bar.update()
        return self

    def _predict(self, batches: Iterable[Batch], sources: Sequence[PromptSource]) -> Iterator[RowPrediction]:
        """Predict every row under every draw, and correct the rows of the first draw from the same features."""
        loaded = self.setup.loaded
        if self.clicks is None:
            yield from predict_draws(loaded.net, batches, sources=sources, device=loaded.device)
            return
        for batch in batches:
            encoded = encode_batch(loaded.net, batch, loaded.device)
            assert isinstance(encoded.image, Encoded)
            places = {int(index): place for place, index in enumerate(batch.index)}
            for row in predict_draws(loaded.net, [encoded], sources=sources, device=loaded.device):
                if row.draw == 0:
                    place = places[row.index]
                    features = Encoded(encoded.image.embedding[place : place + 1])
                    self.clicks.add(row.index, row.name, row.logits, features, self._target(row.index))
                yield row

    def _click_study(self) -> ClickStudy:
        return ClickStudy(
            self.setup.loaded.net,
            clicks=self.config.clicks,
            postprocess=self.setup.native,
            from_nothing=self.setup.prompting.source == NONE,
            empty_rule=self.config.empty_masks,
        )

    def _target(self, index: int) -> np.ndarray:
        return read_mask(self.dataset.rows[index].mask)

    def _score(self, row: RowPrediction) -> tuple[RowPrediction, ImagePrompts, Scored]:
        target = self._target(row.index)
        height, width = target.shape
        prompts = ImagePrompts.of(
            row.sets,
            side=self.setup.loaded.side,
            size=(width, height),
            mask_index=row.mask_index,
            fuse=row.fuse,
        )
        scored = score(
            row.logits,
            target,
            prompts=prompts,
            postprocess=self.setup.reference,
            native=self.setup.native,
            empty_rule=self.config.empty_masks,
        )
        return row, prompts, scored

    def _store(self, row: RowPrediction, prompts: ImagePrompts, scored: Scored) -> None:
        self.table.add(row, scored)
        self.prompts[row.draw][row.name] = prompts
        if row.draw == 0:
            self.gallery.keep(row.index, scored.mask)
        if row.draw == 0 and row.index < self.config.overlays:
            native = scored.scores["native"]
            path = self.folder / "overlays" / self.dataset.name / file_name(row.name)
            caption = f"{self.caption}  Dice {native['dice']:.3f}  IoU {native['iou']:.3f}"
            with warn_if_unwritten():
                draw_row(path, self.dataset.rows[row.index], scored.mask, prompts, caption)

    def summarise(self) -> dict[str, Any]:
        """The entry of the data set in summary.json."""
        return {
            "split": self.dataset.split,
            **self.table.summarise(self.seeds),
            "seen": self.seen,
            "data_hash": hash_data(self.dataset.rows, self.hashes),
            **({} if self.clicks is None else {"clicks": self.clicks.summarise(self.setup.prompting.origin)}),
        }

    def draw_gallery(self) -> list[dict[str, Any]]:
        """Draw the overlays of the best, median and worst rows under the first draw of prompts."""
        dice, iou = (self.table.column("native", name)[:, 0] for name in ("dice", "iou"))
        return self.gallery.draw(
            self.folder, self.dataset.name, dice=dice, iou=iou, prompts=self.prompts[0], caption=self.caption
        )


def _keep(
    error: WriteError, summary: Mapping[str, Any], setup: EvaluationSetup, scored: Sequence[_DataSetScorer]
) -> None:
    """Write the scores to the folder of temporary files, since their own cannot be written; raises the error."""
    try:
        spare = Path(tempfile.mkdtemp(prefix="promise-eval-"))
        _write(spare, summary, setup, scored)
    except OSError:  # WriteError is one
        raise error from None
    raise WriteError(
        f"{error} The scores are in {spare}: move them before it is cleared.", number=error.errno or 0
    ) from error


def _write(folder: Path, summary: Mapping[str, Any], setup: EvaluationSetup, scored: Sequence[_DataSetScorer]) -> None:
    prompting = setup.prompting
    write_lines(
        folder / "per_image.csv",
        (line for one in scored for line in one.table.lines(one.dataset.name, prompting.origin)),
    )
    studies = [(one.dataset.name, one.clicks) for one in scored if one.clicks is not None]
    if studies:
        net = setup.loaded.metadata.net
        write_lines(
            folder / CLICKS, (line for name, study in studies for line in study.lines(name, net, prompting.origin))
        )
    draws = [Draw(seed, {one.dataset.name: one.prompts[i] for one in scored}) for i, seed in enumerate(prompting.seeds)]
    write_prompts(folder / PROMPTS, prompting.written_source, draws)
    write_json(folder / "summary.json", dict(summary))
