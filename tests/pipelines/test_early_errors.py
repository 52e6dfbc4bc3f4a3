"""Whatever a store or its library has against a URL, a job that can't start says so in one line and exits with 2."""

import os
import re

import fsspec
import pyarrow.parquet as pq
import pytest

from ot_core import storage
from ot_core.errors import BadUrlError
from pipelines import evaluate, fit, transport


@pytest.fixture(scope="module")
def ready(tmp_path_factory, photo):
    """A folder of images and a map of them."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("ready")
    (folder / "in").mkdir()
    for seed in range(3):
        Image.fromarray(photo(24, 24, seed)).save(folder / "in" / f"{seed}.png")
    inputs = ["--target", str(folder / "in"), "--source", str(folder / "in"), "--paired"]
    assert fit.main([*inputs, "--map", str(folder / "map.safetensors"), "--vae", "pixels"]) == 0
    return folder


@pytest.fixture(autouse=True)
def nobody(monkeypatch):
    """An environment without credentials of any store."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "AZURE_", "GOOGLE_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/nonexistent")
    monkeypatch.setenv("DOT_RETRY_SECONDS", "0.1")
    # File systems that other tests have made still know who they are.
    classes = [fsspec.get_filesystem_class(protocol) for protocol in ("s3", "az", "gs")]
    for cls in classes:
        cls.clear_instance_cache()
    yield
    for cls in classes:
        cls.clear_instance_cache()


def _commands(ready, url):
    """Each flag that takes a URL, with that one."""
    images, a_map, new = str(ready / "in"), str(ready / "map.safetensors"), str(ready / "new")
    job = ["--input", images, "--map", a_map, "--output", new]
    judge = ["--reference", images, "--candidate", f"a={images}", "--report", new, "--features", "pixel"]
    fitted = ["--target", images, "--source", images, "--map", f"{new}.safetensors", "--vae", "pixels"]

    def with_value(argv, flag, value):
        place = argv.index(flag) + 1
        return [*argv[:place], value, *argv[place + 1 :]]

    for flag in ("--input", "--map", "--output"):
        yield f"transport {flag}", transport.main, with_value(job, flag, url)
    yield "transport --vae", transport.main, [*job, "--vae", url]
    yield "transport --summary", transport.main, [*job, "--summary", f"{url}.json"]
    for flag, value in (("--target", url), ("--source", url), ("--map", f"{url}.safetensors")):
        yield f"fit {flag}", fit.main, with_value(fitted, flag, value)
    for flag, value in (("--reference", url), ("--candidate", f"a={url}"), ("--report", url)):
        yield f"evaluate {flag}", evaluate.main, with_value(judge, flag, value)


def _refusal(capsys, main, argv):
    capsys.readouterr()
    assert main(argv) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert ": error: " in lines[0]
    return lines[0]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://bucket/x", "no valid credentials"),
        ("az://container/x", "credentials"),
        ("nothing://x/y", "no store is known for nothing://"),
        ("sftp://127.0.0.1/x", "needs a package that isn't installed"),
        ("http://127.0.0.1:99999/x.png", "99999|can't|not writable"),
        ("http://[::1/x.png", "URL|can't|not writable"),
        ("http://127.0.0.1:1/x.png", "still failing|can't|not writable"),
        ("http://host.invalid/x.png", "no such host|can't|not writable"),
    ],
)
def test_every_flag_names_itself_or_its_url_and_the_reason(ready, capsys, url, said):
    for name, main, argv in _commands(ready, url):
        line = _refusal(capsys, main, argv)
        assert re.search(said, line), (name, line)
        assert url.partition("/x")[0] in line or "--" in line, (name, line)


@pytest.mark.parametrize(("protocol", "extra"), [("s3", "s3"), ("gs", "gcp"), ("az", "azure"), ("http", "http")])
def test_a_missing_package_is_named_by_its_extra(monkeypatch, protocol, extra):
    def missing(url):
        raise ImportError("Install the package")

    monkeypatch.setattr(storage, "url_to_fs", missing)
    with pytest.raises(BadUrlError, match=rf"pip install 'dot-beam\[{extra}\]'"):
        storage.read_bytes(f"{protocol}://bucket/x")


def test_a_bucket_that_doesnt_exist(ready, capsys, gcs):
    for name, main, argv in _commands(ready, "gs://no-such-bucket/x"):
        line = _refusal(capsys, main, argv)
        assert "no-such-bucket" in line, (name, line)


@pytest.mark.parametrize("extension", ["", ".png", ".txt", ".csv", ".jsonl", ".parquet", ".tar", ".safetensors"])
def test_a_fifo_is_refused_and_not_waited_for(ready, capsys, tmp_path, extension):
    fifo, out = str(tmp_path / f"fifo{extension}"), str(tmp_path / "out")
    os.mkfifo(fifo)
    images, a_map = str(ready / "in"), str(ready / "map.safetensors")
    for argv in (
        ["--input", images, "--map", fifo, "--output", out],
        ["--input", images, "--map", a_map, "--output", fifo],
        ["--input", images, "--map", a_map, "--output", out, "--vae", fifo],
    ):
        assert "fifo" in _refusal(capsys, transport.main, argv)
    job = ["--input", fifo, "--map", a_map, "--output", out]
    if extension in (".txt", ".csv", ".jsonl", ".parquet", ".tar"):
        assert "not a regular file" in _refusal(capsys, transport.main, job)
    else:  # taken for an image, which is a failure
        transport.main(job)
        [row] = pq.read_table(f"{out}/failures-00000-of-00001.parquet").to_pylist()
        assert row["error_type"] == "not_an_image"
        assert "not a regular file" in row["message"]
