"""The page that says whether the enhanced images are worth using: one file, nothing from a network.

`templates/report.html` has its structure; here is what it shows.
"""

from __future__ import annotations

import base64
import functools
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from numpy.typing import NDArray
from PIL import Image

from ot_core.images import eight_bits
from ot_core.overlap import prefetch
from ot_core.restorer import Restorer, restore_image
from pipelines.chart import Point, draw, draw_bars
from pipelines.verdict import MEASURES, Result, Verdict
from transforms.compare_images import REFERENCE
from transforms.elements import Change, ImageRef
from transforms.read_images import read_image

#: Side of a crop in pixels, and longest side of a thumbnail.
CROP, _THUMBNAIL = 224, 96
#: Enhanced columns beside a picture, at most; with those, the restored and the reference six columns.
_ENHANCED_COLUMNS = 4
#: Stores whose files a browser finds elsewhere.
_BROWSED = {"gs://": "https://storage.cloud.google.com/"}


class Crop(NamedTuple):
    """One picture of a row: its title, what it shows, a data URI, and where the whole image is."""

    title: str
    what: str
    uri: str
    link: str


class Picture(NamedTuple):
    """Pictures of one image.

    Attributes:
        key: the image's.
        change: root mean squared difference of the enhanced from the restored, in grey levels.
        crops: the same part of the image in each candidate.
        restored: that of the baseline.
        enhanced: those of candidates that transport made, by falling alpha.
        first_shown: which of these to show first.
    """

    key: str
    change: float
    crops: tuple[Crop, ...]
    restored: Crop | None
    enhanced: tuple[Crop, ...]
    first_shown: int


class Row(NamedTuple):
    """An image of the gallery: thumbnails of two candidates, and PSNR in dB of each."""

    key: str
    change: float
    thumbnails: tuple[Crop | None, ...]
    psnr: tuple[float | None, ...]


class Gallery(NamedTuple):
    """Images chosen by chance, and the candidates whose thumbnails and PSNR are shown of each."""

    candidates: Sequence[str]
    rows: Sequence[Row]


class Reading(NamedTuple):
    """How images are read again for the page.

    Attributes:
        max_pixels, max_bytes: as in `ReadImages`.
        restore: what restores the images of a candidate first.
    """

    max_pixels: int
    max_bytes: int
    restore: Mapping[str, Restorer]

    def pixels(self, ref: ImageRef) -> NDArray[np.uint8]:
        """(H, W, 3)."""
        image = read_image(ref, self.max_pixels, self.max_bytes).image
        if ref.side in self.restore:
            image = restore_image(image, self.restore[ref.side])
        return eight_bits(image.pixels)


def render(
    results: Sequence[Result],
    baseline: str | None,
    verdict: Verdict,
    most: Sequence[Picture],
    typical: Sequence[Picture],
    gallery: Gallery,
    changes: Sequence[int],
    failures: int,
    provenance: Sequence[tuple[str, str]],
) -> str:
    """The page as HTML.

    Args:
        results: in the order of the table.
        baseline: name of the restored candidate.
        verdict: what `judge` said.
        most: the images that were changed most.
        typical: images that were changed as much as most are.
        gallery: see the class.
        changes: how many images were changed by 0 to 1 grey levels, by 1 to 2, and so on; the last has all above.
        failures: rows in the failures.
        provenance: what made the page and the images, each a term and a text.
    """
    exact = any(result.psnr_mean is not None for result in results)
    cost = "PSNR" if exact else "change from the restored images"
    heads, rows = _table(results, baseline, verdict.best, exact)
    charts = (_chart(results, feature, baseline, verdict.best, exact) for feature in _features(results))
    total = sum(changes)
    shown = len(gallery.rows)
    of_all = f"{shown} images, chosen by chance from {total}" if total > shown else "All images"
    return _template().render(
        verdict=verdict,
        failures=failures,
        charts_title=f"What naturalness costs: distance from natural images against {cost}",
        charts=list(filter(None, charts)),
        histogram=_histogram(changes),
        heads=heads,
        rows=rows,
        most=most,
        typical=typical,
        gallery=gallery.rows,
        gallery_title=of_all,
        gallery_names=gallery.candidates,
        psnr_names=gallery.candidates if exact else [],
        terms=_terms(results, exact),
        provenance=[*((result.name, result.url) for result in results), *provenance],
    )


