"""The demo, which is also what the README's first screen shows."""

import contextlib
import io
import json
import re

import pytest
from PIL import Image

from pipelines import demo


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """Of a run, as `make demo` does it, but for its silence."""
    output, told = tmp_path_factory.mktemp("demo"), io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        assert demo.main(["--output", str(output), "--quiet"]) == 0
    assert told.getvalue() == ""
    return output


def test_it_moves_images_towards_the_originals(output):
    rows = {row["alpha"]: row for row in json.loads((output / "totals.json").read_text())["candidates"]}
    restored = rows[1.0]
    assert rows[0.0]["distances"]["latent"] < 0.6 * restored["distances"]["latent"]
    assert rows[0.5]["distances"]["latent"] < restored["distances"]["latent"]
    for alpha in (0.0, 0.5):
        assert rows[alpha]["psnr_mean"] > restored["psnr_mean"] - 0.5
    verdict = json.loads((output / "totals.json").read_text())["verdict"]
    assert re.search(r"nearer (\(.*\) )?to natural images", verdict[0])
    assert any("which flatters" in sentence for sentence in verdict)


def test_it_draws_a_sheet(output):
    with Image.open(output / "before-after.png") as sheet:
        assert sheet.width > 5 * 256
        assert sheet.height > 4 * 256


def test_every_photograph_is_fitted_on_or_tried(output):
    fitted, tried = (
        {json.loads(line)["key"] for line in (output / "work/natural" / f"{name}.jsonl").read_text().splitlines()}
        for name in ("fitted", "tried")
    )
    assert not fitted & tried
    assert fitted | tried == {path.stem for path in demo.PHOTOS.glob("*.jpg")}
