"""An evaluation's summary as a text, and read again from its file; knows no models and computes nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from promise.runtime.errors import MissingFileError, UserError
from promise.runtime.text_table import text_table

BINARY_COLUMNS = {
    "dice": "Dice",
    "iou": "IoU",
    "mae": "MAE",
    "precision": "Prec",
    "recall": "Recall",
    "s_alpha": "S-alpha",
    "e_phi": "E-phi",
    "f_beta": "F-beta",
    "weighted_f": "wF",
}
SOFT_COLUMNS = {
    "dice_mean": "mDice",
    "dice_max": "maxDice",
    "iou_mean": "mIoU",
    "iou_max": "maxIoU",
    "mae": "MAE",
    "s_alpha": "S-alpha",
    "e_mean": "mE",
    "e_max": "maxE",
    "f_mean": "mF",
    "f_max": "maxF",
    "weighted_f": "wF",
}
FEW = 20  # images; a bootstrap interval over fewer covers less than it says
CERTAINTY = (
    "Dice ± draws [95 %]",
    "IoU ± draws [95 %]",
    "pooled",
    "Dice < 0.1",
    "Dice small / medium / large",
    "IoU est. error",
)


def results_text(summaries: Sequence[Mapping[str, Any]]) -> str:
    """One block a data set with a row for each result and protocol; every row says where its prompts came from."""
    blocks = []
    names = list(dict.fromkeys(name for s in summaries for name in s["datasets"]))
    for name in names:
        holding = [s for s in summaries if name in s["datasets"]]
        first = holding[-1]["datasets"][name]
        blocks.append(f"Data set {name}: {first['images']} images, {first['split']} rows")
        binary = [
            [
                _title(s),
                s["prompts"],
                protocol,
                *_cells(s["datasets"][name]["means"][protocol], BINARY_COLUMNS),
            ]
            for s in holding
            for protocol in ("reference", "native")
        ]
        soft = [
            [_title(s), s["prompts"], "soft", *_cells(s["datasets"][name]["means"]["soft"], SOFT_COLUMNS)]
            for s in holding
        ]
        blocks.append(text_table(["net", "prompts", "protocol", *BINARY_COLUMNS.values()], binary))
        blocks.append(text_table(["net", "prompts", "protocol", *SOFT_COLUMNS.values()], soft))
        sure = [["native", _title(s), s["prompts"], *_certainty(s["datasets"][name])] for s in holding]
        blocks.append(text_table(["protocol", "net", "prompts", *CERTAINTY], sure))
    last = summaries[-1]
    if any(table["images"] < FEW and "intervals" in table for s in summaries for table in s["datasets"].values()):
        blocks.append(f"Intervals over fewer than {FEW} images are rough, and as a rule too narrow.")
    blocks.append(
        f"reference: 256 px, {last['postprocess']['reference']}, truth grown as the original does; native: the mask's "
        f"own size, {last['postprocess']['native']}; soft: probability map, min-max normalised, over 256 thresholds."
    )
    if any(table.get("empty_truths") for summary in summaries for table in summary["datasets"].values()):
        blocks.append(f"Empty masks ({last['empty_masks']}): {last['empty_masks_rule']} (native and soft).")
    blocks += [words for words in (_sources(s) for s in summaries) if words]
    if "statement" in last:
        blocks.append(last["statement"])
    return "\n\n".join(blocks)


def _title(summary: Mapping[str, Any]) -> str:
    untrained = " (untrained)" if not summary["trained"] and summary["net"] != "SAM" else ""
    box = {"gt-box": " box", "gt": " points and box" * bool(summary.get("prompt_box"))}
    return f"{summary['net']}{box.get(summary['prompt_source'], '')}{untrained}"


def _sources(summary: Mapping[str, Any]) -> str:
    """Where prompts and postprocessing came from, where that is not plain from the table."""
    words = []
    if "prompt_file" in summary:
        file = summary["prompt_file"]
        words.append(f"prompts from {file['path']}, written as {file['source']}.")
    if summary.get("postprocess_source") == "checkpoint":
        words.append(f"native postprocessing {summary['postprocess']['native']}, chosen on validation rows.")
    return f"{_title(summary)}: {' '.join(words)}" if words else ""


def _certainty(table: Mapping[str, Any]) -> list[str]:
    """Means with their intervals and the deviation between draws, misses, Dice by size; ``-`` in older results."""
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
        _number(table["calibration"]["error"]),
    ]


def _number(value: float | None, digits: int = 4) -> str:
    return "nan" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _cells(means: Mapping[str, float | None], columns: Mapping[str, str]) -> list[str]:
    return [_number(means[name]) for name in columns]


def read_summary(path: Path) -> dict[str, Any]:
    """An earlier ``summary.json``.

    Raises:
        MissingFileError: no such file.
        UserError: something else.
    """
    if not path.is_file():
        raise MissingFileError(f"no results at {path}. Is the path right?")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        found["datasets"], found["net"], found["prompts"], found["postprocess"], found["trained"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no summary.json of promise-eval.") from error
    return dict(found)


def tuning_text(ranked: Sequence[tuple[str, float]], *, images: int, ckpt: Path, shown: int = 8) -> str:
    """The best candidates of a search, the winner first, and the plain cut beside them.

    Args:
        ranked: postprocessing → mean Dice, the whole grid, the winner first.
        images: how many it was tried on.
        ckpt: where the winner is stored.
        shown: candidates in the table.
    """
    rows = [[name, f"{dice:.4f}"] for name, dice in ranked[:shown]]
    plain = next(f"{dice:.4f}" for name, dice in ranked if name == "none")
    if "none" not in {name for name, _ in ranked[:shown]}:
        rows.append(["none", plain])
    return (
        f"{len(ranked)} candidates on {images} val images, mean native Dice:\n\n"
        f"{text_table(['postprocess', 'Dice'], rows)}\n\n"
        f"{ranked[0][0]} is stored in {ckpt}; promise-eval uses it in the native protocol unless --postprocess says "
        "otherwise."
    )
