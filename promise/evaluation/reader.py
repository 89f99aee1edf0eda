"""A finished evaluation, read again from its folder: summary and one line an image; knows no models, no pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from promise.evaluation.metrics import METRICS, Metric
from promise.evaluation.scoring import PROTOCOLS
from promise.evaluation.summary import read_summary
from promise.runtime.errors import MissingFileError, UserError

TEXTS = {"dataset": str, "name": str, "prompts": str, "size_class": str}  # columns that hold no numbers
KEYS = ["dataset", "name"]  # an image's


@dataclass(frozen=True)
class Evaluation:
    """What ``promise-eval`` left in a folder."""

    folder: Path
    summary: dict[str, Any]
    rows: pd.DataFrame  # per_image.csv: one line an image and draw
    mark: str = ""  # tells it from another of the same net and prompts

    @property
    def title(self) -> str:
        """Net and prompts in a few words."""
        summary = self.summary
        untrained = ", untrained" if not summary["trained"] and summary["net"] != "SAM" else ""
        box = " (box)" if summary.get("prompt_source") == "gt-box" else ""
        mark = f" ({self.mark})" if self.mark else ""
        return f"{summary['net']}{untrained}, {summary['prompts']} prompts{box}{mark}"

    @property
    def metrics(self) -> list[str]:
        """The columns that hold scores, such as ``native_dice``."""
        return [name for name in map(str, self.rows) if metric_of(name) is not None]

    def seen(self, dataset: str) -> dict[str, int]:
        """How many images of a data set served training, selection or the postprocessing that is used; no zeros."""
        counts = self.summary["datasets"][dataset].get("seen") or {}
        tuned = self.summary.get("postprocess_source") == "checkpoint"
        return {split: n for split, n in counts.items() if n and (split != "tune" or tuned)}

    def images(self) -> pd.DataFrame:
        """One line an image, in the file's order, indexed by data set and name; numbers are means over the draws."""
        groups = self.rows.groupby(KEYS, sort=False)
        numbers = groups.mean(numeric_only=True)
        if "size_class" in self.rows:
            numbers["size_class"] = groups["size_class"].first()
        return numbers


def metric_of(column: str) -> Metric | None:
    """What a column of per_image.csv means; ``None`` for one that holds no score."""
    protocol, _, name = column.partition("_")
    return METRICS.get(f"soft_{name}" if protocol == "soft" else name) if protocol in PROTOCOLS else None


def read_evaluation(path: Path) -> Evaluation:
    """Read an evaluation from its folder, from a run's folder with ``eval`` in it, or from its ``summary.json``.

    Raises:
        MissingFileError: no results there.
        UserError: files that are not those of an evaluation.
    """
    folder = _find_folder(path)
    summary = read_summary(folder / "summary.json")
    faults = list(_faults(summary))
    if faults:
        raise UserError(f"{folder / 'summary.json'} is not whole: {'; '.join(faults)}. Evaluate again.")
    rows = _read_rows(folder / "per_image.csv")
    absent = [name for name in summary["datasets"] if name not in set(rows["dataset"])]
    if absent:
        raise UserError(
            f"{folder}: summary.json tells of {', '.join(absent)}, but per_image.csv has no line of it. Are the two "
            "files of one evaluation?"
        )
    return Evaluation(folder, summary, rows)


def _find_folder(path: Path) -> Path:
    if path.name == "summary.json":
        return path.parent
    if not path.is_dir():
        raise MissingFileError(f"no results at {path}. Give the folder that promise-eval wrote, or its summary.json.")
    for folder in (path, path / "eval"):
        if (folder / "summary.json").is_file():
            return folder
    inside = [found.parent.name for found in sorted(path.glob("*/summary.json"))]
    hint = f" Did you mean one of {', '.join(str(path / name) for name in inside)}?" if inside else ""
    raise MissingFileError(f"neither {path} nor {path / 'eval'} holds a summary.json of promise-eval.{hint}")


def find_evaluations(run: Path) -> list[Path]:
    """The folders with results in a run's folder, and it itself where it holds results; ``eval`` comes first."""
    if (run / "summary.json").is_file():
        return [run]
    return sorted((found.parent for found in run.glob("*/summary.json")), key=lambda f: (f.name != "eval", f.name))


def _faults(summary: dict[str, Any]) -> Iterator[str]:
    datasets = summary["datasets"]
    if not isinstance(datasets, dict) or not datasets:
        yield "it holds no data set"
        return
    for name, table in datasets.items():
        means = table.get("means") if isinstance(table, dict) else None
        if not isinstance(means, dict) or not all(isinstance(means.get(p), dict) for p in PROTOCOLS):
            yield f"data set {name} has no means of {', '.join(PROTOCOLS)}"


def _read_rows(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise MissingFileError(f"{path} is not there; it holds the scores image by image. Evaluate again.")
    try:
        rows = pd.read_csv(path, dtype=TEXTS, keep_default_na=False, na_values=["", "nan"], encoding="utf-8")
    except (ValueError, UnicodeDecodeError) as error:  # pandas' own errors are ValueErrors
        raise UserError(f"{path} cannot be read ({error}). Evaluate again.") from error
    absent = [name for name in (*KEYS, "native_dice") if name not in rows]
    if absent:
        raise UserError(f"{path} lacks the column {', '.join(absent)}. Is it the per_image.csv of promise-eval?")
    if rows.empty:
        raise UserError(f"{path} has no line of scores. Evaluate again.")
    words = [str(name) for name in rows if name not in TEXTS and not pd.api.types.is_numeric_dtype(rows[name])]
    if words:
        raise UserError(f"{path}: the column {', '.join(words)} holds something other than numbers. Evaluate again.")
    # An image may be called "nan" or have no name that pandas would keep: it stays a text.
    texts = [name for name in TEXTS if name in rows]
    return rows.assign(**{name: rows[name].fillna("nan" if name == "name" else "") for name in texts})
