"""The evaluation recipe: load, predict, score, write; knows no flags."""

from __future__ import annotations

import csv
import dataclasses
import io
import logging
import os
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader

from promise import checkpoint
from promise.cached import row_loader
from promise.config import EvalConfig
from promise.data.check import check_files
from promise.data.images import content_hash, read_image, read_mask
from promise.data.table import Row, read_table
from promise.device import describe_environment, keep_freed_memory, peak_memory, resolve_device, tell_memory
from promise.engine import RowPrediction, predict_rows
from promise.errors import ExistingRunError, UserError
from promise.files import write_json, write_text
from promise.models.promise import Promise, resolve_precision
from promise.models.prompts import ORIGINS, fixed_labels, prompt_batch
from promise.postprocess import Postprocess
from promise.progress_bar import progress_bar
from promise.registry import build_net, parse_net_name, resolve_sam
from promise.report import draw_overlay, save_picture
from promise.scoring import (
    EMPTY_RULES,
    NATIVE_POSTPROCESS,
    PROTOCOLS,
    REFERENCE_POSTPROCESS,
    Scored,
    mean_scores,
    score,
)
from promise.transforms import build_transform, plain_recipe
from promise.types import Batch

log = logging.getLogger(__name__)

Result = TypeVar("Result")


@dataclass(frozen=True)
class DataSet:
    """The rows of one CSV that are scored."""

    name: str
    rows: tuple[Row, ...]
    split: str


@dataclass(frozen=True)
class EvalResult:
    """What an evaluation leaves."""

    folder: Path
    summary: dict[str, Any]


def evaluate(config: EvalConfig) -> EvalResult:
    """Score a checkpoint, or an untrained net, on the rows of one or more split CSVs.

    Raises:
        UserError: settings, files or weights that cannot be used; nothing has been written then.
    """
    _check(config)
    postprocess = Postprocess.parse(config.postprocess) if config.postprocess else None
    device = resolve_device(config.device)
    precision = resolve_precision(config.precision, device)
    keep_freed_memory()
    folder = _claim(config)
    datasets = _read_datasets(config)
    net, metadata = _load(config, precision)
    source = config.prompts or ("auto" if not net.needs_prompts else "gt")
    if source == "auto" and net.needs_prompts:
        raise UserError(f"{metadata.net} places no prompts of its own: use --prompts gt, gt-box or centre.")
    own = config.num_points is not None and config.num_points != metadata.num_points
    if source == "auto" and own:
        raise UserError(
            f"{metadata.net} places {metadata.num_points} points of its own: drop --num-points {config.num_points}."
        )
    seed = next(s for s in (config.seed, metadata.seed, random.SystemRandom().randrange(2**31)) if s is not None)
    net.to(device)
    config = dataclasses.replace(config, recipe=config.recipe or plain_recipe(metadata.config.get("augment")))
    if config.overwrite:
        for picture in (folder / "overlays").glob("*/*.png"):
            picture.unlink()  # of other prompts, maybe
    tables: dict[str, Any] = {}
    per_image: list[dict[str, Any]] = []
    for dataset in datasets:
        prompter = partial(prompt_batch, source, num_points=config.num_points or metadata.num_points, seed=seed)
        caption = f"{metadata.net}, {ORIGINS[source]}"
        rows = _score_dataset(config, net, dataset, prompter, device, postprocess, folder, caption)
        tables[dataset.name] = {**_summarise(rows, dataset), "seen": _count_seen(dataset, metadata)}
        per_image += [_flat(dataset, row, scored, ORIGINS[source]) for row, scored in rows]
    summary = {
        "net": metadata.net,
        "sam": metadata.sam,
        "checkpoint": config.ckpt,
        "trained": config.ckpt is not None,
        "epoch": metadata.epoch,
        "num_points": config.num_points or metadata.num_points,
        "sam_sha256": metadata.sam_sha256,
        "prompts": ORIGINS[source],
        "prompt_source": source,
        "seed": seed,
        "precision": precision,
        "recipe": config.recipe,
        "postprocess": {
            "reference": str(postprocess or REFERENCE_POSTPROCESS),
            "native": str(postprocess or NATIVE_POSTPROCESS),
        },
        "empty_masks": config.empty_masks,
        "empty_masks_rule": EMPTY_RULES[config.empty_masks],
        "datasets": tables,
        "environment": describe_environment(device),
        "peak_memory_gib": peak_memory(device),
    }
    _write(folder, summary, per_image)
    return EvalResult(folder, summary)


def _check(config: EvalConfig) -> None:
    faults = []
    if not config.split_csv:
        faults.append("--split-csv is missing: which images? (data_format/README.md shows the format)")
    if config.ckpt is None and config.net is None:
        faults.append("give a --ckpt, or an untrained --net")
    if config.batch_size < 1 or config.workers < 0 or config.overlays < 0:
        faults.append("--batch-size must be at least 1, --workers and --overlays at least 0")
    if config.net is not None:
        parse_net_name(config.net)
    if config.num_points is not None:
        fixed_labels(config.num_points)
    if config.recipe and not build_transform(config.recipe, image_size=64, pixels="imagenet").deterministic:
        faults.append(
            f"--recipe {config.recipe} draws augmentations; evaluation wants one without, such as basic_color"
        )
    if faults:
        raise UserError("; ".join(faults) + ".")


