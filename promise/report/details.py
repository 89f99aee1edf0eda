"""The section of one data set under one evaluation: figures, charts, gallery and missed images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from markupsafe import Markup

from promise.evaluation.gallery import KINDS
from promise.evaluation.reader import Evaluation
from promise.evaluation.statistics import MISS, SIZES, risk_coverage
from promise.report import charts
from promise.report.gallery_images import GalleryImage, embed
from promise.report.tables import DASH, Cell, Table, interval, number

BINS = 20  # of the histogram
COLOURS = {"small": "s3", "medium": "s2", "large": "s1"}  # size class → class of the style sheet
MISSES_SHOWN = 50

Galleries: TypeAlias = dict[tuple[str, str], list[GalleryImage]]  # (folder of the evaluation, data set) → images


@dataclass(frozen=True)
class Clicks:
    """Dice after simulated clicks: a chart and a table."""

    title: str
    chart: Markup
    table: Table


@dataclass(frozen=True)
class Detail:
    """The content of the section."""

    dataset: str
    figures: list[tuple[str, str, str]]  # title, value, note in small print
    charts: list[Markup]
    sizes: Table | None
    galleries: list[tuple[str, list[GalleryImage]]]  # best, median or worst
    misses: list[tuple[str, str, str, str]]  # name, Dice, foreground in percent, size class
    misses_more: int  # not shown
    miss_below: float
    calibration: str
    clicks: Clicks | None  # Dice after simulated clicks, if the evaluation corrected its masks
    absent: list[str]  # parts that the evaluation did not record


def embed_galleries(evaluations: Sequence[Evaluation]) -> Galleries:
    """Encode the images of all galleries within one budget."""
    entries = [
        (e.folder, dict(entry))
        for e in evaluations
        for entry in e.summary.get("gallery") or []
        if isinstance(entry, dict)
    ]
    found: Galleries = {}
    for (folder, entry), images in zip(entries, embed(entries), strict=True):
        found.setdefault((str(folder), str(entry.get("dataset"))), []).extend(images)
    return found


def describe_dataset(evaluation: Evaluation, name: str, galleries: Galleries) -> Detail:
    """Collect the content of the section of a data set."""
    entry = evaluation.summary["datasets"][name]
    images = evaluation.images().loc[name]
    gallery = galleries.get((str(evaluation.folder), name), [])
    below = (entry.get("misses") or {}).get("below", MISS)
    missed = images[images["native_dice"] < below].sort_values("native_dice", kind="stable")
    drawn = list(_charts(images, entry))
    parts = {
        "a calibration plot": entry.get("calibration"),
        "scores by size": entry.get("by_size"),
        "a gallery": gallery,
        "intervals": entry.get("intervals"),
    }
    return Detail(
        dataset=name,
        figures=_figures(entry, images),
        charts=drawn,
        sizes=_sizes(entry),
        galleries=[(kind, some) for kind in KINDS if (some := [image for image in gallery if image.kind == kind])],
        misses=[
            (str(index), number(row["native_dice"]), _percent(row.get("foreground_share")), row.get("size_class") or "")
            for index, row in missed[:MISSES_SHOWN].iterrows()
        ],
        misses_more=max(0, len(missed) - MISSES_SHOWN),
        miss_below=below,
        calibration=_calibration_text(entry),
        clicks=_clicks(entry.get("clicks"), str(evaluation.summary["net"])),
        absent=[part for part, value in parts.items() if not value],
    )


def _figures(entry: dict[str, Any], images: Any) -> list[tuple[str, str, str]]:
    """The main numbers, at the top of the section."""
    native = entry["means"]["native"]
    bounds = (entry.get("intervals") or {}).get("native") or {}
    pooled, misses, draws = entry.get("pooled") or {}, entry.get("misses") or {}, entry.get("draws") or {}
    figures = [
        ("Dice", number(native.get("dice")), interval(bounds.get("dice"))),
        ("IoU", number(native.get("iou")), interval(bounds.get("iou"))),
        ("images", number(entry.get("images", len(images))), f"split {entry.get('split', DASH)}"),
    ]
    if pooled:
        figures.append(("pooled Dice", number(pooled.get("dice")), f"IoU {number(pooled.get('iou'))}"))
    if misses:
        fraction = _percent(misses.get("share"))
        figures.append(("missed", number(misses.get("images")), f"{fraction}, Dice < {misses.get('below', MISS)}"))
    if draws.get("count", 1) > 1:
        deviation = ((draws.get("deviation") or {}).get("native") or {}).get("dice")
        figures.append((f"± over {draws['count']} draws", number(deviation), "standard deviation of Dice"))
    return figures


def _charts(images: Any, entry: dict[str, Any]) -> Iterator[Markup]:
    dice = images["native_dice"]
    classes = images["size_class"] if "size_class" in images else dice.map(lambda _: "")
    edges = np.linspace(0, 1, BINS + 1)
    # Large lesions are at the bottom; without size classes, all bars have one colour.
    known = [size for size in reversed(SIZES) if (classes == size).any()]
    parts = [(size, COLOURS[size], dice[classes == size]) for size in known] or [("", "s1", dice)]
    counts = [(size, style, np.histogram(values.dropna(), edges)[0].tolist()) for size, style, values in parts]
    yield charts.histogram(counts, title="Distribution of Dice over images", x="native Dice of an image")
    if known:
        groups = [(size, COLOURS[size], dice[classes == size].dropna().tolist()) for size in SIZES]
        yield charts.boxes(groups, title="Dice by size of the lesion", x="native Dice by size of the lesion")
    learned = entry.get("estimated_calibration")
    bins = [
        (b["predicted"], b["true"], b["images"])
        for b in (learned or entry.get("calibration") or {}).get("bins") or []
        if b.get("images") and None not in (b.get("predicted"), b.get("true"))
    ]
    if not bins:
        return
    name = "estimated IoU" if learned else "IoU predicted by SAM"
    yield charts.calibration(bins, title=f"{name} and true IoU", x=name)
    column = "estimated_iou" if learned else "predicted_iou"
    if column in images and not dice.isna().all():
        yield _risk_coverage(images[column], dice, name)


def _risk_coverage(estimate: Any, dice: Any, name: str) -> Markup:
    """Mean 1 − Dice of the images that are kept when those with the lowest estimates are dropped."""
    risk, ideal = risk_coverage(estimate, dice), risk_coverage(dice, dice)
    mean = risk[-1][1]
    series = [
        charts.Series("random", [(0, mean), (1, mean)], "s2"),
        charts.Series("ideal", ideal, "s3"),
        charts.Series(name, risk, "s1"),
    ]
    title = "Mean 1 − Dice of the kept images by their fraction"
    return charts.lines(series, title=title, x="fraction of images kept; mean 1 − Dice", low=0)


def _sizes(entry: dict[str, Any]) -> Table | None:
    by_size = entry.get("by_size")
    if not by_size:
        return None
    titles = {"small": "small, below 2 % of the image", "medium": "medium, 2 to 10 %", "large": "large, from 10 %"}
    rows = [
        (
            Cell(titles.get(name, name)),
            Cell(number(part.get("images"))),
            Cell(number(part.get("dice")), interval(part.get("dice_interval"))),
            Cell(number(part.get("iou"))),
        )
        for name, part in by_size.items()
    ]
    return Table("By size", ("Lesions", "Images", "Dice", "IoU"), 1, tuple(rows))


def _clicks(entry: dict[str, Any] | None, net: str) -> Clicks | None:
    if not entry:
        return None
    corrected = [(net, str(entry["start"]), "s1", entry["net"])]
    if entry.get("frozen_sam"):
        corrected.append(("SAM", "empty mask", "s4", entry["frozen_sam"]))
    series = [
        charts.Series(f"{name}, {start}", [(k, v) for k, v in enumerate(result["dice"]) if v is not None], style)
        for name, start, style, result in corrected
    ]
    series = [one for one in series if one.values]
    if not series:
        return None
    title = f"Interactive correction ({entry['prompts']})"
    targets = list(entry["net"]["noc"])
    rows = [
        (
            Cell(name),
            Cell(start),
            *(
                Cell(number(mean), interval(bounds))
                for mean, bounds in zip(result["dice"], result["intervals"], strict=True)
            ),
            *(
                Cell(number(noc["mean"], 2), f"{_percent(noc['unreached'])} not reached")
                for noc in (result["noc"][target] for target in targets)
            ),
        )
        for name, start, _, result in corrected
    ]
    header = ("Net", "Start", *map(str, range(len(rows[0]) - 2 - len(targets))), *(f"NoC {t}" for t in targets))
    chart = charts.lines(series, title=title, x="native Dice by number of clicks", unit=True)
    return Clicks(title, chart, Table(title, header, 2, tuple(rows)))


def _calibration_text(entry: dict[str, Any]) -> str:
    found = {"estimated IoU": entry.get("estimated_calibration"), "IoU predicted by SAM": entry.get("calibration")}
    errors = [
        f"Mean absolute error of the {name}: {number(one.get('error'))} (bias {number(one.get('bias'))}, correlation "
        f"{number(one.get('correlation'))})."
        for name, one in found.items()
        if one
    ]
    if not errors:
        return ""
    return (
        f"{' '.join(errors)} On the diagonal, estimate and true IoU are equal; the area of a dot shows the number of "
        "images. Lines: images with the lowest estimates are dropped first, those without a lesion before all others; "
        "ideal: those with the lowest Dice."
    )


def _percent(fraction: Any) -> str:
    return DASH if number(fraction) == DASH else f"{100 * fraction:.1f} %"
