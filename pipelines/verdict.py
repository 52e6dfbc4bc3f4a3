"""What an evaluation comes to, in plain words; every sentence is derived from the figures."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from ot_core.leaving_out import half_width

#: The measure that decides, where there are several: the earlier, the better it is known to agree with people.
_PREFERENCE = ("inception", "latent", "pixel")
#: A change of the distance below this share is none.
_CLEAR_GAIN = 0.01
#: A change of PSNR below this, in dB, is none.
_CLEAR_DB = 0.05
#: The most PSNR, in dB, that is given for naturalness before we advise against.
_FAIR_PRICE = 1.0
#: Below so many images, figures move by chance.
_FEW_IMAGES = 20

MEASURES = {
    "inception": "Inception features (FID)",
    "latent": "latents of the autoencoder",
    "pixel": "8x8 squares of pixels",
    "scene": "natural scene statistics (NIQE)",
}


@dataclass(frozen=True)
class Result:
    """The figures of one candidate.

    Attributes:
        name, url, alpha, series: see `pipelines.candidates.Candidate`.
        count: images compared with their reference.
        images: with or without a reference.
        psnr_mean, psnr_pooled: dB, mean over images and of all their pixels; None where nothing was compared.
        ssim, lpips: means over images, or None.
        change: root mean squared difference from the restored images, in grey levels of 255, the mean over images; None
            where nothing was compared with them.
        distances: from the reference, by feature; None where it couldn't be measured.
        distances_without: by feature, and by the random part of the images that is left out.
    """

    name: str
    url: str
    alpha: float | None
    series: str
    count: int
    psnr_mean: float | None
    psnr_pooled: float | None
    ssim: float | None
    lpips: float | None
    distances: Mapping[str, float | None]
    images: int = 0
    change: float | None = None
    distances_without: Mapping[str, Mapping[int, float]] = field(default_factory=dict)


class Verdict(NamedTuple):
    """The answer.

    Attributes:
        kind: "use", "trade" (more natural, but PSNR falls), "undecided" (the measures contradict each other, or chance
            may explain the gain), "avoid" or "unknown".
        sentences: the first one is the answer.
        best: name of the candidate to use, or None.
        feature: the measure that decided, or None.
    """

    kind: Literal["use", "trade", "undecided", "avoid", "unknown"]
    sentences: tuple[str, ...]
    best: str | None = None
    feature: str | None = None


def judge(results: Sequence[Result], baseline_name: str | None, flatters: bool | None = None) -> Verdict:
    """Says whether the enhanced candidates are better than the baseline, and which is best.

    The best is the nearest to the reference's distribution among those that lose no PSNR; where there is none, among
    those that lose at most 1 dB; else the nearest of all. A candidate that another measure finds clearly farther away
    is never advised, and neither is one whose gain chance may explain. Where nothing else is left, the answer is
    "undecided".

    Args:
        results: of all candidates.
        baseline_name: the restored.
        flatters: whether the autoencoder whose latents are compared is one that made candidates; None if unknown.
    """
    baseline = next((result for result in results if result.name == baseline_name), None)
    if baseline is None:
        return Verdict(
            "unknown",
            (
                "No restored images were given, so there is nothing to compare the enhanced with: "
                "pass them as another --candidate.",
            ),
        )
    enhanced = [result for result in results if result.alpha is not None and result.name != baseline_name]
    if not enhanced:
        return Verdict(
            "unknown",
            (
                "No enhanced images were given: pass the output folder of dot-transport as another "
                "--candidate to see what it gains.",
            ),
        )
    feature = next((f for f in _PREFERENCE if baseline.distances.get(f) is not None), None)
    measured = [result for result in enhanced if feature and result.distances.get(feature) is not None]
    if feature is None or not measured:
        return Verdict("unknown", ("No distance could be measured: see the failures.",))

    def gain(result: Result) -> float:
        return _gain(result, baseline, feature) or 0.0

    def cost(result: Result) -> float:
        return _psnr_loss(result, baseline) or 0.0

    nearest = max(measured, key=gain)
    if gain(nearest) < _CLEAR_GAIN:
        first = (
            f"Keep the restored images: at no alpha are the enhanced ones nearer to natural images "
            f"(the best, {_at(nearest)}, is {_nearer(gain(nearest))})."
        )
        notes = [*_second_opinions(baseline, nearest, feature), *_cautions(nearest, feature, flatters)]
        return Verdict("avoid", (first, *notes), None, feature)
    clear = [result for result in measured if gain(result) >= _CLEAR_GAIN]
    agreed = [result for result in clear if not _farther_by(result, baseline)]
    if not agreed:
        against = " and ".join(
            f"{_nearer(_gain(nearest, baseline, f) or 0.0)} by {MEASURES[f]}" for f in _farther_by(nearest, baseline)
        )
        first = (
            f"Undecided, because the measures contradict each other: {_at(nearest)} the results are "
            f"{_nearer(gain(nearest))} to natural images by {MEASURES[feature]}, but {against}. "
            "Look at the pictures, or add an independent measure with --features inception."
        )
        return Verdict("undecided", (first, *_cautions(nearest, feature, flatters)), None, feature)
    clear = [result for result in agreed if _is_sure(result, baseline, feature)]
    if not clear:
        unsure = max(agreed, key=gain)
        notes = [*_second_opinions(baseline, unsure, feature), *_cautions(unsure, feature, flatters)]
        return Verdict("undecided", (_by_chance(unsure, baseline, feature), *notes), None, feature)
    free = [result for result in clear if cost(result) <= _CLEAR_DB]
    fair = [result for result in clear if cost(result) <= _FAIR_PRICE]
    best = max(free or fair or [nearest], key=gain)
    figures = f"the results are {_nearer(gain(best))}{_range(best, baseline, feature)} to natural images"
    figures += _and_psnr(best, baseline)
    kind: Literal["use", "trade"] = "use" if free else "trade"
    if free:
        first = f"Use the enhanced images: {_at(best)} {figures}."
    elif fair:
        first = f"Use the enhanced images where looking natural matters more than exactness: {_at(best)} {figures}."
    else:
        first = f"Use the enhanced images only if a natural look is all that matters: {_at(best)} {figures}."
    more = []
    if gain(nearest) > gain(best) + _CLEAR_GAIN:
        but = "".join(f"; by {MEASURES[other]}, though, it is farther" for other in _farther_by(nearest, baseline))
        price = _and_psnr(nearest, baseline)
        more.append(f"Nearest of all is {_at(nearest, preposition='')}: {_nearer(gain(nearest))}{price}{but}.")
    notes = [*_second_opinions(baseline, best, feature), *more, *_cautions(best, feature, flatters)]
    return Verdict(kind, (first, *notes), best.name, feature)


def _second_opinions(baseline: Result, best: Result, feature: str) -> list[str]:
    notes = []
    for other in (f for f in _PREFERENCE if f != feature and f in best.distances):
        gain = _gain(best, baseline, other)
        if gain is not None:
            agrees = "agrees" if (gain >= 0) == ((_gain(best, baseline, feature) or 0) >= 0) else "disagrees"
            look = "" if agrees == "agrees" else "; look at the pictures before you decide"
            notes.append(f"A second measure, {MEASURES[other]}, {agrees} ({_nearer(gain)}){look}.")
    return notes


def _cautions(best: Result, feature: str, flatters: bool | None) -> list[str]:
    notes = []
    if feature == "latent" and flatters is not False:
        whose = (
            "the autoencoder that made the enhanced images, which flatters them"
            if flatters
            else "an autoencoder. If it is the one that made the enhanced images, it flatters them"
        )
        notes.append(
            f"The distance is that between latents of {whose}: another --vae, or --features inception, is independent."
        )
    if best.count == 0:
        notes.append(
            "No image has an original of the same name among the reference, so how exact the results are isn't known."
        )
    return notes


def gain_interval(result: Result, baseline: Result, feature: str) -> tuple[float, float] | None:
    """The share by which the distance falls, from and to, 95 times in 100 (`ot_core.leaving_out`); None if unknown."""
    gain = _gain(result, baseline, feature)
    without, before = (one.distances_without.get(feature, {}) for one in (result, baseline))
    gains = [1 - without[part] / before[part] for part in sorted(without) if before.get(part)]
    half = half_width(gains)
    return None if gain is None or math.isnan(half) else (gain - half, gain + half)


def _is_sure(result: Result, baseline: Result, feature: str) -> bool:
    """Whether chance doesn't explain the gain. Of features that have no interval, many images are enough."""
    interval = gain_interval(result, baseline, feature)
    return result.images >= _FEW_IMAGES if interval is None else interval[0] > 0


