"""The HTML page of a run and its evaluations: gathers what the parts make, and writes it; no network, no script."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from promise import __version__
from promise.evaluation.reader import Evaluation, find_evaluations, read_evaluation
from promise.report import charts
from promise.report.facts import Run, notices, provenance_of_evaluation, provenance_of_run, read_run
from promise.report.pictures import Picture, embed
from promise.report.tables import NOTHING, Cell, Table, interval, number, result_tables
from promise.runtime.errors import ExistingRunError, MissingFileError, UserError
from promise.runtime.files import write_text

BINS = 20  # of the histogram
SIZES = {"small": "s3", "medium": "s2", "large": "s1"}  # size class → colour
KINDS = ("best", "median", "worst")
MISS = 0.1  # native Dice below it, where the summary does not say
MISSES_SHOWN = 50


@dataclass(frozen=True)
class Detail:
    """One data set under one evaluation."""

    dataset: str
    figures: list[tuple[str, str, str]]  # what, value, small words below it
    charts: list[Markup]
    sizes: Table | None
    galleries: list[tuple[str, list[Picture]]]
    misses: list[tuple[str, str, str, str]]  # name, Dice, share of the image, size class
    misses_more: int
    miss_below: float
    calibration: str
    absent: list[str]  # sections that the evaluation has nothing for


def write_report(
    run: Path | None, evaluations: Sequence[Path] = (), *, output: Path | None = None, overwrite: bool = False
) -> Path:
    """Write ``report.html`` with ``tables.md`` and ``tables.tex`` beside it.

    Args:
        run: a training run's folder, whose evaluations are found in it, or that of an evaluation.
        evaluations: more folders of evaluations.
        output: default: ``report.html`` in the run's folder, else in the first evaluation's.
        overwrite: replace an earlier report.

    Returns:
        Where the page is.

    Raises:
        UserError: folders that hold no results, damaged files, or a report that is there already.
    """
    record = None if run is None else read_run(run)
    folders = list(dict.fromkeys([*([] if run is None else find_evaluations(run)), *evaluations]))
    if record is None and not folders:
        where = "" if run is None else f" {run} holds neither a training nor an evaluation."
        raise MissingFileError(f"nothing to report.{where} Give a run's folder, or --eval FOLDER.")
    found = _told_apart([read_evaluation(folder) for folder in folders])
    page = output or (run or found[0].folder) / "report.html"
    if page.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--output {page} should be a file that ends in .html.")
    files = [page, page.with_name("tables.md"), page.with_name("tables.tex")]
    present = [path.name for path in files if path.exists()]
    if present and not overwrite:
        raise ExistingRunError(
            f"{page.parent} already holds {', '.join(present)}. Replace by --overwrite, or --output."
        )
    tables = {name: result_tables(found, name) for name in _datasets(found)}
    flat = [table for some in tables.values() for table in some]
    write_text(page, _render(record, found, tables))
    if flat:
        write_text(files[1], "\n".join(table.markdown() for table in flat))
        write_text(files[2], "\n".join(table.latex() for table in flat))
    return page


def _told_apart(evaluations: list[Evaluation]) -> list[Evaluation]:
    """Evaluations of the same net and prompts show their folder."""
    count = Counter(e.title for e in evaluations)
    return [dataclasses.replace(e, mark=str(e.folder)) if count[e.title] > 1 else e for e in evaluations]


def _datasets(evaluations: Sequence[Evaluation]) -> list[str]:
    return list(dict.fromkeys(name for e in evaluations for name in e.summary["datasets"]))


def _render(run: Run | None, evaluations: Sequence[Evaluation], tables: dict[str, list[Table]]) -> str:
    environment = Environment(
        loader=PackageLoader("promise", "report"),
        autoescape=True,  # all that comes from files is text, never a tag
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    loader = environment.loader
    assert loader is not None
    style, _, _ = loader.get_source(environment, "style.css")
    pictures = _pictures(evaluations)
    statements = list(dict.fromkeys(str(e.summary["statement"]) for e in evaluations if e.summary.get("statement")))
    return environment.get_template("page.html.j2").render(
        title=_title(run, evaluations),
        style=Markup(style),  # a file of this package
        version=__version__,
        notices=notices(run, evaluations),
        statements=statements,
        overview=_overview(evaluations),
        tables=tables,
        markdown="\n".join(table.markdown() for some in tables.values() for table in some),
        latex="\n".join(table.latex() for some in tables.values() for table in some),
        curves=[] if run is None else _curves(run),
        details=[
            (e.title, str(e.folder), [_detail(e, name, pictures) for name in e.summary["datasets"]])
            for e in evaluations
        ],
        provenance=[
            *([("Training", provenance_of_run(run))] if run else []),
            *((f"Evaluation: {e.title}", provenance_of_evaluation(e)) for e in evaluations),
        ],
        config="" if run is None else run.config,
    )


def _title(run: Run | None, evaluations: Sequence[Evaluation]) -> str:
    if evaluations:
        return f"{evaluations[0].summary['net']} on {evaluations[0].summary.get('sam', 'SAM')}"
    assert run is not None
    return f"{run.metadata.get('net', run.folder.name)} on {run.metadata.get('sam', 'SAM')}"


# --- the overview ---------------------------------------------------------------------------------


def _overview(evaluations: Sequence[Evaluation]) -> list[tuple[str, Markup]]:
    """A chart a data set: native Dice of every evaluation, with its interval."""
    found = []
    for name in _datasets(evaluations):
        rows = []
        for e in evaluations:
            told = e.summary["datasets"].get(name)
            mean = None if told is None else told["means"]["native"].get("dice")
            if told is None or not isinstance(mean, int | float):
                continue
            bounds = ((told.get("intervals") or {}).get("native") or {}).get("dice")
            words = f"{number(mean)} {interval(bounds)}".rstrip()
            whole = (bounds[0], bounds[1]) if bounds and interval(bounds) else None
            rows.append((e.title, words, float(mean), whole))
        if rows:
            x = "native Dice, mean and 95 % interval"
            found.append((name, charts.intervals(rows, title=f"Mean Dice on {name}", x=x)))
    return found


def _curves(run: Run) -> list[Markup]:
    drawn = []
    for title, unit, names in (
        ("Loss", False, (("train_loss", "training", "s1"), ("val_loss", "validation", "s4"))),
        ("Validation scores", True, (("val_dice", "Dice", "s1"), ("val_iou", "IoU", "s4"))),
    ):
        series = [
            charts.Series(
                words,
                [(epoch, v) for row in run.history if (v := row.get(name)) is not None and (epoch := row.get("epoch"))],
                style,
            )
            for name, words, style in names
        ]
        series = [one for one in series if one.values]
        if series:
            mark = run.metadata.get("epoch")
            drawn.append(charts.lines(series, title=title, x=f"{title}, by epoch", unit=unit, mark=mark))
    return drawn


# --- one data set under one evaluation ------------------------------------------------------------

Pictures = dict[tuple[str, str], list[Picture]]  # (evaluation's folder, data set) → its gallery


def _pictures(evaluations: Sequence[Evaluation]) -> Pictures:
    """All galleries, encoded together: they share the page's bytes."""
    entries = [
        (e.folder, dict(entry))
        for e in evaluations
        for entry in e.summary.get("gallery") or []
        if isinstance(entry, dict)
    ]
    found: Pictures = {}
    for (folder, entry), pictures in zip(entries, embed(entries), strict=True):
        found.setdefault((str(folder), str(entry.get("dataset"))), []).extend(pictures)
    return found


