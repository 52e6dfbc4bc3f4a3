"""The jobs as users run them: real files, real stores, through their command lines."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ot_core import read_map
from pipelines import fit, transport

SIZES = {"one": (1, 1), "odd": (7, 5), "photo": (481, 321), "wide/large": (2000, 1500)}


def _save(folder: Path, key: str, pixels: np.ndarray, extension: str = ".png", **options) -> None:
    path = folder / (key + extension)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


@pytest.fixture(scope="module")
def archive(tmp_path_factory, photo):
    """Natural and restored photographs to fit with, and a small archive to transport."""
    root = tmp_path_factory.mktemp("archive")
    for index in range(4):
        natural = photo(72, 96, seed=index)
        _save(root / "natural", f"n{index}", natural)
        _save(root / "restored", f"r{index}", np.asarray(Image.fromarray(photo(72, 96, seed=10 + index)).reduce(2)))
        _save(root / "input", f"deep/{index}", photo(40, 64, seed=20 + index))
    return root


@pytest.fixture(scope="module")
def map_url(archive, vae):
    url = str(archive / "map.safetensors")
    arguments = ["--target", str(archive / "natural"), "--source", str(archive / "restored"), "--map", url]
    assert fit.main([*arguments, "--vae", vae]) == 0
    return url


def _transport(*arguments: str) -> int:
    return transport.main(["--input", *arguments])


def _rows(output: str, name: str) -> list[dict]:
    fs, path = fsspec.core.url_to_fs(output)
    rows = []
    for file in sorted(fs.glob(f"{path}/{name}-*.parquet")):
        with fs.open(file, "rb") as opened:
            rows += pq.read_table(opened).to_pylist()
    return rows


def test_fit_writes_a_map_with_the_statistics_and_says_what_it_found(archive, map_url, vae, capsys):
    fitted = read_map(map_url)
    assert fitted.space.vae == vae
    assert len(fitted.space.vae_sha256) == 64
    assert fitted.target.count > fitted.source.count > 0
    arguments = ["--target", str(archive / "natural"), "--source", str(archive / "restored"), "--vae", vae]
    assert fit.main([*arguments, "--map", str(archive / "again.safetensors"), "--max_images", "2"]) == 0
    printed = capsys.readouterr().out
    assert "squared Wasserstein distance" in printed
    assert "4 images" in printed
    assert read_map(str(archive / "again.safetensors")).source.count == fitted.source.count / 2


def test_fit_states_the_noise_floor_and_warns_when_a_map_is_noisy(archive, map_url, vae, capsys):
    floor = read_map(map_url).noise_floor
    assert floor is not None
    assert floor > 0
    arguments = ["--target", str(archive / "natural"), "--map", str(archive / "noise.safetensors"), "--vae", vae]
    capsys.readouterr()
    assert fit.main([*arguments, "--source", str(archive / "natural")]) == 0
    printed = capsys.readouterr().out
    assert "WARNING: chance explains 100% of the distance" in printed
    assert "4 keys are on both sides" in printed


def test_paired_fits_on_shared_keys_alone(tmp_path, photo, vae, capsys):
    for index in range(6):
        natural = photo(72, 96, seed=index)
        _save(tmp_path / "natural", f"{index}", natural)
        if index % 2:
            _save(tmp_path / "restored", f"{index}", np.asarray(Image.fromarray(natural).reduce(2).resize((96, 72))))
    _save(tmp_path / "restored", "other", photo(72, 96, seed=9))
    url = str(tmp_path / "map.safetensors")
    sides = ["--target", str(tmp_path / "natural"), "--source", str(tmp_path / "restored"), "--map", url, "--vae", vae]
    assert fit.main([*sides, "--paired"]) == 0
    printed = capsys.readouterr().out
    assert "4 images left out, whose keys the other side lacks" in printed
    assert "6 images in" in printed
    fitted = read_map(url)
    assert fitted.source.count == fitted.target.count


def test_the_papers_method_has_a_symmetric_matrix_and_no_metric(archive, map_url, vae):
    url = str(archive / "paper.safetensors")
    sides = ["--target", str(archive / "natural"), "--source", str(archive / "restored"), "--map", url, "--vae", vae]
    assert fit.main([*sides, "--method", "paper"]) == 0
    paper, ours = read_map(url), read_map(map_url)
    assert paper.map.metric is paper.map.invariant is None
    np.testing.assert_array_equal(paper.map.target_mean, paper.target.mean)
    np.testing.assert_allclose(paper.map.matrix, paper.map.matrix.T, atol=1e-9)
    assert ours.map.metric is not None
    assert ours.map.invariant.shape == (3, ours.map.dimension)
    np.testing.assert_allclose(
        ours.map.invariant @ ours.map.target_mean, ours.map.invariant @ ours.source.mean, atol=1e-6
    )
    np.testing.assert_array_equal(ours.source.scatter, paper.source.scatter)
    assert np.abs(ours.map.matrix - ours.map.matrix.T).max() > 1e-3


def test_pixels_need_no_autoencoder(archive, tmp_path):
    url, output = str(tmp_path / "map.safetensors"), str(tmp_path / "out")
    sides = ["--target", str(archive / "natural"), "--source", str(archive / "restored"), "--map", url]
    assert fit.main([*sides, "--vae", "pixels"]) == 0
    assert read_map(url).space.latent_channels == 3
    assert _transport(str(archive / "input"), "--map", url, "--output", output, "--alpha", "0", "1") == 0
    rows = {(row["key"], row["alpha"]): row["sha256"] for row in _rows(output, "manifest")}
    assert len(rows) == 8
    assert all(rows[key, 0.0] != rows[key, 1.0] for key, _ in rows)


def test_options_of_transport_reach_the_images(archive, map_url, tmp_path):
    hashes = set()
    choices = [[], ["--zero_shot"], ["--interpolation", "latents"], ["--kernel_size", "1"], ["--sigma", "0.5"]]
    for index, options in enumerate(choices):
        arguments = ["--map", map_url, "--output", str(tmp_path / str(index)), "--alpha", "0.5", *options]
        assert _transport(str(archive / "input"), *arguments) == 0
        hashes.add(tuple(sorted(row["sha256"] for row in _rows(str(tmp_path / str(index)), "manifest"))))
    assert len(hashes) == len(choices)


def test_a_folding_kernel_larger_than_the_patch_is_a_mistake(archive, map_url, tmp_path, capsys):
    arguments = ["--map", map_url, "--output", str(tmp_path), "--kernel_size", "5"]
    assert _transport(str(archive / "input"), *arguments) == 2
    assert f"--kernel_size 5: the patch size of {map_url} is 3" in capsys.readouterr().err


def test_keys_sizes_and_orientation_are_kept(tmp_path, photo, map_url):
    for key, (width, height) in SIZES.items():
        _save(tmp_path / "in", key, photo(height, width, seed=1))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: stored 60x40, upright 40x60
    _save(tmp_path / "in", "turned", photo(40, 60, seed=2), ".jpg", exif=exif, quality=95)
    output = str(tmp_path / "out")
    assert _transport(str(tmp_path / "in"), "--map", map_url, "--output", output, "--alpha", "1") == 0
    expected = {**SIZES, "turned": (40, 60)}
    rows = {row["key"]: row for row in _rows(output, "manifest")}
    assert {key: (row["width"], row["height"]) for key, row in rows.items()} == expected
    for key, row in rows.items():
        with Image.open(row["output_uri"]) as written:
            assert written.size == expected[key]
            if key != "turned":
                with Image.open(tmp_path / "in" / f"{key}.png") as read:
                    np.testing.assert_array_equal(np.asarray(written), np.asarray(read))
    with Image.open(tmp_path / "in/turned.jpg") as turned, Image.open(rows["turned"]["output_uri"]) as written:
        upright = turned.transpose(Image.Transpose.ROTATE_270)
        np.testing.assert_array_equal(np.asarray(written), np.asarray(upright.convert("RGB")))


def test_two_runs_give_the_same_bytes(tmp_path, archive, map_url):
    runs = []
    for name in ("first", "second"):
        output = str(tmp_path / name)
        assert _transport(str(archive / "input"), "--map", map_url, "--output", output, "--alpha", "0", "0.5") == 0
        files = {path.relative_to(output): path.read_bytes() for path in Path(output).rglob("*.png")}
        hashes = {(row["key"], row["alpha"]): row["sha256"] for row in _rows(output, "manifest")}
        runs.append((files, hashes))
    assert runs[0] == runs[1]
    assert len(runs[0][0]) == 8


def test_every_store_gives_the_bytes_of_local_files(store, archive, map_url, vae, tmp_path):
    local = str(tmp_path / "local")
    assert _transport(str(archive / "input"), "--map", map_url, "--output", local) == 0
    fs, path = fsspec.core.url_to_fs(store)
    for name in ("natural", "restored", "input"):
        for file in sorted((archive / name).rglob("*.png")):
            target = f"{path}/{file.relative_to(archive)}"
            fs.makedirs(os.path.dirname(target), exist_ok=True)
            fs.pipe_file(target, file.read_bytes())
    remote_map = f"{store}/maps/run.safetensors"
    sides = ["--target", f"{store}/natural/*.png", "--source", f"{store}/restored/"]
    assert fit.main([*sides, "--map", remote_map, "--vae", vae]) == 0
    assert _transport(f"{store}/input/", "--map", remote_map, "--output", f"{store}/out") == 0
    assert _rows(f"{store}/out", "failures") == []
    expected = {row["key"]: row["sha256"] for row in _rows(local, "manifest")}
    found = {row["key"]: row for row in _rows(f"{store}/out", "manifest")}
    assert {key: row["sha256"] for key, row in found.items()} == expected
    for key, row in found.items():
        with fsspec.open(row["output_uri"], "rb") as opened:
            assert opened.read() == Path(local, "images", f"{key}.png").read_bytes()


def _bad_inputs(folder: Path, photo) -> dict[str, set[str]]:
    """Ten inputs that can't be processed; gives the causes that each may be reported with."""
    _save(folder, "good", photo(64, 64, seed=0))
    png = (folder / "good.png").read_bytes()
    _save(folder, "jpeg", photo(64, 64, seed=0), ".jpg")
    jpeg = (folder / "jpeg.jpg").read_bytes()
    for name in ("good.png", "jpeg.jpg"):
        (folder / name).unlink()

    def with_size(width: int, height: int) -> bytes:
        import struct
        import zlib

        header = b"IHDR" + struct.pack(">II", width, height) + png[24:29]
        return png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:]

    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("this is not a photograph")
    (folder / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (folder / "cut2.png").write_bytes(png[: len(png) // 2])
    (folder / "huge.png").write_bytes(with_size(60_000, 60_000))
    (folder / "x.png").mkdir()
    (folder / "locked.png").write_bytes(png)
    (folder / "locked.png").chmod(0)
    (folder / "flat.png").write_bytes(with_size(0, 64))
    not_a_number = np.full((32, 32), np.nan, np.float32)
    Image.fromarray(not_a_number).save(folder / "nan.tiff")
    return {
        "empty": {"empty_file"},
        "text": {"not_an_image"},
        "cut": {"damaged"},
        "cut2": {"damaged"},
        "huge": {"too_large"},
        "x": {"is_a_directory"},
        "locked": {"permission_denied"},
        "flat": {"damaged", "not_an_image"},
        "nan": {"not_finite"},
        "gone": {"not_found"},
    }


def _as_unprivileged() -> list[str]:
    """Root may read what nobody may; without these capabilities it is like any other user."""
    if os.geteuid() != 0:
        return []
    capabilities = "-dac_override,-dac_read_search"
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("running as root without setpriv: unreadable files can't be made")
    return [setpriv, f"--bounding-set={capabilities}", f"--inh-caps={capabilities}"]


def test_ten_bad_inputs_of_a_hundred_give_ten_failures_and_ninety_images(tmp_path, photo, map_url):
    folder = tmp_path / "in"
    folder.mkdir()
    causes = _bad_inputs(folder, photo)
    for index in range(90):
        _save(folder, f"good{index}", photo(24, 32, seed=index))
    (tmp_path / "more.txt").write_text(f"{folder}/gone.png\n")
    command = [*_as_unprivileged(), sys.executable, "-m", "pipelines.transport"]
    inputs = ["--input", str(folder), str(tmp_path / "more.txt"), "--map", map_url]

    for limit, expected_code in (("1", 0), ("0.05", 1)):
        output = str(tmp_path / f"out-{limit}")
        arguments = [*inputs, "--output", output, "--max_failure_fraction", limit]
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == expected_code, done.stderr
        assert len(_rows(output, "manifest")) == len(list(Path(output).rglob("*.png"))) == 90
        failures = {row["key"].rpartition("/")[2]: row for row in _rows(output, "failures")}
        assert failures.keys() == causes.keys()
        for key, row in failures.items():
            assert row["error_type"] in causes[key], row
            assert row["source_uri"]
            assert row["message"]
        assert "10 failures" in done.stdout
    assert "10 of 100 images failed" in done.stderr


def test_a_fit_without_one_usable_image_says_so_and_writes_no_map(tmp_path, archive, vae, capsys):
    (tmp_path / "text.png").write_text("no image")
    url = str(tmp_path / "map.safetensors")
    sides = ["--target", str(archive / "natural"), "--source", str(tmp_path / "text.png")]
    assert fit.main([*sides, "--map", url, "--vae", vae]) == 1
    assert "no map was written" in capsys.readouterr().err
    assert not os.path.exists(url)
    causes = [row["error_type"] for row in _rows(str(tmp_path), "map.failures")]
    assert sorted(causes) == ["no_statistics", "not_an_image"]


@pytest.fixture
def mistakes(tmp_path, archive, map_url):
    """Command lines that can be known to be wrong, and what the message must name."""
    import pickle

    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged.safetensors").write_bytes(Path(map_url).read_bytes()[:1000])
    (tmp_path / "pickled.safetensors").write_bytes(pickle.dumps({"map.matrix": np.eye(36)}))
    (tmp_path / "file").write_text("")
    given, out = str(archive / "input"), str(tmp_path / "out")
    return {
        "no image matched": ["--input", str(tmp_path / "empty"), "--map", map_url, "--output", out],
        "map missing": ["--input", given, "--map", str(tmp_path / "no.safetensors"), "--output", out],
        "map damaged": ["--input", given, "--map", str(tmp_path / "damaged.safetensors"), "--output", out],
        "map pickled": ["--input", given, "--map", str(tmp_path / "pickled.safetensors"), "--output", out],
        "another VAE": ["--input", given, "--map", map_url, "--output", out, "--vae", "default"],
        "output not writable": ["--input", given, "--map", map_url, "--output", str(tmp_path / "file" / "out")],
        "output in the input": ["--input", given, "--map", map_url, "--output", f"{given}/out"],
        "unknown flag value": ["--input", given, "--map", map_url, "--output", out, "--format", "gif"],
        "unknown flag": ["--input", given, "--map", map_url, "--output", out, "--alhpa", "0"],
        "unknown protocol": ["--input", "nowhere://x", "--map", map_url, "--output", out],
    }


NAMES = {
    "no image matched": "no image matched",
    "map missing": "not found",
    "map damaged": "not a safetensors file",
    "map pickled": "not a safetensors file",
    "another VAE": "was fitted with the autoencoder",
    "output not writable": "not writable",
    "output in the input": "lies in --input",
    "unknown flag value": "invalid choice: 'gif'",
    "unknown flag": "did you mean --alpha",
    "unknown protocol": "nowhere",
}


@pytest.mark.parametrize("mistake", NAMES)
def test_what_is_wrong_before_work_starts_is_one_line_and_exit_code_2(mistake, mistakes, capsys, tmp_path):
    assert transport.main(mistakes[mistake]) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert NAMES[mistake] in printed.err
    assert printed.out == ""
    assert not (tmp_path / "out" / "images").exists()


def test_a_mistake_ends_a_real_process_with_one_line_and_without_a_trace(mistakes):
    command = [sys.executable, "-m", "pipelines.transport", *mistakes["another VAE"]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_a_folder_of_the_users_named_transforms_is_pointed_out(tmp_path):
    (tmp_path / "transforms").mkdir()
    (tmp_path / "transforms" / "__init__.py").write_text("")
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.fit", "--help"], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 1
    assert "not this project's" in done.stderr
    assert "Traceback" not in done.stderr
