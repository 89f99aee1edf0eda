"""Charts draw values at their positions and escape names."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from promise.report import charts
from promise.report.charts import BOTTOM, LEFT, RIGHT, TOP


def parse(chart: str) -> ElementTree.Element:
    return ElementTree.fromstring(chart)


def values(chart: str, tag: str, name: str, style: str) -> list[float]:
    return [float(e.get(name, "nan")) for e in parse(chart).iter(tag) if style in e.get("class", "").split()]


def test_stacked_bars_have_the_height_of_their_counts() -> None:
    chart = charts.histogram([("large", "s1", [2, 0]), ("small", "s3", [2, 4])], title="t", x="Dice")
    unit = (BOTTOM - TOP) / 4
    assert values(chart, "rect", "height", "s1")[0] == pytest.approx(2 * unit, abs=0.1)
    tops = [y for y in values(chart, "rect", "y", "s3") if y >= TOP - 0.1]
    assert tops == pytest.approx([TOP, TOP], abs=0.1)
    assert re.findall(r"<title>(.*?)</title>", chart)[0] == "0.00 to 0.50: 2 large"


def test_a_box_spans_the_quartiles() -> None:
    chart = charts.boxes([("small", "s3", [i / 100 for i in range(101)])], title="t", x="Dice")
    left, width = values(chart, "rect", "x", "s3")[0], values(chart, "rect", "width", "s3")[0]
    span = RIGHT - 82
    assert (left, width) == pytest.approx((82 + span / 4, span / 2), abs=0.1)
    assert values(chart, "line", "x1", "whisker")[0] == pytest.approx(82 + 0.05 * span, abs=0.1)
    assert values(chart, "line", "x1", "median")[0] == pytest.approx(82 + span / 2, abs=0.1)
    assert values(charts.boxes([("small", "s3", [])], title="t", x="x"), "rect", "x", "s3") == []


def test_a_correct_prediction_lies_on_the_diagonal() -> None:
    chart = charts.calibration([(0.5, 0.5, 9), (1.0, 0.0, 1)], title="t")
    x, y = values(chart, "circle", "cx", "dot"), values(chart, "circle", "cy", "dot")
    guide = next(e for e in parse(chart).iter("line") if e.get("class") == "guide")
    ends = [float(guide.get(name, "nan")) for name in ("x1", "x2", "y1", "y2")]
    assert (x[0], y[0]) == pytest.approx(((ends[0] + ends[1]) / 2, (ends[2] + ends[3]) / 2), abs=0.1)
    assert (x[1], y[1]) == pytest.approx((ends[1], ends[2]), abs=0.1)
    radius = values(chart, "circle", "r", "dot")
    assert radius[0] > radius[1]


@pytest.mark.parametrize("points", [[(1.0, 0.5)], [(1.0, 0.0), (2.0, 0.0)], [(1.0, 1.2), (9.0, 0.3)], [(1, -0.1)]])
def test_lines_stay_in_their_frame(points: list[tuple[float, float]]) -> None:
    chart = charts.lines([charts.Series("loss", points, "s1")], title="t", x="epoch", mark=1)
    line = next(parse(chart).iter("polyline")).get("points", "")
    for point in line.split():
        x, y = map(float, point.split(","))
        assert LEFT <= x <= RIGHT
        assert TOP <= y <= BOTTOM


def test_an_interval_is_drawn_around_its_mean() -> None:
    chart = charts.intervals([("net", "0.5", 0.5, (0.25, 1.0)), ("other", "0.1", 0.1, None)], title="t", x="Dice")
    assert values(chart, "line", "x1", "s1") + values(chart, "line", "x2", "s1") == pytest.approx([94, 352], abs=0.1)
    assert values(chart, "circle", "cx", "s1") == pytest.approx([180, 8 + 34.4], abs=0.1)


def test_names_are_escaped() -> None:
    evil = "<script>&\"'"
    for chart in (
        charts.histogram([(evil, "s1", [1])], title=evil, x=evil),
        charts.boxes([(evil, "s1", [0.5])], title=evil, x=evil),
        charts.lines([charts.Series(evil, [(1, 1)], "s1")], title=evil, x=evil),
        charts.intervals([(evil, evil, 0.5, None)], title=evil, x=evil),
    ):
        root = parse(chart)
        assert root.get("aria-label") == evil
        assert evil in [e.text for e in root.iter("text")]
        assert "script" not in {e.tag for e in root.iter()}