def _by_chance(result: Result, baseline: Result, feature: str) -> str:
    found, gain = gain_interval(result, baseline, feature), _gain(result, baseline, feature) or 0.0
    start = f"Undecided: {_at(result)} the results are {_nearer(gain)} to natural images"
    if found is None:
        return f"{start}, but {result.images} images are too few to tell that from chance; use {_FEW_IMAGES} or more."
    half = (found[1] - found[0]) / 2
    needed = _rounded_up(result.images * (half / gain) ** 2)
    return (
        f"{start}, but with {result.images} images chance alone moves that by {half:.0%} up or down. "
        f"About {needed} images would tell."
    )


def _rounded_up(number: float) -> int:
    """To two digits."""
    unit = 10 ** max(0, math.floor(math.log10(number)) - 1)
    return math.ceil(number / unit) * unit


def _range(result: Result, baseline: Result, feature: str) -> str:
    found = gain_interval(result, baseline, feature)
    return "" if found is None else f" ({found[0]:.0%} to {found[1]:.0%})"


def _gain(result: Result, baseline: Result, feature: str) -> float | None:
    """Share by which the distance fell; negative where it grew, infinitely so from zero."""
    distance, before = result.distances.get(feature), baseline.distances.get(feature)
    if distance is None or before is None:
        return None
    if before == 0:
        return 0.0 if distance == 0 else -math.inf
    return 1 - distance / before