@functools.cache
def _template() -> Any:
    environment = Environment(
        loader=PackageLoader("pipelines", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_encodable,
    )
    environment.filters |= {"flags": _flags, "decibels": functools.partial(_number, digits=2)}
    return environment.get_template("report.html")


def _encodable(value: Any) -> Any:
    """Names of files may hold what UTF-8 doesn't."""
    return value.encode("utf-8", "backslashreplace").decode() if type(value) is str else value


def _flags(text: str) -> Markup:
    """Flags are set apart and never broken over two lines."""
    return Markup(re.sub(r"--\w+( inception)?", r"<code>\g<0></code>", str(escape(text))))


def shown_candidates(results: Sequence[Result], baseline: str | None, best: str | None) -> list[str]:
    """Names for the columns of pictures: restored, others, enhanced with the best among them, and the reference."""
    others = [result for result in results if result.name != baseline]
    enhanced = [result.name for result in sorted(others, key=lambda result: result.alpha is not None)]
    if len(enhanced) > _ENHANCED_COLUMNS:
        steps = np.linspace(0, len(enhanced) - 1, _ENHANCED_COLUMNS).round().astype(int)
        chosen = {enhanced[step] for step in steps[1:]} | {best if best in enhanced else enhanced[0]}
        enhanced = [name for name in enhanced if name in chosen]
    return [*([baseline] if baseline else []), *enhanced, REFERENCE]


def gallery_candidates(results: Sequence[Result], baseline: str | None, best: str | None) -> list[str]:
    """The two whose thumbnails and PSNR the gallery shows: the restored, and the best or the most transported."""
    enhanced = [result for result in results if result.alpha is not None and result.name != baseline]
    last = best or min(enhanced, key=lambda result: result.alpha or 0.0).name if enhanced else None
    return [name for name in (baseline, last) if name]


def picture(
    change: Change, names: Sequence[str], alphas: Mapping[str, float | None], best: str | None, reading: Reading
) -> Picture | None:
    """Reads one image of each candidate and cuts out the part that changed most.

    That is between the first column, the restored, and the last before the reference.

    Args:
        change: the image.
        names: of the candidates, and of the reference.
        alphas: of the candidates.
        best: the candidate to show first.
        reading: how.

    Returns:
        None where the image can't be read any more: a page lacks a row rather than the job fail.
    """
    refs = {ref.side: ref for ref in change.refs}
    names = [name for name in names if name in refs]
    try:
        arrays = {name: reading.pixels(refs[name]) for name in names}
    except Exception:  # whatever the store raised
        return None
    first = arrays[names[0]]
    arrays = {name: array for name, array in arrays.items() if array.shape == first.shape}
    others = [array for name, array in arrays.items() if name not in (names[0], REFERENCE)]
    top, left = _busiest(first, others[-1] if others else first)
    crops = {
        name: _crop(refs[name], array[top : top + CROP, left : left + CROP], alphas.get(name), 90)
        for name, array in arrays.items()
    }
    by_alpha = sorted((alpha, name) for name in crops if name != names[0] and (alpha := alphas.get(name)) is not None)
    enhanced = [name for _, name in reversed(by_alpha)]
    restored = crops[names[0]] if names[0] != REFERENCE else None
    shown = enhanced.index(best) if best in enhanced else max(len(enhanced) - 1, 0)
    return Picture(
        change.key, change.change, tuple(crops.values()), restored, tuple(crops[name] for name in enhanced), shown
    )


def gallery_of(
    changes: Sequence[Change], names: Sequence[str], alphas: Mapping[str, float | None], reading: Reading
) -> list[Row]:
    """Thumbnails of images, of those that can still be read, by falling change."""
    ordered = sorted(changes, key=lambda change: -change.change)
    refs = [{ref.side: ref for ref in change.refs}.get(name) for change in ordered for name in names]
    wanted = [ref for ref in refs if ref is not None]
    read = prefetch(lambda ref: _thumbnail(ref, alphas.get(ref.side), reading), wanted)
    found = {(ref.side, ref.key): future.result() for ref, future in zip(wanted, read, strict=True)}
    return [
        Row(
            change.key,
            change.change,
            tuple(found.get((name, change.key)) for name in names),
            tuple(dict(change.psnr).get(name) for name in names) if any(p is not None for _, p in change.psnr) else (),
        )
        for change in ordered
    ]


def _thumbnail(ref: ImageRef, alpha: float | None, reading: Reading) -> Crop | None:
    try:
        picture = Image.fromarray(reading.pixels(ref))
    except Exception:  # whatever the store raised
        return None
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    return _crop(ref, np.asarray(picture), alpha, 80)


def _crop(ref: ImageRef, pixels: NDArray[np.uint8], alpha: float | None, quality: int) -> Crop:
    whats = {REFERENCE: "the reference, a natural image"}
    what = whats.get(ref.side, ref.side if alpha is None else f"enhanced by transport, alpha {alpha:g} ({ref.side})")
    uri = ref.source_uri
    store = next((store for store in _BROWSED if uri.startswith(store)), "")
    link = _BROWSED.get(store, "") + uri.removeprefix(store)
    return Crop(ref.side, what, _data_uri(pixels, quality), link)


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


def _data_uri(pixels: NDArray[np.uint8], quality: int) -> str:
    buffer = io.BytesIO()
    # Fine texture is what the reader judges: no chroma subsampling; a page of PNGs would be several times larger.
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling="4:4:4")
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _features(results: Sequence[Result]) -> list[str]:
    return [feature for feature in MEASURES if any(feature in result.distances for result in results)]


