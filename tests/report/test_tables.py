"""Tables contain the numbers of the summary, escaped for Markdown and LaTeX."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from promise.evaluation.reader import read_evaluation
from promise.report.tables import Cell, Table, interval, number, result_tables

TABLE = Table(
    "50 % of <b> & a_b",
    ("Net", "Dice"),
    1,
    ((Cell("a|b_c"), Cell("0.500", "[0.4, 0.6]")), (Cell("[x] \\ ~^"), Cell("0.100 ± 0.010"))),
)


def test_markdown() -> None:
    assert TABLE.markdown().splitlines() == [
        r"**50 % of &lt;b&gt; &amp; a\_b**",
        "",
        "| Net | Dice |",
        "| --- | ---: |",
        r"| a\|b\_c | 0.500 \[0.4, 0.6\] |",
        r"| \[x\] \\ ~^ | 0.100 ± 0.010 |",
    ]


def test_latex() -> None:
    assert TABLE.latex().splitlines() == [
        r"\begin{table}",
        r"\caption{50 \% of <b> \& a\_b}",
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"Net & Dice \\",
        r"\midrule",
        r"a|b\_c & 0.500 {[}0.4, 0.6] \\",
        r"{[}x] \textbackslash{} \textasciitilde{}\textasciicircum{} & 0.100 $\pm$ 0.010 \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]


def test_a_data_set_has_a_row_for_each_evaluation_and_protocol(
    write_evaluation: Callable[..., Path], tmp_path: Path
) -> None:
    a = read_evaluation(write_evaluation(tmp_path / "a", images={"kvasir": 8, "etis": 4}))
    b = read_evaluation(
        write_evaluation(tmp_path / "b", images={"kvasir": 8}, net="SAM", prompts="oracle", prompt_source="gt-box")
    )
    masks, maps = result_tables([a, b], "kvasir")
    assert masks.title == "kvasir: masks (8 images, test rows)"
    assert [[cell.text for cell in row[:3]] for row in masks.rows] == [
        ["APM_IPS_resnet", "auto", "reference"],
        ["APM_IPS_resnet", "auto", "native"],
        ["SAM", "oracle (box)", "reference"],
        ["SAM", "oracle (box)", "native"],
    ]
    means = b.summary["datasets"]["kvasir"]["means"]["native"]
    columns = dict(zip(masks.header, masks.rows[3], strict=True))
    assert (columns["Dice"].text, columns["MAE"].text) == (f"{means['dice']:.3f}", f"{means['mae']:.3f}")
    assert [row[0].text for row in maps.rows] == ["APM_IPS_resnet", "SAM"]
    assert all(len(row) == len(table.header) for table in (masks, maps) for row in table.rows)
    assert len(result_tables([a, b], "etis")[0].rows) == 2


@pytest.mark.parametrize(
    ("value", "text"), [(0.12345, "0.123"), (7, "7"), (None, "–"), (math.nan, "–"), (True, "–"), ("0.5", "–")]
)
def test_numbers(value: object, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("bounds", "text"), [([0.1, 0.25], "[0.100, 0.250]"), (None, ""), ([0.1, None], ""), ([1], ""), ("ab", "")]
)
def test_intervals(bounds: object, text: str) -> None:
    assert interval(bounds) == text
