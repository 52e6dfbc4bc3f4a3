"""A worker whose device is lost ends; a process that isn't Beam's gets the error."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from apache_beam.runners.portability import local_job_service
from apache_beam.runners.portability.fn_api_runner import fn_runner
from apache_beam.runners.worker import worker_pool_main
from PIL import Image

from ot_core.autoencoder import Autoencoder
from ot_core.device import DeviceLostError
from ot_core.engine import Engine
from pipelines import evaluate, fit, transport
from transforms import FeatureStatisticsModelHandler, TransportModelHandler
from transforms.elements import ImageRef, LoadedImage
from transforms.model_handlers import FeatureModels, ImageModelHandler
from transforms.restore_images import RestoreModelHandler
from transforms.worker import ends_with_device, is_worker

ILLEGAL = "CUDA error: an illegal memory access was encountered"
STAND_IN = '''
import torch
from torch import nn

class Poisoned(nn.Module):
    """Works until it sees a white corner; afterwards it fails whatever it sees, as a broken context does."""

    downsampling_factor = 1
    broken = False

    def encode(self, x):
        if x.shape[-1] < 100 and (x[:, :, 0, 0] == 1).all(1).any():
            Poisoned.broken = True
        if Poisoned.broken:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        return x

    def decode(self, z):
        return z

def make():
    return Poisoned()

def fails():
    raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
'''


def worker_commands() -> list[str]:
    """The ones with which Beam starts processes, from its own source."""
    pool = Path(worker_pool_main.__file__).read_text()
    assert "'SdkHarness('" in pool
    assert "sdk_worker_main" in Path(fn_runner.__file__).read_text()
    assert "Subprocess" in Path(local_job_service.__file__).read_text()
    return [
        "python -m apache_beam.runners.worker.sdk_worker_main",
        "python -c from apache_beam.runners.worker.sdk_worker import SdkHarness; SdkHarness('localhost:1').run()",
    ]


def test_processes_that_beam_starts_are_told_from_others():
    for command in worker_commands():
        assert is_worker(command.split(" ", 2))
    assert not is_worker(["/usr/bin/python", "-m", "pipelines.transport", "--runner", "FlinkRunner"])
    assert not is_worker(sys.orig_argv)


@pytest.mark.parametrize(("pretended", "code"), [("SdkHarness(", 70), ("", 1)])
def test_a_worker_ends_and_another_process_raises(pretended: str, code: int):
    program = f"""
# {pretended}
import threading
from transforms.restore_images import RestoreModelHandler
from transforms.worker import ends_with_device
threading.Thread(target=threading.Event().wait).start()  # which nobody waits for
with ends_with_device():
    raise RuntimeError("{ILLEGAL}")
"""
    if code == 1:
        program = program.replace("threading.Thread", "0 and threading.Thread")
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == code, done.stderr
    assert "illegal memory access" in done.stderr


def test_other_errors_pass_as_they_are():
    with pytest.raises(ValueError, match="other"), ends_with_device():
        raise ValueError("other")


def handlers() -> list[type[ImageModelHandler]]:
    found = ImageModelHandler.__subclasses__()
    for kind in found:
        found += kind.__subclasses__()
    return found


def test_every_handler_ends_with_its_device():
    assert {TransportModelHandler, FeatureStatisticsModelHandler, RestoreModelHandler} <= set(handlers())
    for handler in handlers():
        for name in ("load", "infer"):
            assert hasattr(getattr(handler, name), "__wrapped__"), (handler, name)


def batch() -> list[LoadedImage]:
    from ot_core import DecodedImage

    pixels = np.random.default_rng(0).integers(0, 250, (3, 16, 16, 3), dtype=np.uint8)
    return [LoadedImage(ImageRef(f"k{i}", f"u{i}"), DecodedImage(image), 0.0) for i, image in enumerate(pixels)]


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"poisoned_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(tmp_path)
    return name


class TestFeatures:
    class Broken(torch.nn.Module):
        downsampling_factor = 1
        calls = 0

        def encode(self, x):
            self.calls += 1
            if self.calls > 1:  # the first is the autoencoder's own trial
                raise RuntimeError(ILLEGAL)
            return x

        def decode(self, z):
            return z

    def test_of_latents(self):
        from transforms import LatentStatisticsModelHandler

        model = FeatureModels({"latent": Autoencoder(self.Broken(), "broken")}, Engine("meta", 2**20))
        with pytest.raises(DeviceLostError):
            LatentStatisticsModelHandler(patch_size=1).run_inference(batch(), model)

    def test_of_any_network(self):
        from ot_core.features import InceptionFeatures

        class Network(torch.nn.Linear):
            def forward(self, x):
                raise RuntimeError(ILLEGAL)

        model = FeatureModels({"inception": Network(1, 1)}, Engine("meta", 2**20))
        with pytest.raises(DeviceLostError):
            FeatureStatisticsModelHandler({"inception": InceptionFeatures("w")}).run_inference(batch(), model)

    def test_while_loading(self):
        from ot_core.features import LatentFeatures

        class Fails(LatentFeatures):
            def load(self):
                raise RuntimeError(ILLEGAL)

        with pytest.raises(DeviceLostError):
            FeatureStatisticsModelHandler({"latent": Fails()}).load_model()


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    for folder in ("natural", "restored"):
        (tmp_path / folder).mkdir()
        for index in range(6):
            pixels = np.random.default_rng(index).integers(0, 250, (32, 32, 3), dtype=np.uint8)
            if index == 3 and folder == "restored":
                pixels[0, 0] = 255
            Image.fromarray(pixels).save(tmp_path / folder / f"{index}.png")
    return tmp_path


def failure_rows(folder: Path) -> int:
    import pyarrow.parquet as pq

    return sum(pq.read_table(path).num_rows for path in folder.glob("failures-*.parquet"))


class TestJobs:
    """In this process, which must go on living."""

    def test_transport_fails_in_one_line_and_blames_no_image(self, photographs: Path, stand_in: str, capfd):
        good = str(photographs / "natural")
        fitted, output = str(photographs / "m.safetensors"), photographs / "out"
        vae = f"{stand_in}:make"
        assert fit.main(["--target", good, "--source", good, "--map", fitted, "--vae", vae, "--paired"]) == 0
        capfd.readouterr()
        argv = ["--input", str(photographs / "restored"), "--map", fitted, "--vae", vae, "--output", str(output)]
        assert transport.main([*argv, "--max_batch_pixels", "0"]) == 1
        last = capfd.readouterr().err.strip().splitlines()[-1]
        assert re.match(r"dot-transport: error: .*illegal memory access", last), last
        assert failure_rows(output) == 0

    def test_fit_fails_likewise(self, photographs: Path, stand_in: str, capfd):
        fitted = photographs / "m.safetensors"
        argv = ["--target", str(photographs / "natural"), "--source", str(photographs / "restored")]
        assert fit.main([*argv, "--map", str(fitted), "--vae", f"{stand_in}:make"]) == 1
        assert "illegal memory access" in capfd.readouterr().err.strip().splitlines()[-1]
        assert not fitted.exists()

    def test_evaluate_fails_likewise(self, photographs: Path, stand_in: str, capfd):
        natural, restored = (str(photographs / folder) for folder in ("natural", "restored"))
        report = photographs / "report"
        argv = ["--reference", natural, "--candidate", f"restored={restored}", "--report", str(report)]
        assert evaluate.main([*argv, "--vae", f"{stand_in}:make"]) == 1
        assert "illegal memory access" in capfd.readouterr().err.strip().splitlines()[-1]
        assert failure_rows(report) == 0