def _farther_by(result: Result, baseline: Result) -> list[str]:
    """The measures by which a candidate is clearly farther from natural images than the baseline."""
    return [f for f in _PREFERENCE if (_gain(result, baseline, f) or 0.0) < -_CLEAR_GAIN]


def _psnr_loss(result: Result, baseline: Result) -> float | None:
    if result.psnr_mean is None or baseline.psnr_mean is None:
        return None
    loss = baseline.psnr_mean - result.psnr_mean
    return loss if math.isfinite(loss) else None


def _at(result: Result, preposition: str = "at ") -> str:
    several = result.name.startswith(f"{result.series} alpha=") or result.name == result.series
    return f"{preposition}alpha {result.alpha:g} ({result.series})" if several else f"{preposition}{result.name}"


def _nearer(gain: float) -> str:
    if abs(gain) < _CLEAR_GAIN / 2:
        return "as near"
    if gain < -1:
        return f"{1 - gain:.1f} times as far" if math.isfinite(gain) else "farther, the restored being perfect"
    return f"{abs(gain):.0%} {'nearer' if gain > 0 else 'farther'}"


def _and_psnr(result: Result, baseline: Result) -> str:
    loss = _psnr_loss(result, baseline)
    if loss is None:
        return ""
    if abs(loss) < _CLEAR_DB:
        return " and PSNR stays the same"
    return f" and PSNR is {-loss:.1f} dB higher" if loss < 0 else f", but PSNR is {loss:.1f} dB lower"
