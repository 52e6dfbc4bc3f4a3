"""Curves on logarithmic axes, as SVG."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

from pipelines.chart import COLOURS

WIDTH, HEIGHT = 520, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 24, 44, 52
_STYLE = "text { font: 12px sans-serif; fill: #57606a; } .grid { stroke: #e3e6ea; } .title { font-size: 14px; }"

Curve = Sequence[tuple[float, float]]


def page(charts: Sequence[str]) -> str:
    """A whole SVG file with charts beside each other."""
    size = f'viewBox="0 0 {WIDTH * len(charts)} {HEIGHT}" width="{WIDTH * len(charts)}"'
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" {size} style="background: white"><style>{_STYLE}</style>'
    placed = [f'<g transform="translate({WIDTH * index} 0)">{chart}</g>' for index, chart in enumerate(charts)]
    return "\n".join([opening, *placed, "</svg>\n"])


def draw(title: str, x_label: str, curves: Mapping[str, Curve]) -> str:
    """One chart; values that aren't positive have no place on a logarithmic axis and are left out."""
    curves = {name: [(x, y) for x, y in curve if x > 0 and y > 0] for name, curve in curves.items()}
    points = [point for curve in curves.values() for point in curve]
    x_low, x_high = _decades([x for x, _ in points])
    y_low, y_high = _decades([y for _, y in points])

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            _LEFT + (math.log10(x) - x_low) / (x_high - x_low) * (WIDTH - _LEFT - _RIGHT),
            HEIGHT - _BOTTOM - (math.log10(y) - y_low) / (y_high - y_low) * (HEIGHT - _TOP - _BOTTOM),
        )

    parts = [f'<text class="title" x="{_LEFT}" y="18">{html.escape(title)}</text>']
    for power in range(x_low, x_high + 1):
        x, _ = at(10.0**power, 10.0**y_low)
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{HEIGHT - _BOTTOM}"/>')
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - _BOTTOM + 18}" text-anchor="middle">{_number(power)}</text>')
    for power in range(y_low, y_high + 1):
        _, y = at(10.0**x_low, 10.0**power)
        parts.append(f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{WIDTH - _RIGHT}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{_number(power)}</text>')
    parts.append(
        f'<text x="{(_LEFT + WIDTH) / 2}" y="{HEIGHT - 12}" text-anchor="middle">{html.escape(x_label)}</text>'
    )
    left = float(_LEFT)
    for colour, (name, curve) in zip(COLOURS, curves.items(), strict=False):
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in curve))
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in (at(*p) for p in curve)]
        parts.append(f'<text x="{left:.0f}" y="36" style="fill: {colour}">{html.escape(name)}</text>')
        left += 7 * len(name) + 14
    return "\n".join(parts)


def _decades(values: Sequence[float]) -> tuple[int, int]:
    """Powers of ten around values."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


def _number(power: int) -> str:
    return f"{10.0**power:g}"
