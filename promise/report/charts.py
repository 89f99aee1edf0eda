"""Charts as inline SVG.

Charts are 360 × 220 units, so that their text is readable on a phone. Colours are classes of the style sheet.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 40, 350, 28, 184  # the frame
ONE_LINE = 30  # characters; a longer name leaves no room for a number on the same line


@dataclass(frozen=True)
class Axis:
    """Maps values to units along one axis."""

    low: float
    high: float
    start: float
    stop: float

    def at(self, value: float) -> float:
        """The position of a value."""
        span = self.high - self.low or 1.0
        return self.start + (value - self.low) / span * (self.stop - self.start)


UNIT_X, UNIT_Y = Axis(0, 1, LEFT, RIGHT), Axis(0, 1, BOTTOM, TOP)


@dataclass(frozen=True)
class Series:
    """One line of a chart."""

    name: str
    values: Sequence[tuple[float, float]]  # (x, y) of a line
    style: str  # class of the style sheet: s1, s2, s3


def histogram(counts: Sequence[tuple[str, str, Sequence[int]]], *, title: str, x: str) -> Markup:
    """Stacked bars over [0, 1].

    Args:
        counts: (name, class, number of images in each bin) of each colour, from bottom to top.
        title: for screen readers.
        x: label of the x axis.
    """
    bins = len(counts[0][2])
    totals = [sum(part[2][i] for part in counts) for i in range(bins)]
    y = Axis(0, -(-max(*totals, 1) // 4) * 4, BOTTOM, TOP)  # the four ticks are integers
    width = (RIGHT - LEFT) / bins
    bars = []
    for i in range(bins):
        base = 0
        for name, style, values in counts:
            if values[i]:
                top, bottom = y.at(base + values[i]), y.at(base)
                tooltip = f"{i / bins:.2f} to {(i + 1) / bins:.2f}: {values[i]} {name}"
                bars.append(
                    f'<rect class="{style}" x="{LEFT + i * width + 0.75:.1f}" y="{top:.1f}" width="{width - 1.5:.1f}" '
                    f'height="{bottom - top:.1f}"><title>{escape(tooltip)}</title></rect>'
                )
            base += values[i]
    legend = [(name, style) for name, style, _ in counts if name]
    return _svg(title, [_frame(UNIT_X, y, x=x, y_name="images"), *bars, _legend(legend)])


def boxes(groups: Sequence[tuple[str, str, Sequence[float]]], *, title: str, x: str) -> Markup:
    """Box plots of groups (name, class, values in [0, 1]).

    Whiskers: 5th and 95th percentile; box: quartiles; line: median; dot: mean.
    """
    step = (BOTTOM - TOP) / max(len(groups), 1)
    parts = [_frame(UNIT_X, Axis(0, 1, BOTTOM, TOP), x=x, y_name="", y_ticks=False, left=82)]
    axis = Axis(0, 1, 82, RIGHT)
    for i, (name, style, values) in enumerate(groups):
        middle = TOP + (i + 0.5) * step
        parts.append(f'<text class="tick" x="76" y="{middle - 1:.1f}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<text class="faint" x="76" y="{middle + 11:.1f}" text-anchor="end">{len(values)}</text>')
        if values:
            parts += _box(axis, middle, style, sorted(values))
    return _svg(title, parts)


def _box(axis: Axis, y: float, style: str, values: Sequence[float]) -> Iterable[str]:
    low, first, median, third, high = (axis.at(_quantile(values, q)) for q in (0.05, 0.25, 0.5, 0.75, 0.95))
    mean = sum(values) / len(values)
    yield f'<line class="whisker" x1="{low:.1f}" x2="{high:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
    width = max(third - first, 1.5)
    yield f'<rect class="{style}" x="{first:.1f}" y="{y - 9:.1f}" width="{width:.1f}" height="18" rx="2"/>'
    yield f'<line class="median" x1="{median:.1f}" x2="{median:.1f}" y1="{y - 9:.1f}" y2="{y + 9:.1f}"/>'
    yield f'<circle class="mean" cx="{axis.at(mean):.1f}" cy="{y:.1f}" r="3.5"><title>mean {mean:.3f}</title></circle>'


def _quantile(ordered: Sequence[float], q: float) -> float:
    position = q * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def calibration(bins: Sequence[tuple[float, float, int]], *, title: str, x: str = "IoU predicted by SAM") -> Markup:
    """Calibration plot: dots at (predicted, true) with an area by the number of images, and the diagonal.

    Args:
        bins: (mean predicted IoU, mean true IoU, number of images) of each bin.
        title: for screen readers.
        x: label of the x axis.
    """
    most = max((images for _, _, images in bins), default=1)
    axis = Axis(0, 1, 108, 108 + BOTTOM - TOP)  # square
    parts = [
        _frame(axis, UNIT_Y, x=x, y_name="true IoU", left=108, right=108 + BOTTOM - TOP),
        f'<line class="guide" x1="{axis.at(0)}" y1="{BOTTOM}" x2="{axis.at(1)}" y2="{TOP}"/>',
    ]
    for predicted, true, images in bins:
        tooltip = f"predicted {predicted:.3f}, true {true:.3f}, {images} images"
        parts.append(
            f'<circle class="s1 dot" cx="{axis.at(predicted):.1f}" cy="{UNIT_Y.at(true):.1f}" '
            f'r="{3 + 8 * (images / most) ** 0.5:.1f}"><title>{tooltip}</title></circle>'
        )
    return _svg(title, parts)


def lines(
    series: Sequence[Series],
    *,
    title: str,
    x: str,
    unit: bool = False,
    mark: float | None = None,
    low: float | None = None,
) -> Markup:
    """Lines over epochs, clicks or fractions.

    Args:
        series: at least one, with at least one point.
        title: for screen readers.
        x: label of the x axis.
        unit: whether the y axis is [0, 1].
        mark: an epoch that is marked as the best.
        low: start of the x axis; default: the first point.
    """
    xs = [point[0] for one in series for point in one.values]
    ys = [point[1] for one in series for point in one.values]
    bottom, top = (0.0, 1.0) if unit else (min(0.0, *ys), _nice(max(ys)))
    x_axis = Axis(min(xs) if low is None else low, max(xs), LEFT + 4, RIGHT - 4)
    y_axis = Axis(bottom, top, BOTTOM, TOP)
    parts = [_frame(x_axis, y_axis, x=x, y_name="")]
    if mark is not None and min(xs) <= mark <= max(xs):
        at = x_axis.at(mark)
        parts.append(f'<line class="guide" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{BOTTOM}"/>')
        anchor = "end" if at > (LEFT + RIGHT) / 2 else "start"
        shift = -4 if anchor == "end" else 4
        parts.append(
            f'<text class="faint" x="{at + shift:.1f}" y="{BOTTOM - 6}" text-anchor="{anchor}">best: {mark:g}</text>'
        )
    for one in series:
        points = [(x_axis.at(a), y_axis.at(b)) for a, b in one.values]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        parts.append(f'<polyline class="{one.style} line" points="{path}"/>')
        if len(points) <= 40:
            parts += [f'<circle class="{one.style}" cx="{a:.1f}" cy="{b:.1f}" r="2.2"/>' for a, b in points]
    return _svg(title, [*parts, _legend([(one.name, one.style) for one in series])])


def intervals(rows: Sequence[tuple[str, str, float, tuple[float, float] | None]], *, title: str, x: str) -> Markup:
    """Rows of (name, text, mean, 95 % interval): a dot with its interval."""
    above = 14 if any(len(name) > ONE_LINE for name, *_ in rows) else 0  # a long name is on its own line
    step = 40 + above
    height = step * len(rows) + 32
    axis = Axis(0, 1, 8, WIDTH - 8)
    parts = [
        f'<text class="tick" x="{axis.at(t):.1f}" y="{height - 18}" text-anchor="{anchor}">{t:g}</text>'
        for t, anchor in ((0, "start"), (0.25, "middle"), (0.5, "middle"), (0.75, "middle"), (1, "end"))
    ]
    parts.append(f'<text class="tick" x="{WIDTH / 2}" y="{height - 4}" text-anchor="middle">{escape(x)}</text>')
    for i, (name, text, mean, bounds) in enumerate(rows):
        y = step * i + 26 + above
        parts.append(f'<line class="grid" x1="8" x2="{WIDTH - 8}" y1="{y}" y2="{y}"/>')
        parts += [
            f'<line class="grid" x1="{axis.at(t / 4):.1f}" x2="{axis.at(t / 4):.1f}" y1="{y - 4}" y2="{y + 4}"/>'
            for t in range(5)
        ]
        parts.append(f'<text x="8" y="{y - 10 - above}">{escape(_cut(name))}</text>')
        parts.append(f'<text x="{WIDTH - 8}" y="{y - 10}" text-anchor="end">{escape(text)}</text>')
        if bounds is not None:
            low, high = (axis.at(v) for v in bounds)
            parts.append(f'<line class="s1 line" x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}"/>')
        parts.append(f'<circle class="s1" cx="{axis.at(mean):.1f}" cy="{y}" r="4.5"/>')
    return _svg(title, parts, height=height)


def _cut(text: str, length: int = 54) -> str:
    """The text, its middle replaced by … where it is too long for a line."""
    head = length * 2 // 3
    return text if len(text) <= length else f"{text[:head]}…{text[head + 1 - length :]}"


def _nice(value: float) -> float:
    """The next round number whose quarters have at most two digits."""
    if value <= 0:
        return 1.0
    power = 10.0
    while power > value:
        power /= 10
    while power * 10 <= value:
        power *= 10
    return next(step * power for step in (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10) if step * power >= value - 1e-12)


def _frame(
    x_axis: Axis,
    y_axis: Axis,
    *,
    x: str,
    y_name: str,
    y_ticks: bool = True,
    left: float = LEFT,
    right: float = RIGHT,
) -> str:
    """Grid, ticks and labels; the ticks of epochs are integers."""
    parts = []
    if y_ticks:
        for i in range(5):
            value = y_axis.low + (y_axis.high - y_axis.low) * i / 4
            at = y_axis.at(value)
            parts.append(f'<line class="grid" x1="{left:.1f}" x2="{right:.1f}" y1="{at:.1f}" y2="{at:.1f}"/>')
            parts.append(
                f'<text class="tick" x="{left - 5:.1f}" y="{at + 3.5:.1f}" text-anchor="end">{value:.3g}</text>'
            )
    horizontal = Axis(x_axis.low, x_axis.high, max(x_axis.start, left), min(x_axis.stop, right))
    for value in _ticks(x_axis.low, x_axis.high):
        at = horizontal.at(value)
        if not y_ticks:
            parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{BOTTOM}"/>')
        parts.append(f'<text class="tick" x="{at:.1f}" y="{BOTTOM + 14}" text-anchor="middle">{value:g}</text>')
    parts.append(f'<line class="axis" x1="{left:.1f}" x2="{right:.1f}" y1="{BOTTOM}" y2="{BOTTOM}"/>')
    middle = (left + right) / 2
    parts.append(f'<text class="tick" x="{middle:.1f}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x)}</text>')
    if y_name:
        parts.append(f'<text class="tick" x="{left - 36:.1f}" y="{TOP - 12}">{escape(y_name)}</text>')
    return "".join(parts)


def _ticks(low: float, high: float) -> list[float]:
    if (low, high) == (0, 1):
        return [0, 0.25, 0.5, 0.75, 1]
    step = max(1, round((high - low) / 5))
    return [low + i * step for i in range(int((high - low) / step) + 1)]


def _legend(entries: Sequence[tuple[str, str]]) -> str:
    parts, right = [], float(RIGHT)
    for name, style in reversed(entries):
        right -= 6.6 * len(name)
        parts.append(f'<text class="tick" x="{right:.1f}" y="{TOP - 12}">{escape(name)}</text>')
        parts.append(f'<rect class="{style}" x="{right - 13:.1f}" y="{TOP - 21}" width="10" height="10" rx="2"/>')
        right -= 24
    return "".join(parts)


def _svg(title: str, parts: Iterable[str], *, height: float = HEIGHT) -> Markup:
    # All texts in the parts are escaped already.
    return Markup(
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>"
    )
