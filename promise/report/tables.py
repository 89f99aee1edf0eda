"""Results as tables in a paper's form: one structure, written as HTML (by the template), Markdown and LaTeX."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from promise.evaluation.reader import Evaluation
from promise.evaluation.summary import BINARY_COLUMNS, SOFT_COLUMNS

NOTHING = "–"  # of a number that is not there
BOUNDED = ("dice", "iou", "dice_mean", "iou_mean")  # columns that show their interval; summary.json holds all
_LATEX = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "[": "{[}",  # after a row's end it would be a length
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
    "±": r"$\pm$",
}
# What Markdown or the HTML inside it would take for its own.
_MARKDOWN = {**{sign: f"\\{sign}" for sign in "\\|`*_[]#"}, "<": "&lt;", ">": "&gt;", "&": "&amp;"}


@dataclass(frozen=True)
class Cell:
    """One number, and what is known of it."""

    text: str
    note: str = ""  # its 95 % interval, small below it


@dataclass(frozen=True)
class Table:
    """One table of a data set."""

    title: str
    header: tuple[str, ...]
    texts: int  # so many columns hold words; the others hold numbers
    rows: tuple[tuple[Cell, ...], ...]

    def markdown(self) -> str:
        """A pipe table under its title."""
        lines = [
            f"**{_escape(self.title, _MARKDOWN)}**",
            "",
            _pipes(self.header),
            _pipes(["---"] * self.texts + ["---:"] * (len(self.header) - self.texts), plain=True),
            *(_pipes([_joined(cell) for cell in row]) for row in self.rows),
        ]
        return "\n".join(lines) + "\n"

    def latex(self) -> str:
        """A ``table`` for the ``booktabs`` package."""

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
    """A number as it is printed; a dash where there is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        return NOTHING
    return str(value) if isinstance(value, int) else f"{value:.{digits}f}"


def interval(bounds: Any) -> str:
    """``[low, high]`` of a 95 % interval, or nothing."""
    if not isinstance(bounds, Sequence) or isinstance(bounds, str) or len(bounds) != 2 or None in bounds:
        return ""
    return f"[{number(bounds[0])}, {number(bounds[1])}]"


def result_tables(evaluations: Sequence[Evaluation], dataset: str) -> list[Table]:
    """The tables of one data set: masks under the reference and native protocols, maps under the soft one."""
    holding = [e for e in evaluations if dataset in e.summary["datasets"]]
    parts = (
        ("masks", ("reference", "native"), BINARY_COLUMNS),
        ("probability maps", ("soft",), SOFT_COLUMNS),
    )
    told = holding[0].summary["datasets"][dataset]
    size = f"{number(told.get('images'))} images, {told.get('split', NOTHING)} rows"
    return [
        Table(
            f"{dataset}: {what} ({size})",
            ("Net", "Prompts", "Protocol", *columns.values()),
            3,
            tuple(row for e in holding for row in _rows(e, dataset, protocols, columns)),
        )
        for what, protocols, columns in parts
    ]


def _rows(
    evaluation: Evaluation, dataset: str, protocols: Sequence[str], columns: Mapping[str, str]
) -> Iterator[tuple[Cell, ...]]:
    summary, told = evaluation.summary, evaluation.summary["datasets"][dataset]
    untrained = " (untrained)" if not summary["trained"] and summary["net"] != "SAM" else ""
    source = summary.get("prompt_source")
    prompts = f"{summary['prompts']} (box)" if source == "gt-box" else str(summary["prompts"])
    for protocol in protocols:
        means = told["means"][protocol]
        intervals = (told.get("intervals") or {}).get(protocol) or {}
        deviations = ((told.get("draws") or {}).get("deviation") or {}).get(protocol) or {}
        yield (
            Cell(f"{summary['net']}{untrained}", evaluation.mark),
            Cell(prompts),
            Cell(protocol),
            *(
                Cell(
                    _with_deviation(means.get(name), deviations.get(name)),
                    interval(intervals.get(name)) if name in BOUNDED else "",
                )
                for name in columns
            ),
        )


def _with_deviation(mean: Any, deviation: Any) -> str:
    """Mean ± standard deviation between prompt draws, where there were several."""
    return number(mean) if deviation is None else f"{number(mean)} ± {number(deviation)}"


def _joined(cell: Cell) -> str:
    return f"{cell.text} {cell.note}".rstrip()


def _pipes(cells: Sequence[str], *, plain: bool = False) -> str:
    return "| " + " | ".join(cell if plain else _escape(cell, _MARKDOWN) for cell in cells) + " |"


def _escape(text: str, signs: Mapping[str, str]) -> str:
    return "".join(signs.get(sign, sign) for sign in " ".join(text.split()))
