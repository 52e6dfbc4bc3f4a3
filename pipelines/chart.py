"""A perception-distortion curve as inline SVG."""

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

_WIDTH, _HEIGHT = 520, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 24, 20, 56
_COLOURS = ("#1f6feb", "#9a5bd0", "#0e8a7b", "#b4690e")


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


def draw(points: Sequence[Point], y_label: str) -> str:
    """The chart; lower is more natural, further right is fewer errors."""
    x_low, x_high, x_ticks = _range([point.x for point in points])
    y_low, y_high, y_ticks = _range([point.y for point in points], low=0.0)

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            _LEFT + (x - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - (y - y_low) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM),
        )

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(y_label)} against PSNR">']
    for tick in x_ticks:
        x, _ = at(tick, y_low)
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{_HEIGHT - _BOTTOM}"/>')
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{tick:g}</text>')
    for tick in y_ticks:
        _, y = at(x_low, tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(
        f'<text class="axis" x="{middle}" y="{_HEIGHT - 12}" text-anchor="middle">'
        "PSNR, dB &#8194;(right: fewer errors)</text>"
    )
    parts.append(
        f'<text class="axis" transform="translate(16 {(_TOP + _HEIGHT - _BOTTOM) / 2}) rotate(-90)" '
        'text-anchor="middle">distance &#8194;(down: more natural)</text>'
    )
    series = list(dict.fromkeys(point.series for point in points if point.series))
    for index, name in enumerate(series):
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(p.x, p.y) for p in points if p.series == name))
        parts.append(f'<polyline points="{line}" fill="none" stroke="{_COLOURS[index % 4]}" stroke-width="2"/>')
    for point in points:
        x, y = at(point.x, point.y)
        colour = _COLOURS[series.index(point.series) % 4] if point.series else "#444"
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{7 if point.highlight else 4.5}" fill="{colour}" '
            'stroke="#fff" stroke-width="1.5"/>'
        )
        left = x > _WIDTH - _RIGHT - 110
        parts.append(
            f'<text class="point{" best" if point.highlight else ""}" x="{x + (-10 if left else 10):.1f}" '
            f'y="{y - 8:.1f}" text-anchor="{"end" if left else "start"}">{html.escape(point.label)}</text>'
        )
    return "\n".join([*parts, "</svg>"])


def _range(values: Sequence[float], low: float | None = None) -> tuple[float, float, list[float]]:
    """Bounds a little outside of the values, and round numbers between them."""
    bottom, top = min(values), max(values)
    spread = (top - bottom) or abs(top) or 1.0
    bottom, top = bottom - 0.12 * spread if low is None else low, top + 0.12 * spread
    step = 10 ** math.floor(math.log10((top - bottom) / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if (top - bottom) / (factor * step) <= 6)
    first = math.ceil(bottom / step)
    return bottom, top, [round(n * step, 10) for n in range(first, math.floor(top / step) + 1)]