def _claim(config: EvalConfig) -> Path:
    name = "eval" if config.prompts is None else f"eval-{config.prompts}"
    beside = Path(config.ckpt).parent if config.ckpt else Path("runs") / f"{config.net}-untrained"
    folder = Path(config.output) if config.output else beside / name
    if folder.exists() and not folder.is_dir():
        raise ExistingRunError(f"{folder} is a file, not a folder. Choose another with --output.")
    present = [n for n in ("summary.json", "per_image.csv") if (folder / n).exists()]
    if present and not config.overwrite:
        raise ExistingRunError(
            f"{folder} already holds results ({', '.join(present)}). Replace them by --overwrite, or choose another "
            "folder with --output."
        )
    return folder


def _read_datasets(config: EvalConfig) -> list[DataSet]:
    datasets: list[DataSet] = []
    for path in config.split_csv:
        table = read_table(path, data_root=config.data_root)
        split = config.split or ("test" if table.split("test") else "val")
        rows = table.split(split)
        if not rows:
            counts = ", ".join(f"{n} {name}" for name, n in table.counts.items()) or "no rows"
            raise UserError(f"{path}: no row has train_type {split!r} (there are {counts}). Choose with --split.")
        for note in (
            *table.notes,
            *check_files(rows, csv_path=path, level=config.check, progress=not config.quiet),
        ):
            log.warning(note)
        stem, taken = Path(path).stem, {d.name for d in datasets}
        name = next(n for n in (stem, *(f"{stem}-{i}" for i in range(2, 10**6))) if n not in taken)
        datasets.append(DataSet(name, rows, split))
    return datasets


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


def _score_dataset(
    config: EvalConfig,
    net: Promise,
    dataset: DataSet,
    prompter: Callable[[Batch], Any],
    device: torch.device,
    postprocess: Postprocess | None,
    folder: Path,
    caption: str,
) -> list[tuple[RowPrediction, Scored]]:
    recipe = config.recipe or "basic_color"
    loader = row_loader(dataset.rows, net, config, recipe=recipe, seed=0, device=device)
    bar = progress_bar(total=len(dataset.rows), name=dataset.name, unit="image", quiet=config.quiet)

    def work(row: RowPrediction) -> tuple[RowPrediction, Scored, np.ndarray]:
        target = read_mask(dataset.rows[row.index].mask)
        return row, score(row.logits, target, postprocess=postprocess, empty_rule=config.empty_masks), target

    scored: list[tuple[RowPrediction, Scored]] = []
    with bar, tell_memory(config.batch_size):
        predicted = predict_rows(net, _batches(loader), prompter=prompter, device=device)
        for row, result, target in _beside(work, predicted):
            scored.append((row, result))
            if len(scored) <= config.overlays:
                _draw(folder, dataset, row, result, target, net.sam.backbone.image_size, caption)
            bar.update()
    return scored


def _beside(work: Callable[[RowPrediction], Result], rows: Iterable[RowPrediction]) -> Iterator[Result]:
    """Do work on rows in threads, beside the net that predicts the next ones; in the rows' order."""
    threads = min(4, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Result]] = deque()
        for row in rows:
            waiting.append(pool.submit(work, row))
            if len(waiting) > 4 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _batches(loader: DataLoader[Any]) -> Iterator[Batch]:
    yield from loader


def _draw(
    folder: Path,
    dataset: DataSet,
    row: RowPrediction,
    scored: Scored,
    target: np.ndarray,
    input_size: int,
    caption: str,
) -> None:
    image = read_image(dataset.rows[row.index].image)
    height, width = target.shape
    # Input pixels → this image's pixels; the centre of the first pixel is (0, 0) in both.
    scale = np.array([width, height], np.float32) / input_size
    native = scored.scores["native"]
    picture = draw_overlay(
        image,
        target,
        scored.mask,
        xy=(row.xy + 0.5) * scale - 0.5,
        label=row.label,
        box=None if row.box is None else (row.box + 0.5) * np.tile(scale, 2) - 0.5,
        caption=f"{caption}  Dice {native['dice']:.3f}  IoU {native['iou']:.3f}",
    )
    name = f"{row.name.replace('/', '_').replace(chr(92), '_')}.png"
    save_picture(folder / "overlays" / dataset.name / name, picture)


def _count_seen(dataset: DataSet, metadata: checkpoint.Metadata) -> dict[str, int]:
    """How many of the rows the net was trained or selected on, by content; a warning where there are any."""
    found = {content_hash(row.image) for row in dataset.rows}
    counts = {split: len(found.intersection(hashes)) for split, hashes in metadata.seen.items()}
    for split, verb in (("train", "trained"), ("val", "selected")):
        if counts.get(split):
            log.warning(
                "%s: the net was %s on %d of the %d scored images; these scores are no test of it.",
                dataset.name,
                verb,
                counts[split],
                len(dataset.rows),
            )
    return counts


def _summarise(rows: Sequence[tuple[RowPrediction, Scored]], dataset: DataSet) -> dict[str, Any]:
    return {
        "split": dataset.split,
        "images": len(rows),
        "empty_truths": sum(s.empty_truth for _, s in rows),
        "mean_predicted_iou": float(np.mean([r.iou for r, _ in rows])),
        "means": mean_scores([s.scores for _, s in rows]),
    }


def _flat(dataset: DataSet, row: RowPrediction, scored: Scored, origin: str) -> dict[str, Any]:
    values = {f"{p}_{name}": value for p in PROTOCOLS for name, value in scored.scores[p].items()}
    return {
        "dataset": dataset.name,
        "name": row.name,
        "prompts": origin,
        "empty_truth": int(scored.empty_truth),
        "predicted_iou": row.iou,
        **values,
    }


def _write(folder: Path, summary: Mapping[str, Any], per_image: Sequence[Mapping[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(per_image[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(per_image)
    write_text(folder / "per_image.csv", text.getvalue())
    write_json(folder / "summary.json", dict(summary))
