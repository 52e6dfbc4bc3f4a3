"""The evaluation as users run it: real files, through its command line, against torchmetrics and torch-fidelity."""

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch_fidelity
import torchmetrics
from PIL import Image
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from ot_core import load_autoencoder
from ot_core.statistics import GaussianStatistics
from ot_core.transport_map import gelbrich_distance_squared
from pipelines import evaluate, fit, transport
from pipelines.candidates import baseline_of, parse_candidates

PARALLEL = ["--direct_num_workers", "2", "--direct_running_mode", "multi_processing"]


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _blurred(pixels: np.ndarray) -> np.ndarray:
    image = Image.fromarray(pixels)
    return np.asarray(image.reduce(2).resize(image.size, Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def archive(tmp_path_factory, photo, vae):
    """Six originals, their blurred "restorations", and what transport made of these at two alphas and at one."""
    root = tmp_path_factory.mktemp("evaluate")
    for index in range(6):
        pixels = photo(72, 88 + 8 * (index % 2), seed=index)
        _save(root / f"original/sub/{index}.png", pixels)
        _save(root / f"restored/sub/{index}.png", _blurred(pixels))
    map_url = str(root / "map.safetensors")
    sides = ["--target", str(root / "original"), "--source", str(root / "restored")]
    assert fit.main([*sides, "--map", map_url, "--vae", vae, "--patch_size", "1"]) == 0
    given = ["--input", str(root / "restored"), "--map", map_url]
    assert transport.main([*given, "--output", str(root / "two"), "--alpha", "0", "0.5"]) == 0
    assert transport.main([*given, "--output", str(root / "one"), "--alpha", "0.25"]) == 0
    return root


def _evaluate(*arguments: str) -> int:
    return evaluate.main(["--reference", *arguments])


def _totals(report: Path) -> dict[str, dict]:
    return {row["name"]: row for row in json.loads((report / "totals.json").read_text())["candidates"]}


def _rows(report: Path, name: str) -> list[dict]:
    return [row for file in sorted(report.glob(f"{name}-*.parquet")) for row in pq.read_table(file).to_pylist()]


def _tensor(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(path)).transpose(2, 0, 1)[None].astype(np.float32) / 255)


def test_figures_are_those_of_torchmetrics_and_the_distance_that_of_all_latents(archive, vae, tmp_path, capsys):
    arguments = [f"restored={archive}/restored", f"enhanced={archive}/two", "--report", str(tmp_path), "--vae", vae]
    assert _evaluate(str(archive / "original"), "--candidate", *arguments) == 0
    totals = _totals(tmp_path)
    assert list(totals) == ["restored", "enhanced alpha=0.50", "enhanced alpha=0.00"]
    assert [row["alpha"] for row in totals.values()] == [None, 0.5, 0.0]
    folders = [archive / "restored", archive / "two/images/alpha=0.50", archive / "two/images/alpha=0.00"]
    autoencoder = load_autoencoder(vae)

    def latents(folder: Path) -> GaussianStatistics:
        encoded = [autoencoder.encode(autoencoder.pad(_tensor(p)))[0] for p in sorted(folder.rglob("*.png"))]
        return GaussianStatistics.of(torch.cat([latent.flatten(1).T for latent in encoded]).double().numpy())

    for (name, found), folder in zip(totals.items(), folders, strict=True):
        pooled, per_image, ssim = torchmetrics.image.PeakSignalNoiseRatio(data_range=1.0), {}, []
        for path in sorted(folder.rglob("*.png")):
            key = str(path.relative_to(folder).with_suffix(""))
            pair = _tensor(path), _tensor(archive / f"original/{key}.png")
            per_image[key] = float(pooled(*pair))
            # In float64: in float32 torchmetrics is itself 1e-4 off on flat images, which a random autoencoder makes.
            double = [x.double() for x in pair]
            ssim.append(float(torchmetrics.image.StructuralSimilarityIndexMeasure(data_range=1.0)(*double)))
        assert found["count"] == 6
        assert found["psnr_pooled"] == pytest.approx(float(pooled.compute()), rel=1e-4)
        assert found["psnr_mean"] == pytest.approx(np.mean(list(per_image.values())), rel=1e-4)
        assert found["ssim"] == pytest.approx(np.mean(ssim), rel=1e-4)
        rows = {row["key"]: row for row in _rows(tmp_path, "images") if row["candidate"] == name}
        assert {key: row["psnr"] for key, row in rows.items()} == pytest.approx(per_image, rel=1e-4)
        assert {row["lpips"] for row in rows.values()} == {None}
        expected = gelbrich_distance_squared(latents(archive / "original"), latents(folder))
        assert found["distances"]["latent"] == pytest.approx(expected, rel=1e-4)
        assert found["distances"]["pixel"] > 0
    assert _rows(tmp_path, "failures") == []
    printed = capsys.readouterr().out
    assert json.loads((tmp_path / "totals.json").read_text())["verdict"][0] in printed
    assert "24 images in" in printed


@pytest.fixture(scope="module")
def inception(tmp_path_factory) -> str:
    """Random weights of torch-fidelity's network, scaled so that its features differ between images."""
    path = tmp_path_factory.mktemp("inception") / "inception.pth"

    class Blank(FeatureExtractorInceptionV3):
        def load_state_dict(self, state: dict) -> None:
            for module in self.modules():
                if isinstance(module, torch.nn.Conv2d):
                    torch.nn.init.kaiming_normal_(module.weight)

    torch.save({}, path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(Blank("blank", ["2048"], feature_extractor_weights_path=str(path)).state_dict(), path)
    return str(path)


def test_two_processes_give_the_figures_of_one_and_inception_features_the_fid_of_torch_fidelity(
    archive, vae, inception, tmp_path
):
    original, restored = archive / "original/sub", archive / "restored/sub"
    fid = torch_fidelity.calculate_metrics(
        input1=str(original),
        input2=str(restored),
        fid=True,
        cuda=False,
        cache=False,
        verbose=False,
        batch_size=1,
        save_cpu_ram=True,
        feature_extractor_weights_path=inception,
    )["frechet_inception_distance"]
    common = [str(original), "--candidate", f"restored={restored}", "--vae", vae, "--report"]
    features = ["--features", "latent", "pixel", "inception", "--inception_weights", inception]
    assert _evaluate(*common, str(tmp_path / "1")) == 0
    assert _evaluate(*common, str(tmp_path / "2"), *features, *PARALLEL) == 0
    one, two = (_totals(tmp_path / name)["restored"] for name in ("1", "2"))
    assert fid > 0
    assert two["distances"].pop("inception") == pytest.approx(fid, rel=1e-4)
    for figure in ("count", "psnr_mean", "psnr_pooled", "ssim", "distances"):
        assert two[figure] == pytest.approx(one[figure], rel=1e-6)
    assert _rows(tmp_path / "1", "images") == _rows(tmp_path / "2", "images")


def test_each_bad_image_is_one_failure_and_the_others_are_compared(archive, vae, tmp_path, photo, capsys):
    candidate = tmp_path / "candidate"
    _save(candidate / "sub/0.png", photo(72, 88, seed=0))
    _save(candidate / "sub/1.png", photo(72, 88, seed=1))  # its reference is 96 wide
    _save(candidate / "sub/stranger.png", photo(72, 88, seed=2))
    good = (candidate / "sub/0.png").read_bytes()
    (candidate / "sub/2.png").write_bytes(good[: len(good) // 2])
    report = tmp_path / "report"
    arguments = ["--candidate", f"restored={candidate}", "--report", str(report), "--vae", vae]
    assert _evaluate(str(archive / "original"), *arguments) == 0
    failures = {row["key"]: row for row in _rows(report, "failures")}
    assert {key: (row["stage"], row["error_type"]) for key, row in failures.items()} == {
        "sub/1": ("compare", "size_mismatch"),
        "sub/2": ("read", "damaged"),
    }
    assert "88x72" in failures["sub/1"]["message"]
    assert "96x72" in failures["sub/1"]["message"]
    row = _totals(report)["restored"]
    assert row["count"] == 1
    assert row["psnr_mean"] is None  # infinite, which JSON has no word for
    assert row["distances"]["latent"] > 0
    assert "3 references have no candidate" in capsys.readouterr().out
    assert _evaluate(str(archive / "original"), *arguments, "--max_failure_fraction", "0.1") == 1


class _References(HTMLParser):
    """Collects what a page would load, and what it links to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert tag not in ("link", "iframe", "object")
        self.found += [value or "" for name, value in attributes if name in ("src", "srcset", "data")]
        self.links += [value or "" for name, value in attributes if name == "href"]


def test_the_page_stands_alone_and_stays_small_with_large_images(tmp_path, photo):
    large = photo(1500, 2000)
    noise = np.random.default_rng(0).integers(-40, 40, large.shape)
    for index in range(10):  # twenty candidates' images
        _save(tmp_path / f"original/{index}.bmp", large)
        noisy = np.clip(large + np.roll(noise, index, axis=0), 0, 255).astype(np.uint8)
        _save(tmp_path / f"restored/{index}.bmp", large)
        (tmp_path / "enhanced/images/alpha=0.00").mkdir(parents=True, exist_ok=True)
        _save(tmp_path / f"enhanced/images/alpha=0.00/{index}.bmp", noisy)
    candidates = [f"restored={tmp_path}/restored", f"enhanced={tmp_path}/enhanced"]
    report = tmp_path / "report"
    arguments = ["--candidate", *candidates, "--report", str(report), "--features", "pixel"]
    assert _evaluate(str(tmp_path / "original"), *arguments) == 0
    page = (report / "report.html").read_text()
    assert len(page.encode()) < 5e6
    parser = _References()
    parser.feed(page)
    # Of three most changed and three typical images three side by side and two under the slider; thumbnails of ten.
    assert len(parser.found) == 6 * (3 + 2) + 10 * 2
    assert all(reference.startswith("data:image/jpeg;base64,") for reference in parser.found)
    assert all(Path(link).is_file() for link in parser.links)
    assert not re.search(r"url\(|@import", page)


def test_the_page_shows_the_curve_and_pictures_of_every_alpha(archive, vae, tmp_path):
    candidates = [f"restored={archive}/restored", f"enhanced={archive}/two"]
    arguments = ["--candidate", *candidates, "--report", str(tmp_path), "--vae", vae]
    assert _evaluate(str(archive / "original"), *arguments) == 0
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 3
    assert page.count("<polyline") == 2
    # Restored, two alphas and the reference of six images, three of them under the slider, and two thumbnails.
    assert page.count("<img ") == 6 * (4 + 3 + 2)
    for label in ("alpha 0.5", "alpha 0", "restored"):
        assert f">{label}</text>" in page


def test_pictures_of_pure_noise_can_be_shown(tmp_path, capsys):
    for name in ("original", "restored", "enhanced/images/alpha=0.00"):
        rng = np.random.default_rng(len(name))
        _save(tmp_path / name / "noise.png", rng.integers(0, 256, (300, 300, 3), dtype=np.uint8))
    candidates = [f"restored={tmp_path}/restored", f"enhanced={tmp_path}/enhanced"]
    arguments = ["--candidate", *candidates, "--report", str(tmp_path / "report"), "--features", "pixel"]
    assert _evaluate(str(tmp_path / "original"), *arguments) == 0
    assert (tmp_path / "report/report.html").read_text().count("<img ") == 3 + 2 + 2


def test_candidates_of_an_output_folder_are_named_by_alpha_and_the_restored_one_is_known(archive):
    candidates = parse_candidates([f"mine={archive}/two/", f"its={archive}/restored", f"quarter={archive}/one"])
    assert [(c.name, c.alpha, c.series) for c in candidates] == [
        ("mine alpha=0.50", 0.5, "mine"),
        ("mine alpha=0.00", 0.0, "mine"),
        ("its", None, "its"),
        ("quarter", 0.25, "quarter"),
    ]
    assert candidates[3].url == f"{archive}/one/images"
    assert baseline_of(candidates) == candidates[2]
    assert baseline_of(candidates[:2]) is None
    (direct,) = parse_candidates([f"half={archive}/two/images/alpha=0.50"])
    assert (direct.name, direct.alpha) == ("half", 0.5)


def test_candidates_are_found_on_every_store(store, archive):
    import fsspec

    fs, path = fsspec.core.url_to_fs(store)
    for file in sorted((archive / "two").rglob("*.png")):
        target = f"{path}/two/{file.relative_to(archive / 'two')}"
        fs.makedirs(target.rpartition("/")[0], exist_ok=True)
        fs.pipe_file(target, file.read_bytes())
    assert [c.alpha for c in parse_candidates([f"e={store}/two"])] == [0.5, 0.0]
    assert fsspec.core.url_to_fs(parse_candidates([f"e={store}/two"])[0].url)[0].protocol == fs.protocol


@pytest.mark.parametrize(
    ("module", "flags"),
    [
        ("torch_fidelity.feature_extractor_inceptionv3", ["--features", "inception", "--inception_weights", "new.pth"]),
        ("torchmetrics.functional.image.lpips", ["--lpips_weights", "new.pth"]),
    ],
)
def test_what_is_not_installed_is_told_with_the_extra_that_brings_it(
    archive, tmp_path, capsys, monkeypatch, module, flags
):
    monkeypatch.setitem(sys.modules, module, None)  # import then says that there is none
    arguments = ["--candidate", f"a={archive}/restored", "--report", str(tmp_path), *flags]
    assert _evaluate(str(archive / "original"), *arguments) == 2
    assert "pip install 'dot-beam[evaluate]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--candidate", "{root}/restored"], "expected NAME=URL"),
        (["--candidate", "a={root}/restored", "a={root}/one"], "this name is taken"),
        (["--candidate", "reference={root}/restored"], "this name is taken"),
        (["--candidate", "a={root}/nowhere"], "--candidate a: {root}/nowhere: no image matched"),
        (["--candidate", "a=nosuch://x"], "can't be listed"),
        (["--candidate", "a={root}/restored", "--features", "inception"], "--inception_weights"),
        (["--candidate", "a={root}/restored", "--inception_weights", "x"], "expected both or neither"),
        (
            ["--candidate", "a={root}/restored", "--features", "inception", "--inception_weights", "{root}/none.pth"],
            "inception_weights {root}/none.pth: can't be read",
        ),
        (["--candidate", "a={root}/restored", "--lpips_weights", "{root}/none.pth"], "lpips_weights"),
        (["--candidate", "a={root}/restored", "--vae", "{root}"], "vae {root}"),
        (["--candidate", "a={root}/restored", "--report", "{root}/map.safetensors/x"], "not writable"),
        (["--candidate", "a={root}/restored", "--features", "taste"], "invalid choice"),
    ],
)
def test_mistakes_are_told_in_one_line_with_exit_code_2(archive, tmp_path, capsys, arguments, says):
    root = str(archive)
    given = [argument.format(root=root) for argument in arguments]
    given += [] if "--report" in given else ["--report", str(tmp_path / "report")]
    assert _evaluate(str(archive / "original"), *given) == 2
    error = capsys.readouterr().err
    assert says.format(root=root) in error
    assert error.startswith("dot-evaluate: error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "report/report.html").exists()