def _chart(
    results: Sequence[Result], feature: str, baseline: str | None, best: str | None, exact: bool
) -> dict[str, Any] | None:
    restored = next((result for result in results if result.name == baseline), None)
    series = dict.fromkeys(result.series for result in results if result.alpha is not None)
    points: list[Point] = []
    for name in series:
        members = [result for result in results if result.series == name and result.alpha is not None]
        # The restored images are alpha 1 of every series.
        on_line = [*([restored] if restored and restored.alpha is None else []), *members]
        on_line.sort(key=lambda result: 1.0 if result.alpha is None else result.alpha, reverse=True)
        points += _points(on_line, feature, name, best, exact)
    drawn = {point.label for point in points}
    alone = [result for result in results if result.alpha is None and result.name not in drawn]
    points += _points(alone, feature, "", best, exact)
    if len(points) < 2:
        return None
    title = f"By {MEASURES[feature]}"
    x_label = "PSNR, dB &#8194;(right: fewer errors)" if exact else "change, grey levels &#8194;(left: less changed)"
    return {"title": title, "svg": Markup(draw(points, title, x_label))}


def _points(results: Sequence[Result], feature: str, series: str, best: str | None, exact: bool) -> list[Point]:
    points = []
    for result in results:
        x, y = result.psnr_mean if exact else result.change, result.distances.get(feature)
        if x is not None and y is not None and math.isfinite(x):
            label = result.name if result.alpha is None else f"alpha {result.alpha:g}"
            points.append(Point(label, x, y, series, result.name == best))
    return points


def _histogram(changes: Sequence[int]) -> dict[str, Any] | None:
    if not any(changes):
        return None
    title = "How much the images were changed"
    last = max(bin for bin, count in enumerate(changes) if count)
    return {"title": title, "svg": Markup(draw_bars(changes[: last + 1], title))}


def _table(
    results: Sequence[Result], baseline: str | None, best: str | None, exact: bool
) -> tuple[list[str], list[dict[str, Any]]]:
    """Heads and rows of the figures."""
    features = _features(results)
    restored = next((result for result in results if result.name == baseline), None)
    lpips = any(result.lpips is not None for result in results)
    exactness = ["with an original", "PSNR, dB, mean", "PSNR, dB, pooled", "SSIM", *(["LPIPS"] if lpips else [])]
    heads = ["candidate", "images", *(exactness if exact else []), "change"]
    heads += [f"distance, {MEASURES[feature]}" for feature in features]
    rows = []
    for result in results:
        figures = [str(result.count), _number(result.psnr_mean, 2), _number(result.psnr_pooled, 2)]
        figures += [_number(result.ssim, 4), *([_number(result.lpips, 4)] if lpips else [])]
        texts = [result.name, str(result.images), *(figures if exact else []), _number(result.change, 1)]
        cells = [{"text": text, "change": ""} for text in texts]
        for feature in features:
            distance, before = result.distances.get(feature), restored.distances.get(feature) if restored else None
            known = distance is not None and before and result is not restored
            change = f"{distance / before - 1:+.0%}" if known and distance is not None and before else ""
            cells.append({"text": "not measured" if distance is None else f"{distance:.4g}", "change": change})
        rows.append({"cells": cells, "best": result.name == best})
    return heads, rows


def _terms(results: Sequence[Result], exact: bool) -> dict[str, str]:
    terms = {
        "alpha": "How much of the restored image is in the result: 1 is the restored image itself, 0 the fully "
        "transported one, which looks most natural.",
        "PSNR, SSIM": "How near each image is to its original, pixel by pixel; higher is better. An image can be near "
        "and look smooth: the two rarely peak at the same alpha.",
        "LPIPS": "How different each image looks from its original to a neural network; lower is better.",
        "change": "How far each image is from the restored one: root mean squared difference in grey levels of 255.",
        "distance": "How far the whole set is from natural images, between Gaussians of their features; lower is more "
        "natural. It has no unit: compare it within a column. The percentages are the change from the restored images.",
        "from ... to ...": "In the verdict: where the gain lies 95 times in 100, if other images are taken. It is "
        "measured by leaving out an eighth of the images at a time.",
        "pictures": f"The {CROP}x{CROP} pixels in which an image was changed most. A name links to the whole image.",
    }
    if not exact:
        del terms["PSNR, SSIM"]
    if all(result.lpips is None for result in results):
        del terms["LPIPS"]
    return terms


def _number(value: float | None, digits: int) -> str:
    if value is None:
        return "–"
    return f"{value:.{digits}f}" if math.isfinite(value) else "∞"
