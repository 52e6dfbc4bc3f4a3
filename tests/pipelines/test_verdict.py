"""The verdict follows from the figures and from nothing else."""

from dataclasses import replace

import pytest

from pipelines.verdict import Result, judge


def _result(name: str, alpha: float | None, psnr: float | None, latent: float | None, **distances: float) -> Result:
    series = "restored" if alpha is None else "enhanced"
    return Result(name, "u", alpha, series, 100, psnr, psnr, 0.9, None, {"latent": latent, **distances}, images=100)


RESTORED = _result("restored", None, 30.0, 10.0)


@pytest.mark.parametrize(
    ("enhanced", "kind", "best", "says"),
    [
        ([(0.75, 30.1, 6.9), (0.0, 27.0, 2.0)], "use", 0.75, "31% nearer to natural images and PSNR is 0.1 dB higher"),
        ([(0.5, 29.4, 5.0), (0.0, 27.0, 2.0)], "trade", 0.5, "50% nearer to natural images, but PSNR is 0.6 dB lower"),
        ([(0.0, 27.0, 2.0)], "trade", 0.0, "only if a natural look is all that matters"),
        ([(0.5, 31.0, 11.0), (0.0, 27.0, 12.0)], "avoid", None, "Keep the restored images"),
        ([(0.5, 30.0, 9.96)], "avoid", None, "as near"),
        ([(0.5, None, 5.0)], "use", 0.5, "50% nearer to natural images."),
        ([(0.5, float("inf"), 5.0)], "use", 0.5, "50% nearer"),
        ([(0.5, 30.0, None)], "unknown", None, "No distance could be measured"),
    ],
)
def test_the_first_sentence_is_the_answer(enhanced, kind, best, says):
    results = [_result(f"enhanced alpha={a:.2f}", a, psnr, distance) for a, psnr, distance in enhanced]
    verdict = judge([RESTORED, *results], "restored")
    assert verdict.kind == kind
    assert verdict.best == (None if best is None else f"enhanced alpha={best:.2f}")
    assert says in verdict.sentences[0]


def test_without_restored_or_enhanced_images_it_says_what_is_missing():
    assert "No restored images" in judge([_result("e", 0.5, 30, 5)], None).sentences[0]
    assert "No enhanced images" in judge([RESTORED], "restored").sentences[0]


def test_an_alpha_on_which_the_measures_disagree_is_not_the_advice():
    restored = _result("restored", None, 30.0, 10.0, pixel=1.0)
    agreed = _result("enhanced alpha=0.75", 0.75, 30.0, 7.0, pixel=0.9)
    disputed = _result("enhanced alpha=0.50", 0.5, 30.0, 5.0, pixel=1.5)
    verdict = judge([restored, agreed, disputed], "restored")
    assert verdict.best == agreed.name
    assert "agrees (10% nearer)" in verdict.sentences[1]
    assert "by 8x8 squares of pixels, though, it is farther" in verdict.sentences[2]
    only = judge([restored, disputed], "restored")
    assert (only.kind, only.best) == ("undecided", None)
    assert (
        "50% nearer to natural images by latents of the autoencoder, but 50% farther by 8x8 squares"
        in only.sentences[0]
    )


def test_restored_images_that_are_perfect_or_much_nearer_are_kept():
    perfect = _result("restored", None, float("inf"), 0.0)
    assert "farther, the restored being perfect" in judge([perfect, _result("e", 0.5, 30, 5)], "restored").sentences[0]
    assert "3.5 times as far" in judge([RESTORED, _result("e", 0.5, 30, 35)], "restored").sentences[0]


def test_few_images_are_told():
    few = Result("e", "u", 0.5, "e", 5, 30.0, 30.0, 0.9, None, {"latent": 5.0}, images=5)
    verdict = judge([RESTORED, few], "restored")
    assert verdict.kind == "undecided"
    assert "5 images are too few to tell that from chance" in verdict.sentences[0]


def _in_parts(one: Result, spread: float) -> Result:
    """The same, with a distance that differs between the parts that are left out."""
    latent = one.distances["latent"]
    without = {part: latent * (1 + spread * (-1) ** part) for part in range(8)}
    return replace(one, distances_without={"latent": without})


def test_a_gain_that_chance_explains_is_no_advice_and_how_many_images_would_tell_is_said():
    restored, enhanced = _in_parts(RESTORED, 0), _result("enhanced alpha=0.50", 0.5, 30.0, 8.0)
    sure = judge([restored, _in_parts(enhanced, 0.01)], "restored")
    # Gains without each part are 20% up or down by 0.8%: error 0.008 sqrt(7), half width 2.36 times that.
    assert sure.kind == "use"
    assert "20% nearer (15% to 25%) to natural images" in sure.sentences[0]
    chance = judge([restored, _in_parts(enhanced, 0.06)], "restored")
    assert (chance.kind, chance.best) == ("undecided", None)
    # The half width is 30% of the restored distance, one and a half times the gain: 2.25 times as many images.
    assert (
        "with 100 images chance alone moves that by 30% up or down. About 230 images would tell."
        in (chance.sentences[0])
    )


def test_an_autoencoder_that_judges_its_own_results_is_told():
    enhanced = _result("e", 0.5, 30, 5)
    own, other, unknown = (
        " ".join(judge([RESTORED, enhanced], "restored", flatters).sentences) for flatters in (True, False, None)
    )
    assert "the autoencoder that made the enhanced images, which flatters them" in own
    assert "autoencoder" not in other
    assert "If it is the one that made the enhanced images" in unknown
