"""What a map does to pairs that were kept back, and what is said of it."""

import dataclasses

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ot_core import load_autoencoder
from ot_core.check import MapCheck, Measured, Pair, middle, part_to_keep_back
from ot_core.checking import check_map

RNG = np.random.default_rng(0)
RESTORED = Measured(psnr=25.0, distance=1.0, spectrum=9.0, grid=1.0)


def found(**results: dict[str, float]) -> MapCheck:
    """A check with alphas 0 and 0.5, each the restored images' figures but for what is given."""
    alphas = {"full": 0.0, "half": 0.5}
    each = tuple((alphas[name], dataclasses.replace(RESTORED, **given)) for name, given in results.items())
    return MapCheck(4, RESTORED, each)


class TestSentence:
    def test_the_nearest_alpha_that_costs_nothing_is_chosen(self) -> None:
        check = found(full={"distance": 0.2, "psnr": 24.0}, half={"distance": 0.5, "psnr": 25.2})
        assert check.alpha == 0.5
        assert check.sentence == "helps: use alpha 0.5 (50% nearer to natural images, PSNR +0.2 dB, on 4 pairs)"

    def test_what_costs_exactness_is_told(self) -> None:
        check = found(full={"distance": 0.2, "psnr": 24.0}, half={"distance": 0.5, "psnr": 24.7})
        assert check.alpha is None
        assert check.sentence.startswith("trades exactness for a natural look: alpha 0 (80% nearer")

    @pytest.mark.parametrize(
        ("spoilt", "why"), [({"grid": 4.0}, "it leaves a weave"), ({"spectrum": 11.0}, "it loses fine detail")]
    )
    def test_a_weak_autoencoder_is_named(self, spoilt: dict[str, float], why: str) -> None:
        check = found(full={"distance": 0.2, **spoilt}, half={"distance": 0.5, **spoilt})
        assert (check.alpha, check.bold_alpha) == (None, None)
        assert check.sentence == f"does not help this restorer: the autoencoder is too weak: {why}"

    def test_no_gain_is_no_help(self) -> None:
        check = found(full={"distance": 0.99, "psnr": 26.0}, half={"distance": 1.2})
        assert check.sentence == "does not help this restorer: at no alpha are the results nearer to natural images"

    def test_survives_the_map_file(self) -> None:
        check = found(full={"distance": 0.2}, half={"distance": 0.5})
        assert MapCheck.from_json(check.to_json()) == check

    @pytest.mark.parametrize("text", ["[]", "{}", '{"pairs": 1, "restored": {}, "results": []}', "null"])
    def test_anything_else_is_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match="the check of a map"):
            MapCheck.from_json(text)


class TestCheckMap:
    @staticmethod
    def image(side: int = 96) -> NDArray[np.float32]:
        coarse = torch.from_numpy(RNG.random((1, 3, side // 8, side // 8)))
        smooth = torch.nn.functional.interpolate(coarse, scale_factor=8, mode="bilinear")
        pixels: NDArray[np.float32] = smooth[0].permute(1, 2, 0).numpy().astype(np.float32)
        return 0.25 + 0.5 * pixels

    def test_a_map_that_undoes_the_restorer_is_perfect(self) -> None:
        originals = [self.image() for _ in range(2)]
        pairs = [Pair(x * 0.5, x) for x in originals]  # in [-1, 1], where latents are, 2 (x / 2) - 1
        residual, check = check_map(pairs, load_autoencoder("pixels"), lambda z: 2 * z + 1)
        assert residual == 0  # pixels lose nothing
        assert check.alpha == 0
        assert dict(check.results)[0.0].psnr > 50
        assert check.restored.psnr < 20

    def test_what_is_lost_is_added_back_as_far_as_pairs_tell(self) -> None:
        """The default autoencoder loses detail. Without any transport, all of it belongs to the original."""
        pairs = [Pair(x, x) for x in (self.image() for _ in range(2))]
        residual, check = check_map(pairs, load_autoencoder(), lambda z: z)
        assert residual == pytest.approx(0.5, abs=1e-3)
        without = check_map(pairs, load_autoencoder(), lambda z: z, residual=0)[1]
        gain = dict(check.results)[0.0].psnr - dict(without.results)[0.0].psnr
        assert gain == pytest.approx(20 * np.log10(2), abs=0.4)  # and rounding to 8 bits

    def test_a_weight_that_is_given_is_kept(self) -> None:
        pair = Pair(self.image(), self.image())
        assert check_map([pair], load_autoencoder("pixels"), lambda z: z, residual=0.25)[0] == 0.25


def test_the_middle_keeps_to_the_unit_and_refuses_small_images() -> None:
    pixels = np.arange(100 * 700 * 3).reshape(100, 700, 3)
    assert middle(pixels, 512, 8).shape == (96, 512, 3)  # type: ignore[union-attr]
    assert middle(pixels[:50], 512) is None


@pytest.mark.parametrize(
    ("counts", "part"),
    [
        ({0: 6, 1: 4, 2: 2}, 1),
        ({0: 1, 1: 3}, 1),
        ({0: 0, 1: 1}, 1),
        ({0: 0}, None),
        ({}, None),
        ({3: 20, 2: 9}, 2),
    ],
)
def test_the_smallest_part_of_enough_pairs_is_kept_back(counts: dict[int, int], part: int | None) -> None:
    assert part_to_keep_back({name: range(count) for name, count in counts.items()}) == part
