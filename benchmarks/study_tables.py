"""The study's figures as Markdown tables, and as curves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from pipelines import chart

Row = dict[str, Any]
BASE: Row = {"n": 16, "patch_size": 3, "method": "matched", "paired": False}
VARIANTS: dict[str, Row] = {
    "N = 16, p = 3": {},
    "the paper's map": {"method": "paper"},
    "not matched": {"method": "pixels"},
    "paired": {"paired": True, "method": "pixels"},
    "N = 4": {"n": 4},
    "N = 4, paired": {"n": 4, "paired": True, "method": "pixels"},
    "N = 100": {"n": 100},
    "N = 100, the paper's map": {"n": 100, "method": "paper"},
    "p = 1": {"patch_size": 1},
    "p = 5": {"patch_size": 5},
}


#: What the curves show, in the order of the chart's colours.
CURVES = ("N = 16, p = 3", "the paper's map", "paired")


class Figures:
    """Finds rows by what they were made with."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        self.restorers = list(dict.fromkeys(row["restorer"] for row in rows))

    def plain(self, restorer: str, alpha: float) -> Row:
        """The restoration (alpha 1) or its round trip (alpha 0)."""
        return next(r for r in self.rows if r["restorer"] == restorer and "n" not in r and r["alpha"] == alpha)

    def curves(self, restorer: str, variant: Row) -> list[list[Row]]:
        """For each draw, rows by rising alpha, the restoration among them."""
        wanted = {**BASE, **variant, "restorer": restorer}
        found = [row for row in self.rows if all(row.get(key) == value for key, value in wanted.items())]
        return [
            sorted(
                [*(r for r in found if r["draw"] == draw), self.plain(restorer, 1.0)],
                key=lambda row: float(row["alpha"]),
            )
            for draw in sorted({row["draw"] for row in found})
        ]

    def variants(self) -> list[str]:
        """Names of those that were studied."""
        return [name for name, variant in VARIANTS.items() if self.curves(self.restorers[0], variant)]

    def at(self, restorer: str, variant: Row, alpha: float) -> list[Row]:
        """One row for each draw."""
        return [row for curve in self.curves(restorer, variant) for row in curve if row["alpha"] == alpha]

    def share(self, row: Row, measure: str = "judge") -> float:
        """Of the restoration's distance, in percent."""
        return 100 * float(row[measure]) / float(self.plain(row["restorer"], 1.0)[measure])


def render(found: dict[str, Any]) -> str:
    """All tables of a study."""
    figures = Figures(found["rows"])
    sections = [
        "# Study",
        f"Transported in the latent space of: {found['vae']}; measured on {found['test_images']} test images. "
        "How: benchmarks/study.py. Distances are shares of the restorations' own distance to the originals, in the "
        "latent space of FLUX.2's tiny autoencoder; mean over draws, ± half the range where there are several.",
        "The default method was chosen on 30 validation images, of which the first test images are a part, with the "
        "latents of FLUX.2's tiny autoencoder; what it does on others is in [held-out.md](held-out.md).",
        f"![distance against PSNR over alpha]({found['chart']})",
        "## Over alpha",
        "PSNR in dB / distance. Unpaired, N = 16, p = 3.",
        _over_alpha(figures),
        "By 8 x 8 squares of pixels instead:",
        _over_alpha(figures, "pixel"),
        "## Each setting, at full transport",
        "PSNR in dB / distance at alpha 0; one setting changed at a time.",
        _variants(figures),
        "## What people see",
        "Error of the radial log power spectrum in dB / NIQE against 200 photographs of the training set / power at a "
        "period of four pixels against its neighbours, about 1 in photographs / detail at the edge that differs most "
        "from the inside's, relative to the originals'. Alpha 0.",
        _looks(figures),
        "## PSNR at equal distance",
        "What a setting gains in PSNR, dB, over the paper's map (unpaired, N = 16, p = 3, same draw), where alpha is "
        "chosen so that the distance is that of the paper's map at the alpha given.",
        _at_equal_distance(figures),
        "## Four images a side",
        "PSNR of N = 4 less that of N = 100 (unpaired, one draw), dB, at the distance that N = 4 has at the alpha "
        'given, over the draws where N = 100 has that distance at some alpha; "not reached" where in none.',
        _four_images(figures),
        "## Free lunch",
        "Alphas at which PSNR is no lower than the restorer's and the distance is lower, in every draw.",
        _free(figures),
    ]
    return "\n\n".join(sections) + "\n"


