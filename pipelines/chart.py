"""A perception-distortion curve as inline SVG."""

import html
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

_WIDTH, _HEIGHT = 520, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 24, 20, 56
COLOURS = ("#1f6feb", "#9a5bd0", "#0e8a7b", "#b4690e")


_PSNR = "PSNR, dB &#8194;(right: fewer errors)"


class Point(NamedTuple):
    """A candidate on the chart.

    Attributes:
        label: drawn beside it.
        x, y: PSNR in dB and distance.
        series: points of one series are joined, in the order given; "" stands alone.
        highlight: drawn larger.
    """

    label: str
    x: float
    y: float
    series: str
    highlight: bool = False


def draw(points: Sequence[Point], y_label: str, x_label: str = _PSNR) -> str:
    """The chart; lower is more natural. `x_label` is HTML."""
    x_low, x_high, x_ticks = _range([point.x for point in points])
    y_low, y_high, y_ticks = _range([point.y for point in points], low=0.0)

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            _LEFT + (x - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - (y - y_low) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM),
        )

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(y_label)}">']
    for tick in x_ticks:
        x, _ = at(tick, y_low)
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{_HEIGHT - _BOTTOM}"/>')
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{tick:g}</text>')
    for tick in y_ticks:
        _, y = at(x_low, tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text class="axis" x="{middle}" y="{_HEIGHT - 12}" text-anchor="middle">{x_label}</text>')
    parts.append(
        f'<text class="axis" transform="translate(16 {(_TOP + _HEIGHT - _BOTTOM) / 2}) rotate(-90)" '
        'text-anchor="middle">distance &#8194;(down: more natural)</text>'
    )
    series = list(dict.fromkeys(point.series for point in points if point.series))
    for index, name in enumerate(series):
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(p.x, p.y) for p in points if p.series == name))
        parts.append(f'<polyline points="{line}" fill="none" stroke="{COLOURS[index % 4]}" stroke-width="2"/>')
    places = _Places([at(point.x, point.y) for point in points])
    for point in points:
        x, y = at(point.x, point.y)
        colour = COLOURS[series.index(point.series) % 4] if point.series else "#444"
        radius = 7 if point.highlight else 4.5
        circle = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{colour}" stroke="#fff" stroke-width="1.5"/>'
        left, baseline = places.take(x, y, len(point.label))
        style = "point best" if point.highlight else "point"
        parts += [circle, f'<text class="{style}" x="{left:.1f}" y="{baseline:.1f}">{html.escape(point.label)}</text>']
    return "\n".join([*parts, "</svg>"])


def draw_bars(counts: Sequence[int], label: str) -> str:
    """A histogram: how many images were changed by 0 to 1 grey levels, by 1 to 2, and so on."""
    width = (_WIDTH - _LEFT - _RIGHT) / len(counts)
    _, high, ticks = _range([0, *counts], low=0.0)
    bottom, height = _HEIGHT - _BOTTOM, _HEIGHT - _TOP - _BOTTOM
    said = ", ".join(f"{count} by {level} to {level + 1}" for level, count in enumerate(counts) if count)
    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(label)}: {said}">']
    for tick in ticks:
        if tick == int(tick):
            y = bottom - tick / high * height
            parts.append(f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for level, count in enumerate(counts):
        x, tall = _LEFT + level * width, count / high * height
        parts.append(
            f'<rect class="bar" x="{x + 1:.1f}" y="{bottom - tall:.1f}" width="{width - 2:.1f}" height="{tall:.1f}"/>'
        )
        if level % max(1, len(counts) // 8) == 0:
            parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{level}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(
        f'<text class="axis" x="{middle}" y="{_HEIGHT - 12}" text-anchor="middle">change, grey levels of 255</text>'
    )
    parts.append(
        f'<text class="axis" transform="translate(16 {(_TOP + bottom) / 2}) rotate(-90)" text-anchor="middle">'
        "images</text>"
    )
    return "\n".join([*parts, "</svg>"])


class _Places:
    """Finds room for labels: beside their point, where the fewest points, line pieces and labels are in the way."""

    def __init__(self, points: Sequence[tuple[float, float]]) -> None:
        # Points, and some along the straight lines between neighbours.
        self._taken = list(points)
        for (x0, y0), (x1, y1) in itertools.pairwise(points):
            self._taken += [(x0 + (x1 - x0) * t / 16, y0 + (y1 - y0) * t / 16) for t in range(1, 16)]

    def take(self, x: float, y: float, letters: int) -> tuple[float, float]:
        """Left end and baseline of a label of so many letters for a point."""
        width, height = 7.0 * letters, 13.0
        corners = [
            (left, baseline)
            for baseline in (y - 9, y + 18, y + 4)
            for left in (x + 9, x - 9 - width)
            if left >= _LEFT and left + width <= _WIDTH and baseline < _HEIGHT - _BOTTOM
        ] or [(x + 9, y - 9)]

        def crowd(corner: tuple[float, float]) -> int:
            left, bottom = corner
            return sum(left - 5 < a < left + width + 5 and bottom - height < b < bottom + 5 for a, b in self._taken)

        left, baseline = min(corners, key=crowd)
        self._taken += [(left + width * t / 8, baseline - height / 2) for t in range(9)]
        return left, baseline


def _range(values: Sequence[float], low: float | None = None) -> tuple[float, float, list[float]]:
    """Bounds a little outside of the values, and round numbers between them."""
    bottom, top = min(values), max(values)
    spread = (top - bottom) or abs(top) or 1.0
    bottom, top = bottom - 0.12 * spread if low is None else low, top + 0.12 * spread
    step = 10 ** math.floor(math.log10((top - bottom) / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if (top - bottom) / (factor * step) <= 6)
    first = math.ceil(bottom / step)
    return bottom, top, [round(n * step, 10) for n in range(first, math.floor(top / step) + 1)]
