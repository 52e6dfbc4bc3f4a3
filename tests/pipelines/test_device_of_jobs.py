"""With `--device cpu` nothing of a job touches a GPU that the machine has."""

import pytest
import torch
from PIL import Image

from ot_core import autoencoder, hardware, quality, restorer
from pipelines import evaluate, fit, transport, trial


@pytest.fixture
def useless_gpu(monkeypatch):
    """A GPU that is asked for fails, as torch says it where it was built without CUDA."""
    for cached in (autoencoder._load_once, restorer._load_once, quality.load_lpips):
        cached.cache_clear()
    monkeypatch.setattr(hardware.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)


@pytest.fixture
def photos(tmp_path, photo):
    (tmp_path / "natural").mkdir()
    for index in range(6):
        Image.fromarray(photo(64, 64, seed=index)).save(tmp_path / "natural" / f"{index}.png")
    return tmp_path


def test_no_job_loads_a_model_elsewhere(photos, useless_gpu):
    natural, map_url, out = str(photos / "natural"), str(photos / "m.safetensors"), str(photos / "out")
    cpu = ["--device", "cpu"]
    assert fit.main(["--target", natural, "--degrade", "bicubic:2", "--map", map_url, "--check_pairs", "4", *cpu]) == 0
    assert transport.main(["--input", natural, "--restorer", "bicubic:2", "--map", map_url, "--output", out, *cpu]) == 0
    compared = ["--reference", natural, "--candidate", f"restored={natural}", "--restorer", "bicubic:1"]
    assert evaluate.main([*compared, "--report", str(photos / "report"), *cpu]) == 0
    trial_flags = ["--natural", natural, "--degrade", "jpeg:10", "--report", str(photos / "trial")]
    assert trial.main([*trial_flags, *cpu]) == 0


def test_without_it_the_gpu_is_taken(photos, useless_gpu, capsys):
    flags = ["--target", str(photos / "natural"), "--degrade", "jpeg:10", "--map", str(photos / "m.safetensors")]
    assert fit.main(flags) == 2
    assert "can't be loaded" in capsys.readouterr().err