def _detail(evaluation: Evaluation, name: str, pictures: Pictures) -> Detail:
    told = evaluation.summary["datasets"][name]
    images = evaluation.images().loc[name]
    gallery = pictures.get((str(evaluation.folder), name), [])
    below = (told.get("misses") or {}).get("below", MISS)
    missed = images[images["native_dice"] < below].sort_values("native_dice", kind="stable")
    drawn = list(_charts(images, told))
    parts = {
        "a calibration plot": told.get("calibration"),
        "scores by size": told.get("by_size"),
        "a gallery": gallery,
        "intervals": told.get("intervals"),
    }
    return Detail(
        dataset=name,
        figures=_figures(told, images),
        charts=drawn,
        sizes=_sizes(told),
        galleries=[(kind, some) for kind in KINDS if (some := [p for p in gallery if p.kind == kind])],
        misses=[
            (str(index), number(row["native_dice"]), _percent(row.get("foreground_share")), row.get("size_class") or "")
            for index, row in missed[:MISSES_SHOWN].iterrows()
        ],
        misses_more=max(0, len(missed) - MISSES_SHOWN),
        miss_below=below,
        calibration=_calibration_words(told.get("calibration") or {}),
        absent=[what for what, value in parts.items() if not value],
    )


def _figures(told: dict[str, Any], images: Any) -> list[tuple[str, str, str]]:
    """The handful of numbers that stand above everything else."""
    native = told["means"]["native"]
    bounds = (told.get("intervals") or {}).get("native") or {}
    pooled, misses, draws = told.get("pooled") or {}, told.get("misses") or {}, told.get("draws") or {}
    figures = [
        ("Dice", number(native.get("dice")), interval(bounds.get("dice"))),
        ("IoU", number(native.get("iou")), interval(bounds.get("iou"))),
        ("images", number(told.get("images", len(images))), f"split {told.get('split', NOTHING)}"),
    ]
    if pooled:
        figures.append(("pooled Dice", number(pooled.get("dice")), f"IoU {number(pooled.get('iou'))}"))
    if misses:
        share = _percent(misses.get("share"))
        figures.append(("missed", number(misses.get("images")), f"{share}, Dice < {misses.get('below', MISS)}"))
    if draws.get("count", 1) > 1:
        deviation = ((draws.get("deviation") or {}).get("native") or {}).get("dice")
        figures.append((f"± over {draws['count']} draws", number(deviation), "of Dice, between draws"))
    return figures