def curves(found: dict[str, Any]) -> str:
    """Perception-distortion curves over alpha, one chart for each restorer, as an SVG file; first draws."""
    figures, parts = Figures(found["rows"]), []
    width, height, title = 520, 340, 30
    for index, restorer in enumerate(figures.restorers):
        points = []
        for name in CURVES:
            for row in (figures.curves(restorer, VARIANTS[name]) or [[]])[0]:
                label = {0.0: "0", 1.0: restorer}.get(row["alpha"], "") if name == CURVES[0] else ""
                points.append(chart.Point(label, row["psnr"], row["judge"], name))
        place = f'<svg x="{index % 2 * width}" y="{title + index // 2 * height}" width="{width}" height="{height}" '
        parts.append(chart.draw(points, restorer).replace("<svg ", place, 1))
    rows = -(-len(figures.restorers) // 2)
    legend = [
        f'<text x="{20 + 260 * i}" y="20" style="fill: {colour}; font-size: 14px">{name}</text>'
        for i, (name, colour) in enumerate(zip(CURVES, chart.COLOURS, strict=False))
    ]
    style = "text { font: 12px sans-serif; fill: #57606a; } .grid { stroke: #e3e6ea; } .axis { font-size: 13px; }"
    size = f'viewBox="0 0 {2 * width} {title + rows * height}" width="{2 * width}"'
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" {size} style="background: white"><style>{style}</style>'
    return "\n".join([opening, *legend, *parts, "</svg>\n"])


def _table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _over_alpha(figures: Figures, measure: str = "judge") -> str:
    alphas = [row["alpha"] for row in figures.curves(figures.restorers[0], {})[0]]

    def line(restorer: str) -> list[str]:
        cells = [_cell(figures, figures.at(restorer, {}, alpha), measure) for alpha in alphas]
        return [restorer, _cell(figures, [figures.plain(restorer, 0.0)], measure), *cells]

    header = ["restorer", "round trip", *(f"alpha {alpha:g}" for alpha in alphas)]
    return _table(header, map(line, figures.restorers))


def _variants(figures: Figures) -> str:
    def line(restorer: str) -> list[str]:
        return [restorer, *(_cell(figures, figures.at(restorer, VARIANTS[name], 0.0)) for name in figures.variants())]

    return _table(["restorer", *figures.variants()], map(line, figures.restorers))


def _cell(figures: Figures, rows: Sequence[Row], measure: str = "judge") -> str:
    if not rows:
        return ""
    psnr, share = [row["psnr"] for row in rows], [figures.share(row, measure) for row in rows]
    return f"{_mean(psnr, '.2f')} / {_mean(share, '.0f')}%"


def _looks(figures: Figures) -> str:
    def cell(rows: Sequence[Row]) -> str:
        found = (np.mean([row[name] for row in rows]) for name in ("spectrum", "niqe", "grid", "edge"))
        return "{:.1f} / {:.1f} / {:.2f} / {:.2f}".format(*found)

    names = [name for name in ("N = 16, p = 3", "the paper's map", "paired") if name in figures.variants()]
    lines = [
        [r, *(cell([figures.plain(r, a)]) for a in (1.0, 0.0)), *(cell(figures.at(r, VARIANTS[n], 0.0)) for n in names)]
        for r in figures.restorers
    ]
    return _table(["restorer", "the restoration", "round trip", *names], lines)


def _mean(values: Sequence[float], form: str) -> str:
    spread = (max(values) - min(values)) / 2
    return f"{np.mean(values):{form}}" + (f" ± {spread:{form}}" if len(values) > 1 else "")


def _at_equal_distance(figures: Figures) -> str:
    columns: list[tuple[str, Callable[[str], list[float]]]] = []
    for name in figures.variants():
        variant = VARIANTS[name]
        if "paper" in name:
            continue
        for alpha in (0.0, 0.5):
            columns.append((f"{name}; alpha {alpha:g}", lambda r, v=variant, a=alpha: _gains(figures, r, v, a)))  # type: ignore[misc]

    lines, totals = [], [list[float]() for _ in columns]
    for restorer in figures.restorers:
        gains = [gain(restorer) for _, gain in columns]
        lines.append([restorer, *(_signed(values) for values in gains)])
        for total, values in zip(totals, gains, strict=True):
            total += [float(np.mean(values))] if values else []
    lines.append(["mean", *(f"{np.mean(total):+.2f}" if total else "" for total in totals)])
    return _table(["restorer", *(name for name, _ in columns)], lines)


def _gains(figures: Figures, restorer: str, variant: Row, alpha: float) -> list[float]:
    """PSNR at the paper's distance, less the paper's, for each draw; none where the distance isn't reached."""
    gains = []
    for ours, paper in zip(
        figures.curves(restorer, variant), figures.curves(restorer, {"method": "paper"}), strict=False
    ):
        reference = next(row for row in paper if row["alpha"] == alpha)
        found = psnr_at_distance(ours, reference["judge"])
        if found is not None:
            gains.append(found - reference["psnr"])
    return gains


def _four_images(figures: Figures) -> str:
    columns = [(name, alpha) for name in ("N = 4", "N = 4, paired") for alpha in (0.0, 0.5)]

    def line(restorer: str) -> list[str]:
        cells = []
        for name, alpha in columns:
            rows = figures.at(restorer, VARIANTS[name], alpha)
            hundred = [
                (row["psnr"], psnr_at_distance(curve, row["judge"]))
                for row in rows
                for curve in figures.curves(restorer, VARIANTS["N = 100"])
            ]
            cells.append(_signed([psnr - other for psnr, other in hundred if other is not None]))
        return [restorer, *cells]

    return _table(["restorer", *(f"{name}; alpha {alpha:g}" for name, alpha in columns)], map(line, figures.restorers))


def psnr_at_distance(curve: Sequence[Row], distance: float) -> float | None:
    """PSNR where a curve has a distance, between the nearest alpha and the restoration; None if nowhere."""
    nearest = min(range(len(curve)), key=lambda i: float(curve[i]["judge"]))
    branch = [row for row in curve[nearest:] if row["alpha"] <= 1]
    distances = [row["judge"] for row in branch]
    if not branch or not distances[0] <= distance <= distances[-1]:
        return None
    return float(np.interp(distance, distances, [row["psnr"] for row in branch]))


def _signed(values: Sequence[float]) -> str:
    if not values:
        return "not reached"
    spread = (max(values) - min(values)) / 2
    return f"{np.mean(values):+.2f}" + (f" ± {spread:.2f}" if len(values) > 1 else "")


def _free(figures: Figures) -> str:
    def alphas(restorer: str, variant: Row) -> str:
        restoration = figures.plain(restorer, 1.0)
        curves = figures.curves(restorer, variant)
        free = [
            row["alpha"]
            for i, row in enumerate(curves[0])
            if all(c[i]["psnr"] >= restoration["psnr"] and c[i]["judge"] < restoration["judge"] for c in curves)
        ]
        return ", ".join(f"{alpha:g}" for alpha in free) or "none"

    names = [name for name in ("N = 16, p = 3", "paired", "N = 100") if name in figures.variants()]
    lines = [[restorer, *(alphas(restorer, VARIANTS[name]) for name in names)] for restorer in figures.restorers]
    return _table(["restorer", *names], lines)
