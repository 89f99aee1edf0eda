"""Read the results of an evaluation: summary.json and per_image.csv."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from promise.data.leaks import find_seen
from promise.evaluation.metrics import PROTOCOLS, Metric, metrics_in
from promise.evaluation.summary import read_summary
from promise.runtime.errors import MissingFileError, UserError
from promise.runtime.notices import Notice, from_json, from_text, unique

TEXTS = {"dataset": str, "name": str, "prompts": str, "size_class": str}  # columns without numbers
KEYS = ["dataset", "name"]  # columns that identify an image


@dataclass(frozen=True)
class Evaluation:
    """The results of ``promise-eval`` in a folder."""

    folder: Path
    summary: dict[str, Any]
    rows: pd.DataFrame  # per_image.csv: one line per image and draw
    mark: str = ""  # distinguishes evaluations of the same net and prompts in titles

    @property
    def title(self) -> str:
        """Net and prompts, as shown in tables and charts."""
        summary = self.summary
        untrained = ", untrained" if not summary["trained"] and summary["net"] != "SAM" else ""
        box = " (box)" if summary.get("prompt_source") == "gt-box" else ""
        mark = f" ({self.mark})" if self.mark else ""
        return f"{summary['net']}{untrained}, {summary['prompts']} prompts{box}{mark}"

    @property
    def metrics(self) -> list[str]:
        """The columns of scores, such as ``native_dice``."""
        return [name for name in map(str, self.rows) if metric_of(name) is not None]

    def seen(self, dataset: str) -> dict[str, int]:
        """Split → number of scored images that training, selection or the postprocessing in use was based on.

        Splits without such images are omitted.
        """
        counts = self.summary["datasets"][dataset].get("seen") or {}
        tuned = self.summary.get("postprocess_source") == "checkpoint"
        return {split: n for split, n in counts.items() if n and (split != "tune" or tuned)}

    @property
    def notices(self) -> list[Notice]:
        """What limits the meaning of the scores; read from the texts in results of earlier versions."""
        stored = self.summary.get("notices")
        if isinstance(stored, list):
            found = [from_json(entry) for entry in stored]
        else:
            found = [from_text(str(text)) for text in self.summary.get("warnings") or []]
        for name, table in self.summary["datasets"].items():
            found += find_seen(name, self.seen(name), table.get("images"))
        return unique(found)

    def images(self) -> pd.DataFrame:
        """One line per image, in the order of the file, indexed by data set and name.

        Numbers are means over the draws.
        """
        groups = self.rows.groupby(KEYS, sort=False)
        numbers = groups.mean(numeric_only=True)
        if "size_class" in self.rows:
            numbers["size_class"] = groups["size_class"].first()
        return numbers


def metric_of(column: str) -> Metric | None:
    """The metric of a column of per_image.csv; ``None`` for a column without scores."""
    protocol, _, name = column.partition("_")
    return metrics_in(protocol).get(name) if protocol in PROTOCOLS else None


def read_evaluation(path: Path) -> Evaluation:
    """Read the results of an evaluation.

    Args:
        path: folder of the evaluation, folder of a run that contains ``eval``, or a ``summary.json``.

    Raises:
        MissingFileError: the path holds no results.
        UserError: the files are damaged or do not belong to an evaluation.
    """
    folder = _find_folder(path)
    summary = read_summary(folder / "summary.json")
    faults = list(_faults(summary))
    if faults:
        raise UserError(
            f"{folder / 'summary.json'} is incomplete: {'; '.join(faults)}. Run promise-eval again.",
            code="incomplete-summary",
        )
    rows = _read_rows(folder / "per_image.csv")
    absent = [name for name in summary["datasets"] if name not in set(rows["dataset"])]
    if absent:
        raise UserError(
            f"{folder}: per_image.csv has no line of {', '.join(absent)}, a data set of summary.json. Do both files "
            "belong to the same evaluation?",
            code="mixed-evaluations",
        )
    return Evaluation(folder, summary, rows)


def _find_folder(path: Path) -> Path:
    if path.name == "summary.json":
        return path.parent
    if not path.is_dir():
        raise MissingFileError(
            f"no results at {path}. Name a folder that promise-eval wrote, or its summary.json.",
            code="missing-results",
        )
    for folder in (path, path / "eval"):
        if (folder / "summary.json").is_file():
            return folder
    nested = [found.parent.name for found in sorted(path.glob("*/summary.json"))]
    hint = f" Did you mean one of {', '.join(str(path / name) for name in nested)}?" if nested else ""
    raise MissingFileError(
        f"neither {path} nor {path / 'eval'} contains a summary.json of promise-eval.{hint}", code="missing-results"
    )


def find_evaluations(run: Path) -> list[Path]:
    """The folders with results in the folder of a run, ``eval`` first; the folder itself if it holds results."""
    if (run / "summary.json").is_file():
        return [run]
    return sorted((found.parent for found in run.glob("*/summary.json")), key=lambda f: (f.name != "eval", f.name))


def _faults(summary: dict[str, Any]) -> Iterator[str]:
    datasets = summary["datasets"]
    required = [name for name, kind in PROTOCOLS.items() if kind != "prompts"]  # which earlier versions did not score
    if not isinstance(datasets, dict) or not datasets:
        yield "it contains no data set"
        return
    for name, table in datasets.items():
        means = table.get("means") if isinstance(table, dict) else None
        if not isinstance(means, dict) or not all(isinstance(means.get(p), dict) for p in required):
            yield f"data set {name} has no means of {', '.join(required)}"


def _read_rows(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise MissingFileError(
            f"{path}, the file with the scores of each image, does not exist. Run promise-eval again.",
            code="missing-scores",
        )
    try:
        rows = pd.read_csv(path, dtype=TEXTS, keep_default_na=False, na_values=["", "nan"], encoding="utf-8")
    except (ValueError, UnicodeDecodeError) as error:  # pandas' own errors are ValueErrors
        raise UserError(f"{path} cannot be read ({error}). Run promise-eval again.", code="invalid-scores") from error
    absent = [name for name in (*KEYS, "native_dice") if name not in rows]
    if absent:
        raise UserError(
            f"{path} lacks the column {', '.join(absent)}. Is it a per_image.csv of promise-eval?",
            code="missing-column",
        )
    if rows.empty:
        raise UserError(f"{path} contains no scores. Run promise-eval again.", code="no-scores")
    texts = [str(name) for name in rows if name not in TEXTS and not pd.api.types.is_numeric_dtype(rows[name])]
    if texts:
        raise UserError(
            f"{path}: the column {', '.join(texts)} must contain numbers only. Run promise-eval again.",
            code="invalid-scores",
        )
    # The name of an image may be "nan", which pandas reads as a missing value.
    present = [name for name in TEXTS if name in rows]
    return rows.assign(**{name: rows[name].fillna("nan" if name == "name" else "") for name in present})
