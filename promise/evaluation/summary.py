"""Format the summary of an evaluation as text; read summary.json."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from promise.evaluation.config import EMPTY_RULES
from promise.evaluation.metrics import KINDS, printed_columns, protocols_of
from promise.runtime.errors import MissingFileError, UserError
from promise.runtime.reading import parse_json
from promise.runtime.text_table import text_table

FEW = 20  # images; a bootstrap interval over fewer covers the mean less often than 95 %
MISSED = "Dice < 0.1"
CERTAINTY = (
    "Dice ± draws [95 %]",
    "IoU ± draws [95 %]",
    "pooled",
    MISSED,
    "Dice small / medium / large",
    "SAM's IoU error (r)",
    "est. IoU error (r)",
)


def results_text(summaries: Sequence[Mapping[str, Any]]) -> str:
    """The results as text: one block per data set, with one row per evaluation and protocol.

    Args:
        summaries: contents of summary.json files, the newest last.
    """
    names = dict.fromkeys(name for s in summaries for name in s["datasets"])
    return "\n\n".join([*(block for name in names for block in _blocks(summaries, name)), *_legend(summaries)])


def _blocks(summaries: Sequence[Mapping[str, Any]], dataset: str) -> Iterator[str]:
    """The heading and the tables of a data set."""
    evaluated = [(s, s["datasets"][dataset]) for s in summaries if dataset in s["datasets"]]
    table = evaluated[-1][1]
    yield f"Data set {dataset}: {table['images']} images, {table['split']} rows"
    for kind in KINDS:
        columns = printed_columns(kind)
        rows = [
            [_title(s), s["prompts"], protocol, *_cells(table["means"][protocol], columns)]
            for s, table in evaluated
            for protocol in protocols_of(kind)
            if protocol in table["means"]
        ]
        if rows:  # earlier versions did not score prompts
            yield text_table(["net", "prompts", "protocol", *columns.values()], rows)
    rows = [["native", _title(s), s["prompts"], *_certainty(table)] for s, table in evaluated]
    yield text_table(["protocol", "net", "prompts", *CERTAINTY], rows)
    yield from _clicks(evaluated)


def _clicks(evaluated: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> Iterator[str]:
    """The table of Dice after each click, where an evaluation corrected its masks."""
    corrected = [(s, table["clicks"]) for s, table in evaluated if table.get("clicks")]
    if not corrected:
        return
    most = max(entry["clicks"] for _, entry in corrected)
    targets = list(corrected[-1][1]["net"]["noc"])
    rows = []
    for s, entry in corrected:
        for title, start, result in (
            (_title(s), entry["start"], entry["net"]),
            ("SAM (frozen)", "empty mask", entry["frozen_sam"]),
        ):
            if result is not None:
                dice = [_number(value) for value in result["dice"]]
                counts = [_count(result["noc"].get(target)) for target in targets]
                rows.append([title, start, entry["prompts"], *dice, *["-"] * (most + 1 - len(dice)), *counts])
    numbers = [f"{k} click{'s' * (k != 1)}" for k in range(most + 1)]
    yield text_table(["net", "start", "prompts", *numbers, *(f"NoC {target}" for target in targets)], rows)


def _count(noc: Mapping[str, float | None] | None) -> str:
    """Mean number of clicks and the fraction of images that do not reach the Dice."""
    if noc is None or noc["mean"] is None:
        return "-"
    return f"{_number(noc['mean'], 2)} ({100 * (noc['unreached'] or 0.0):.0f} % not reached)"


def brief_text(summaries: Sequence[Mapping[str, Any]]) -> str:
    """One row for each data set of each evaluation: the native scores that a first look needs."""
    rows = []
    for s in summaries:
        for name, table in s["datasets"].items():
            means, certainty = table["means"]["native"], _certainty(table)
            dice = certainty[0] if "intervals" in table else _number(means["dice"])
            overlap = _cells(means, {"iou": "IoU", "nsd": "NSD"})
            misses = certainty[CERTAINTY.index(MISSED)]
            rows.append([name, str(table["images"]), _title(s), s["prompts"], dice, *overlap, misses])
    titles = ["data set", "images", "net", "prompts", "Dice [95 %]", "IoU", "NSD", MISSED]
    return text_table(titles, rows)


def _legend(summaries: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The explanations below the tables."""
    last = summaries[-1]
    tables = [table for s in summaries for table in s["datasets"].values()]
    if any(table["images"] < FEW and "intervals" in table for table in tables):
        yield f"Intervals over fewer than {FEW} images are rough and usually too narrow."
    yield (
        f"reference: 256 pixels, postprocessing {last['postprocess']['reference']}, ground truth dilated as in the "
        f"reference implementation; native: size of the ground truth, postprocessing {last['postprocess']['native']}; "
        "soft: probability map, min–max normalised, over 256 thresholds; prompts: fractions of the positive points "
        "inside and of the negative points outside the ground truth, IoU of the boxes."
    )
    if any(table.get("empty_truths") for table in tables):
        rule = EMPTY_RULES.get(last["empty_masks"], last["empty_masks_rule"])
        yield f"Empty masks ({last['empty_masks']}): {rule} (native and soft)."
        if last["empty_masks"] == "skip" and any(
            t.get("empty_truths") == t["images"] for t in last["datasets"].values()
        ):
            yield "Where all ground truths are empty, nothing is scored (-): use --empty-masks one or zero."
    yield from filter(None, map(_sources, summaries))
    yield from filter(None, map(_lesions, summaries))
    if "statement" in last:
        yield last["statement"]
    yield from dict.fromkeys(s["clicks"]["statement"] for s in summaries if s.get("clicks"))


