"""The demo, which is also what the README's first screen shows."""

from PIL import Image

from pipelines import demo, evaluate


def test_the_demo_moves_images_towards_the_originals_draws_a_sheet_and_can_be_evaluated(tmp_path, capsys):
    assert demo.main(["--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "before-after.png" in printed
    restored = demo.measure(tmp_path / "restored", tmp_path / "original")
    for alpha in ("0.00", "0.50"):
        enhanced = demo.measure(tmp_path / f"enhanced/images/alpha={alpha}", tmp_path / "original")
        assert enhanced.distance < 0.6 * restored.distance
        assert enhanced.psnr > restored.psnr - 0.5
    folders = ["--candidate", f"restored={tmp_path}/restored", f"enhanced={tmp_path}/enhanced"]
    assert evaluate.main(["--reference", f"{tmp_path}/original", *folders, "--report", f"{tmp_path}/report"]) == 0
    assert "nearer to natural images" in capsys.readouterr().out
    with Image.open(tmp_path / "before-after.png") as sheet:
        assert sheet.width > 5 * 256
        assert sheet.height > 4 * 256


def test_no_photograph_is_both_fitted_and_transported(tmp_path):
    demo.prepare(tmp_path)
    fitted, pairs, transported = (
        {path.name for path in (tmp_path / name).iterdir()} for name in ("natural", "natural-restored", "restored")
    )
    assert fitted == pairs
    assert not fitted & transported
    assert len(fitted) == 12
    assert len(fitted | transported) == len(list(demo.PHOTOS.glob("*.jpg")))
