"""An evaluation's summary as a text, and read again from its file; knows no models and computes nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from promise.errors import MissingFileError, UserError
from promise.report import text_table

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


def results_text(summaries: Sequence[Mapping[str, Any]]) -> str:
    """One block a data set with a row for each result and protocol; every row says where its prompts came from."""
    blocks = []
    names = list(dict.fromkeys(name for s in summaries for name in s["datasets"]))
    for name in names:
        holding = [s for s in summaries if name in s["datasets"]]
        first = holding[-1]["datasets"][name]
        blocks.append(f"{name}: {first['images']} images, split {first['split']}")
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
    last = summaries[-1]
    blocks.append(
        f"reference: 256 px, {last['postprocess']['reference']}, truth grown as the original does; native: the mask's "
        f"own size, {last['postprocess']['native']}; soft: probability map, min-max normalised, over 256 thresholds."
    )
    if any(table.get("empty_truths") for summary in summaries for table in summary["datasets"].values()):
        blocks.append(f"Empty masks ({last['empty_masks']}): {last['empty_masks_rule']} (native and soft).")
    return "\n\n".join(blocks)


def _title(summary: Mapping[str, Any]) -> str:
    untrained = " (untrained)" if not summary["trained"] and summary["net"] != "SAM" else ""
    box = " box" if summary["prompt_source"] == "gt-box" else ""
    return f"{summary['net']}{box}{untrained}"


def _cells(means: Mapping[str, float | None], columns: Mapping[str, str]) -> list[str]:
    values = (means[name] for name in columns)
    return ["nan" if value is None else f"{value:.4f}" for value in values]


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
