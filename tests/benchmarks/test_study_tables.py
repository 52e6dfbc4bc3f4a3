"""The study's tables say what its rows say."""

import pytest

from benchmarks.study_tables import Figures, curves, psnr_at_distance, render


def _rows():
    looks = {"spectrum": 5.0, "niqe": 4.0, "grid": 1.0, "edge": 0.5}
    yield {"restorer": "blur", "alpha": 1.0, "psnr": 25.0, "judge": 4.0, "pixel": 2.0, **looks}
    yield {"restorer": "blur", "alpha": 0.0, "psnr": 24.5, "judge": 3.0, "pixel": 2.5, **looks}
    for method, psnr in (("matched", 24.0), ("paper", 22.0)):
        for draw in (0, 1):
            for alpha, distance in ((0.0, 1.0), (0.5, 2.0)):
                kind = {"n": 16, "patch_size": 3, "method": method, "paired": False, "draw": draw}
                figures = {"psnr": psnr + 2 * alpha + draw, "judge": distance, "pixel": distance, **looks}
                looks["grid"] += 1
                yield {"restorer": "blur", **kind, "alpha": alpha, **figures}


FOUND = {"vae": "x", "test_images": 3, "chart": "x.svg", "rows": list(_rows())}


def test_psnr_at_a_distance_is_read_off_the_branch_towards_the_restoration():
    curve = [
        {"alpha": -0.5, "psnr": 20.0, "judge": 3.0},
        {"alpha": 0.0, "psnr": 22.0, "judge": 1.0},
        {"alpha": 0.5, "psnr": 24.0, "judge": 2.0},
        {"alpha": 1.0, "psnr": 25.0, "judge": 4.0},
        {"alpha": 1.25, "psnr": 24.0, "judge": 9.0},
    ]
    assert psnr_at_distance(curve, 1.5) == pytest.approx(23.0)
    assert psnr_at_distance(curve, 3.0) == pytest.approx(24.5)
    assert psnr_at_distance(curve, 0.9) is None
    assert psnr_at_distance(curve, 5.0) is None


def test_tables_hold_means_and_spreads_over_draws():
    text = render(FOUND)
    assert "| blur | 24.50 / 75% | 24.50 ± 0.50 / 25 ± 0% |" in text
    assert "| blur | 24.50 ± 0.50 / 25 ± 0% | 22.50 ± 0.50 / 25 ± 0% |" in text
    assert "| blur | +2.00 ± 0.00 | +2.00 ± 0.00 |" in text
    looks = [f"5.0 / 4.0 / {grid:.2f} / 0.50" for grid in (1, 1, 2, 6)]
    assert f"| blur | {' | '.join(looks)} |" in text
    assert "paired" not in text.split("## Each setting")[1].split("##")[0]


def test_free_alphas_must_win_in_every_draw():
    rows = [dict(row) for row in FOUND["rows"]]
    assert "| blur | 0.5 |" in render({**FOUND, "rows": rows}).split("## Free lunch")[1]
    next(row for row in rows if row.get("draw") == 1 and row["alpha"] == 0.5 and row["method"] == "matched")["psnr"] = (
        24.9
    )
    assert "| blur | none |" in render({**FOUND, "rows": rows}).split("## Free lunch")[1]


def test_curves_are_one_chart_for_each_restorer():
    found = {**FOUND, "rows": [*FOUND["rows"], *({**row, "restorer": "jpeg"} for row in FOUND["rows"])]}
    assert Figures(found["rows"]).restorers == ["blur", "jpeg"]
    assert curves(found).count("<svg") == 3


def test_four_images_are_compared_with_a_hundred_at_the_distance_that_they_reach():
    def with_n(n, psnr, distances):
        kind = {"restorer": "blur", "n": n, "patch_size": 3, "method": "matched", "paired": False, "draw": 0}
        for alpha, distance in zip((0.0, 0.5), distances, strict=True):
            yield {**kind, "alpha": alpha, "psnr": psnr + 2 * alpha, "judge": distance, "pixel": distance}

    rows = [*FOUND["rows"], *with_n(4, 22.0, (2.0, 5.0)), *with_n(100, 24.0, (1.0, 2.0))]
    table = render({**FOUND, "rows": rows}).split("## Four images")[1].split("##")[0]
    assert "| blur | -3.00 | not reached | not reached | not reached |" in table