def _title(summary: Mapping[str, Any]) -> str:
    untrained = " (untrained)" if not summary["trained"] and summary["net"] != "SAM" else ""
    box = {"gt-box": " box", "gt": " points and box" * bool(summary.get("prompt_box"))}
    return f"{summary['net']}{box.get(summary['prompt_source'], '')}{untrained}"


def _sources(summary: Mapping[str, Any]) -> str:
    """The sources of prompts and postprocessing that the table does not show."""
    parts = []
    if "prompt_file" in summary:
        file = summary["prompt_file"]
        parts.append(f"prompts from {file['path']} (source: {file['source']}).")
    if summary.get("postprocess_source") == "checkpoint":
        parts.append(f"native postprocessing {summary['postprocess']['native']}, chosen on val rows.")
    return f"{_title(summary)}: {' '.join(parts)}" if parts else ""


def _lesions(summary: Mapping[str, Any]) -> str:
    """The settings of a net that finds lesions."""
    found = summary.get("lesions")
    if found is None:
        return ""
    count = found["max_lesions"]
    limit = f"at most {count} lesions per image" if count != 1 else "at most 1 lesion per image"
    mask_prompt = " and mask prompt" if found["mask_prompt"] else ""
    output = {"single": "SAM's single mask", "multimask": "the first of SAM's three masks"}[found["output"]]
    return (
        f"{_title(summary)}: {limit} (threshold {found['threshold']:g}, scores from {found['min_score']:g} and from "
        f"{found['min_share']:g} of the best, mean probability from {found.get('min_probability', 0):g}), prompts "
        f"{found['prompts']}{mask_prompt}, {output}, weight of the map {found['fuse']:g}"
        f"{', averaged over mirror images' if found.get('flips') else ''}."
    )


def _certainty(table: Mapping[str, Any]) -> list[str]:
    """The cells of :data:`CERTAINTY`; ``-`` for results of versions that did not record them."""
    if "intervals" not in table:
        return ["-"] * len(CERTAINTY)
    between = table["draws"]["deviation"]
    cells = []
    for name in ("dice", "iou"):
        low, high = table["intervals"]["native"][name]
        spread = f" ± {_number(between['native'][name])}" if between else ""
        cells.append(f"{_number(table['means']['native'][name])}{spread} [{_number(low)}, {_number(high)}]")
    misses, sizes = table["misses"], table["by_size"].values()
    return [
        *cells,
        _number(table["pooled"]["dice"]),
        f"{misses['images']} of {table['images']}",
        " / ".join(f"{_number(size['dice'], 3) if size['images'] else '-'} ({size['images']})" for size in sizes),
        _error(table["calibration"]),
        _error(table.get("estimated_calibration")),
    ]


def _error(calibration: Mapping[str, float | None] | None) -> str:
    """Mean error and correlation of an estimated IoU."""
    if calibration is None:
        return "-"
    return f"{_number(calibration['error'])} ({_number(calibration.get('correlation'), 2)})"


def _number(value: float | None, digits: int = 4) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _cells(means: Mapping[str, float | None], columns: Mapping[str, str]) -> list[str]:
    values = [means.get(name) for name in columns]
    return [_number(value) for value in values]


def read_summary(path: Path) -> dict[str, Any]:
    """Read a ``summary.json``.

    Raises:
        MissingFileError: the file does not exist.
        UserError: the file is not a summary of ``promise-eval``.
    """
    if not path.is_file():
        raise MissingFileError(f"no results at {path}. Is the path correct?", code="missing-results")
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
        found["datasets"], found["net"], found["prompts"], found["postprocess"], found["trained"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a summary.json of promise-eval: it is damaged or lacks required keys.",
            code="invalid-summary",
        ) from error
    return dict(found)


def tuning_text(ranked: Sequence[tuple[str, float]], *, images: int, ckpt: Path, shown: int = 8) -> str:
    """The best candidates of a search, the winner first, and the Dice without postprocessing.

    Args:
        ranked: (postprocessing, mean Dice) of the whole grid, the winner first.
        images: number of images that the candidates were scored on.
        ckpt: checkpoint that stores the winner.
        shown: number of candidates in the table.
    """
    rows = [[name, f"{dice:.4f}"] for name, dice in ranked[:shown]]
    plain = next(f"{dice:.4f}" for name, dice in ranked if name == "none")
    if "none" not in {name for name, _ in ranked[:shown]}:
        rows.append(["none", plain])
    return (
        f"{len(ranked)} candidates on {images} val images, mean native Dice:\n\n"
        f"{text_table(['postprocess', 'Dice'], rows)}\n\n"
        f"{ranked[0][0]} is stored in {ckpt}. promise-eval uses it in the native protocol by default."
    )
