"""Tables of results for papers, as HTML (by the template), Markdown and LaTeX."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from promise.evaluation.metrics import KINDS, Kind, printed_columns, protocols_of
from promise.evaluation.reader import Evaluation

DASH = "–"  # shown for a missing number
# Shown with their interval; summary.json has all intervals.
INTERVAL_COLUMNS = ("dice", "iou", "nsd", "dice_mean", "iou_mean")
_TITLES: dict[Kind, str] = {"mask": "masks", "map": "probability maps", "prompts": "prompts"}
_LATEX = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "[": "{[}",  # after the end of a row it would start a length
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
    "±": r"$\pm$",
}
# Characters with a meaning in Markdown or in the HTML inside it.
_MARKDOWN = {**{sign: f"\\{sign}" for sign in "\\|`*_[]#"}, "<": "&lt;", ">": "&gt;", "&": "&amp;"}


@dataclass(frozen=True)
class Cell:
    """One cell of a table."""

    text: str
    note: str = ""  # in small print below the text: the 95 % interval of a number


@dataclass(frozen=True)
class Table:
    """A table with a title."""

    title: str
    header: tuple[str, ...]
    texts: int  # number of leading columns of text; the others are columns of numbers
    rows: tuple[tuple[Cell, ...], ...]

    def markdown(self) -> str:
        """The table in Markdown, below its title."""
        lines = [
            f"**{_escape(self.title, _MARKDOWN)}**",
            "",
            _pipes(self.header),
            _pipes(["---"] * self.texts + ["---:"] * (len(self.header) - self.texts), plain=True),
            *(_pipes([_joined(cell) for cell in row]) for row in self.rows),
        ]
        return "\n".join(lines) + "\n"

    def latex(self) -> str:
        """The table in LaTeX; requires the package ``booktabs``."""

        def line(cells: Sequence[str]) -> str:
            return " & ".join(_escape(cell, _LATEX) for cell in cells) + r" \\"

        lines = [
            r"\begin{table}",
            rf"\caption{{{_escape(self.title, _LATEX)}}}",
            rf"\begin{{tabular}}{{{'l' * self.texts}{'r' * (len(self.header) - self.texts)}}}",
            r"\toprule",
            line(self.header),
            r"\midrule",
            *(line([_joined(cell) for cell in row]) for row in self.rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
        return "\n".join(lines) + "\n"


def number(value: Any, digits: int = 3) -> str:
    """Format a number; a dash for ``None``, NaN and other types."""
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        return DASH
    return str(value) if isinstance(value, int) else f"{value:.{digits}f}"


def interval(bounds: Any) -> str:
    """Format an interval as ``[low, high]``; an empty string where it is missing."""
    if not isinstance(bounds, Sequence) or isinstance(bounds, str) or len(bounds) != 2 or None in bounds:
        return ""
    return f"[{number(bounds[0])}, {number(bounds[1])}]"


def result_tables(evaluations: Sequence[Evaluation], dataset: str) -> list[Table]:
    """The tables of one data set: scores of masks (reference and native protocol), maps (soft) and prompts.

    A table without rows, of results of an earlier version, is left out.
    """
    evaluated = [e for e in evaluations if dataset in e.summary["datasets"]]
    entry = evaluated[0].summary["datasets"][dataset]
    size = f"{number(entry.get('images'))} images, {entry.get('split', DASH)} rows"
    tables = [
        Table(
            f"{dataset}: {_TITLES[kind]} ({size})",
            ("Net", "Prompts", "Protocol", *printed_columns(kind).values()),
            3,
            tuple(row for e in evaluated for row in _rows(e, dataset, kind)),
        )
        for kind in KINDS
    ]
    return [table for table in tables if table.rows]


def _rows(evaluation: Evaluation, dataset: str, kind: Kind) -> Iterator[tuple[Cell, ...]]:
    summary, entry = evaluation.summary, evaluation.summary["datasets"][dataset]
    untrained = " (untrained)" if not summary["trained"] and summary["net"] != "SAM" else ""
    source = summary.get("prompt_source")
    prompts = f"{summary['prompts']} (box)" if source == "gt-box" else str(summary["prompts"])
    for protocol in (name for name in protocols_of(kind) if name in entry["means"]):
        means = entry["means"][protocol]
        intervals = (entry.get("intervals") or {}).get(protocol) or {}
        deviations = ((entry.get("draws") or {}).get("deviation") or {}).get(protocol) or {}
        yield (
            Cell(f"{summary['net']}{untrained}", evaluation.mark),
            Cell(prompts),
            Cell(protocol),
            *(
                Cell(
                    _with_deviation(means.get(name), deviations.get(name)),
                    interval(intervals.get(name)) if name in INTERVAL_COLUMNS else "",
                )
                for name in printed_columns(kind)
            ),
        )


def _with_deviation(mean: Any, deviation: Any) -> str:
    """Mean ± standard deviation between draws of prompts, if there are several."""
    return number(mean) if deviation is None else f"{number(mean)} ± {number(deviation)}"


def _joined(cell: Cell) -> str:
    return f"{cell.text} {cell.note}".rstrip()


def _pipes(cells: Sequence[str], *, plain: bool = False) -> str:
    return "| " + " | ".join(cell if plain else _escape(cell, _MARKDOWN) for cell in cells) + " |"


def _escape(text: str, escapes: Mapping[str, str]) -> str:
    return "".join(escapes.get(sign, sign) for sign in " ".join(text.split()))
