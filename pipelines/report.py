"""The page that says whether the enhanced images are worth using: one file, no scripts, nothing from a network."""

import base64
import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ot_core.images import eight_bits
from ot_core.restorer import Restorer, restore_image
from pipelines.chart import Point, draw
from pipelines.verdict import MEASURES, Result, Verdict
from transforms.elements import Change
from transforms.quality import REFERENCE
from transforms.reading import read_image

#: Side of a crop in pixels, shown at its own size or smaller.
CROP = 224
#: Enhanced columns beside a picture, at most; with those, the restored and the reference six columns.
_ENHANCED_COLUMNS = 4
_STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --text: #1c2128; --soft: #444c56; --line: #e3e6ea;
  --best: #eaf6ec; }
@media (prefers-color-scheme: dark) { :root { --page: #0d1117; --card: #161b22; --text: #e6edf3; --soft: #adbac7;
  --line: #30363d; --best: #12301b; } circle { stroke: var(--card); } circle[fill="#444"] { fill: #adbac7; } }
body { font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  color: var(--text); margin: 0; background: var(--page); }
main { max-width: 1180px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 26px; margin: 0 0 20px; } h2 { font-size: 19px; margin: 40px 0 12px; }
.verdict { background: var(--card); border-left: 6px solid #8b949e; border-radius: 6px; padding: 18px 24px;
  box-shadow: 0 1px 3px #0002; }
.verdict p { margin: 6px 0; color: var(--soft); }
.verdict p:first-child { font-size: 21px; line-height: 1.35; color: var(--text); }
.use { border-color: #1a7f37; } .trade, .undecided { border-color: #bf8700; } .avoid { border-color: #cf222e; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr)); gap: 20px; }
figure { background: var(--card); border-radius: 6px; margin: 0; padding: 14px 16px 8px; box-shadow: 0 1px 3px #0002; }
.charts figure { max-width: 640px; } figcaption { font-weight: 600; }
svg { width: 100%; height: auto; font-size: 12px; fill: var(--soft); }
.grid { stroke: var(--line); } .axis { font-size: 13px; }
.point { fill: var(--text); paint-order: stroke; stroke: var(--card); stroke-width: 3px; } .best { font-weight: 700; }
.scroll { overflow-x: auto; background: var(--card); border-radius: 6px; box-shadow: 0 1px 3px #0002; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 8px 14px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-size: 13px; color: var(--soft); vertical-align: bottom; } td:first-child, th:first-child { text-align: left; }
figure.best { outline: 3px solid #1a7f37; }
tr.best td { background: var(--best); font-weight: 600; } tr:last-child td { border-bottom: 0; }
code { white-space: nowrap; background: var(--line); border-radius: 4px; padding: 1px 5px; }
td small { color: var(--soft); font-weight: 400; margin-left: 6px; }
.row { display: grid; gap: 8px; margin: 0 0 18px; } .row figure { padding: 8px; }
.row img { display: block; width: 100%; height: auto; border-radius: 3px; } .row figcaption { font-size: 13px; }
.key { font-size: 14px; color: var(--soft); margin: 0 0 6px; } dl { font-size: 15px; } dt { font-weight: 600; }
dd { margin: 0 0 10px; color: var(--soft); } .path { overflow-wrap: anywhere; }
@media (max-width: 600px) { main { padding: 20px 12px 40px; }
  .row { grid-template-columns: 1fr 1fr !important; } .row figcaption { overflow-wrap: anywhere; } }
"""


class Crop(NamedTuple):
    """One picture of a row: its title and a data URI."""

    title: str
    uri: str


class Picture(NamedTuple):
    """A row of pictures of one image.

    Attributes:
        key: the image's.
        change: root mean squared difference of the enhanced from the restored, in grey levels.
        crops: the same part of the image in each candidate.
    """

    key: str
    change: float
    crops: tuple[Crop, ...]


def render(
    results: Sequence[Result],
    baseline: str | None,
    verdict: Verdict,
    most: Sequence[Picture],
    least: Sequence[Picture],
    failures: int,
) -> str:
    """The page as HTML.

    Args:
        results: in the order of the table.
        baseline: name of the restored candidate.
        verdict: what `judge` said.
        most: the images that were changed most.
        least: those that were changed least.
        failures: rows in the failures.
    """
    sections = [f'<div class="verdict {verdict.kind}">' + "".join(f"<p>{_sentence(s)}</p>" for s in verdict.sentences)]
    if failures:
        sections.append(f"<p>{failures} failures: see failures-*.parquet beside this page.</p>")
    sections.append("</div>")
    charts = [_chart(results, feature, baseline, verdict.best) for feature in _features(results)]
    if any(charts):
        sections.append("<h2>What naturalness costs: distance from natural images against PSNR</h2>")
        sections.append('<div class="charts">' + "".join(charts) + "</div>")
    sections += ["<h2>The figures</h2>", _table(results, baseline, verdict.best)]
    for title, pictures in (("The most changed images", most), ("The least changed images", least)):
        if pictures:
            sections += [f"<h2>{title}</h2>", *(_row(picture, verdict.best) for picture in pictures)]
    sections.append(_explanations(results))
    body = "\n".join(sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Did it help?</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head>\n<body><main><h1>Did it help?</h1>\n{body}\n</main></body></html>\n"
    )


def shown_candidates(results: Sequence[Result], baseline: str | None, best: str | None) -> list[str]:
    """Names for the columns of pictures: restored, others, enhanced with the best among them, and the reference."""
    others = [result for result in results if result.name != baseline]
    enhanced = [result.name for result in sorted(others, key=lambda result: result.alpha is not None)]
    if len(enhanced) > _ENHANCED_COLUMNS:
        steps = np.linspace(0, len(enhanced) - 1, _ENHANCED_COLUMNS).round().astype(int)
        chosen = {enhanced[step] for step in steps[1:]} | {best if best in enhanced else enhanced[0]}
        enhanced = [name for name in enhanced if name in chosen]
    return [*([baseline] if baseline else []), *enhanced, REFERENCE]


def picture(
    change: Change, names: Sequence[str], max_pixels: int, max_bytes: int, restore: Mapping[str, Restorer]
) -> Picture | None:
    """Reads one image of each candidate and cuts out the part that changed most.

    That is between the first column, the restored, and the last before the reference.

    Args:
        change: the image.
        names: of the candidates.
        max_pixels: as in `ReadImages`.
        max_bytes: likewise.
        restore: what restores the images of a candidate first.

    Returns:
        None where the image can't be read any more: a page lacks a row rather than the job fail.
    """
    refs = {ref.side: ref for ref in change.refs}
    names = [name for name in names if name in refs]
    try:
        images = {name: read_image(refs[name], max_pixels, max_bytes).image for name in names}
        images |= {name: restore_image(images[name], restore[name]) for name in names if name in restore}
        arrays = {name: eight_bits(image.pixels) for name, image in images.items()}
    except Exception:  # whatever the store raised
        return None
    first = arrays[names[0]]
    arrays = {name: array for name, array in arrays.items() if array.shape == first.shape}
    others = [array for name, array in arrays.items() if name not in (names[0], REFERENCE)]
    top, left = _busiest(first, others[-1] if others else first)
    crops = [Crop(name, _data_uri(array[top : top + CROP, left : left + CROP])) for name, array in arrays.items()]
    return Picture(change.key, change.change, tuple(crops))


def _busiest(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> tuple[int, int]:
    """Upper left corner of the crop, on a grid of half crops, in which two images differ most."""
    height, width = a.shape[:2]
    corners = [
        (min(top, max(0, height - CROP)), min(left, max(0, width - CROP)))
        for top in range(0, max(1, height - CROP // 2), CROP // 2)
        for left in range(0, max(1, width - CROP // 2), CROP // 2)
    ]

    def difference(corner: tuple[int, int]) -> float:
        top, left = corner
        part = np.s_[top : top + CROP, left : left + CROP]
        return float(np.mean((a[part].astype(np.float32) - b[part]) ** 2))

    return max(corners, key=difference)


def _data_uri(pixels: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    # Fine texture is what the reader judges: no chroma subsampling; a page of PNGs would be several times larger.
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90, subsampling="4:4:4")
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _features(results: Sequence[Result]) -> list[str]:
    return [feature for feature in MEASURES if any(feature in result.distances for result in results)]


def _chart(results: Sequence[Result], feature: str, baseline: str | None, best: str | None) -> str:
    restored = next((result for result in results if result.name == baseline), None)
    series = dict.fromkeys(result.series for result in results if result.alpha is not None)
    points: list[Point] = []
    for name in series:
        members = [result for result in results if result.series == name and result.alpha is not None]
        # The restored images are alpha 1 of every series.
        on_line = [*([restored] if restored and restored.alpha is None else []), *members]
        on_line.sort(key=lambda result: 1.0 if result.alpha is None else result.alpha, reverse=True)
        points += _points(on_line, feature, name, best)
    drawn = {point.label for point in points}
    alone = [result for result in results if result.alpha is None and result.name not in drawn]
    points += _points(alone, feature, "", best)
    if len(points) < 2:
        return ""
    title = f"By {MEASURES[feature]}"
    return f"<figure><figcaption>{_text(title)}</figcaption>{draw(points, title)}</figure>"


def _points(results: Sequence[Result], feature: str, series: str, best: str | None) -> list[Point]:
    points = []
    for result in results:
        x, y = result.psnr_mean, result.distances.get(feature)
        if x is not None and y is not None and math.isfinite(x):
            label = result.name if result.alpha is None else f"alpha {result.alpha:g}"
            points.append(Point(label, x, y, series, result.name == best))
    return points


def _table(results: Sequence[Result], baseline: str | None, best: str | None) -> str:
    features = _features(results)
    restored = next((result for result in results if result.name == baseline), None)
    lpips = any(result.lpips is not None for result in results)
    heads = [
        "candidate",
        "images<br>compared",
        "PSNR, dB<br>mean",
        "PSNR, dB<br>pooled",
        "SSIM",
        *(["LPIPS"] if lpips else []),
    ]
    heads += [f"distance<br>{_text(MEASURES[feature])}" for feature in features]
    rows = ["<tr>" + "".join(f"<th>{head}</th>" for head in heads) + "</tr>"]
    for result in results:
        cells = [_text(result.name), str(result.count), _number(result.psnr_mean, 2), _number(result.psnr_pooled, 2)]
        cells += [_number(result.ssim, 4), *([_number(result.lpips, 4)] if lpips else [])]
        for feature in features:
            distance, before = result.distances.get(feature), restored.distances.get(feature) if restored else None
            change = ""
            if distance is not None and before and result is not restored:
                change = f"<small>{distance / before - 1:+.0%}</small>"
            cells.append(("not measured" if distance is None else f"{distance:.4g}") + change)
        rows.append(
            ("<tr class=best>" if result.name == best else "<tr>") + "".join(f"<td>{c}</td>" for c in cells) + "</tr>"
        )
    return '<div class="scroll"><table>' + "\n".join(rows) + "</table></div>"


def _row(picture: Picture, best: str | None) -> str:
    crops = "".join(
        f"<figure{' class=best' if crop.title == best else ''}>"
        f'<img alt="Part of {_text(picture.key)}: {_text(crop.title)}" src="{crop.uri}">'
        f"<figcaption>{_text(crop.title)}</figcaption></figure>"
        for crop in picture.crops
    )
    columns = f"grid-template-columns: repeat({len(picture.crops)}, minmax(0, {CROP + 16}px))"
    return (
        f'<p class="key"><span class="path">{_text(picture.key)}</span>: changed by {picture.change:.1f} of 255 grey '
        f'levels</p><div class="row" style="{columns}">{crops}</div>'
    )


def _explanations(results: Sequence[Result]) -> str:
    terms = {
        "alpha": "How much of the restored image is in the result: 1 is the restored image itself, 0 the fully "
        "transported one, which looks most natural.",
        "PSNR, SSIM": "How near each image is to its original, pixel by pixel; higher is better. An image can be near "
        "and look smooth: the two rarely peak at the same alpha.",
        "LPIPS": "How different each image looks from its original to a neural network; lower is better.",
        "distance": "How far the whole set is from natural images, as the squared Gelbrich distance between Gaussians "
        "of their features; lower is more natural. It has no unit: compare it within a column. The percentages are "
        "the change from the restored images.",
        "pictures": f"The {CROP}x{CROP} pixels in which an image was changed most.",
    }
    if all(result.lpips is None for result in results):
        del terms["LPIPS"]
    items = "".join(f"<dt>{term}</dt><dd>{text}</dd>" for term, text in terms.items())
    urls = "".join(f"<dt>{_text(result.name)}</dt><dd class=path>{_text(result.url)}</dd>" for result in results)
    return f"<h2>How to read this page</h2><dl>{items}</dl><h2>What was compared</h2><dl>{urls}</dl>"


def _number(value: float | None, digits: int) -> str:
    if value is None:
        return "–"
    return f"{value:.{digits}f}" if math.isfinite(value) else "∞"


def _sentence(text: str) -> str:
    """Flags are set apart and never broken over two lines."""
    return re.sub(r"--\w+( inception)?", r"<code>\g<0></code>", _text(text))


def _text(text: str) -> str:
    return html.escape(text.encode("utf-8", "backslashreplace").decode())