def _charts(images: Any, told: dict[str, Any]) -> Iterator[Markup]:
    dice = images["native_dice"]
    classes = images["size_class"] if "size_class" in images else dice.map(lambda _: "")
    edges = np.linspace(0, 1, BINS + 1)
    # Large lesions lie at the ground; without classes, all images are of one colour.
    known = [size for size in reversed(SIZES) if (classes == size).any()]
    parts = [(size, SIZES[size], dice[classes == size]) for size in known] or [("", "s1", dice)]
    counts = [(size, style, np.histogram(values.dropna(), edges)[0].tolist()) for size, style, values in parts]
    yield charts.histogram(counts, title="How Dice is distributed over the images", x="native Dice of an image")
    if known:
        groups = [(size, SIZES[size], dice[classes == size].dropna().tolist()) for size in SIZES]
        yield charts.boxes(groups, title="Dice by size of the lesion", x="native Dice, by size of the lesion")
    bins = [
        (b["predicted"], b["true"], b["images"])
        for b in (told.get("calibration") or {}).get("bins") or []
        if b.get("images") and None not in (b.get("predicted"), b.get("true"))
    ]
    if bins:
        yield charts.calibration(bins, title="SAM's own estimate of IoU against the true one")


def _sizes(told: dict[str, Any]) -> Table | None:
    by_size = told.get("by_size")
    if not by_size:
        return None
    shares = {"small": "small, below 2 % of the image", "medium": "medium, 2 to 10 %", "large": "large, from 10 %"}
    rows = [
        (
            Cell(shares.get(name, name)),
            Cell(number(part.get("images"))),
            Cell(number(part.get("dice")), interval(part.get("dice_interval"))),
            Cell(number(part.get("iou"))),
        )
        for name, part in by_size.items()
    ]
    return Table("By size", ("Lesions", "Images", "Dice", "IoU"), 1, tuple(rows))


def _calibration_words(told: dict[str, Any]) -> str:
    if not told:
        return ""
    return (
        f"SAM's estimate is off by {number(told.get('error'))} on average (bias {number(told.get('bias'))}, "
        f"correlation {number(told.get('correlation'))}); dots on the diagonal would be right."
    )


def _percent(share: Any) -> str:
    return NOTHING if number(share) == NOTHING else f"{100 * share:.1f} %"
