"""Jobs whose images, lists and shards lie on web servers, whatever these can and tell."""

import io
import tarfile

import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines import fit, transport
from tests.web import web_server


@pytest.fixture(scope="module")
def ready(tmp_path_factory, photo):
    """Encoded images by name, and the URL of a map of them."""
    folder = tmp_path_factory.mktemp("ready")
    images = {}
    for seed in range(6):
        buffer = io.BytesIO()
        Image.fromarray(photo(24, 24, seed)).save(buffer, "PNG")
        images[f"{seed}.png"] = buffer.getvalue()
        (folder / f"{seed}.png").write_bytes(buffer.getvalue())
    a_map = str(folder / "map.safetensors")
    sides = ["--target", str(folder), "--source", str(folder), "--paired"]
    assert fit.main([*sides, "--map", a_map, "--vae", "pixels"]) == 0
    return images, a_map


def _rows(output, name):
    return {row["key"]: row for row in pq.read_table(f"{output}/{name}-00000-of-00001.parquet").to_pylist()}


@pytest.mark.parametrize("etag", [True, False])
def test_resuming_does_again_what_changed_on_a_server_and_nothing_else(ready, tmp_path, capsys, etag):
    images, a_map = ready
    with web_server(etag=etag) as server:
        server.files = {f"/{name}": data for name, data in images.items()}
        (tmp_path / "list.txt").write_text("\n".join(f"{server.url}/{name}" for name in images))
        job = ["--input", str(tmp_path / "list.txt"), "--map", a_map, "--output", str(tmp_path / "out"), "--resume"]
        assert transport.main(job) == 0
        first = _rows(tmp_path / "out", "manifest")
        assert len(first) == 6
        assert transport.main(job) == 0
        assert "6 images were there already" in capsys.readouterr().out
        server.files = dict.fromkeys(server.files, images["0.png"])
        server.changed += 60
        assert transport.main(job) == 0
        assert "0 images were there already" in capsys.readouterr().out
    second = _rows(tmp_path / "out", "manifest")
    assert {row["sha256"] for row in second.values()} == {next(iter(first.values()))["sha256"]}


@pytest.mark.parametrize("length", ["told", "chunked", "until close"])
@pytest.mark.parametrize("ranges", [True, False])
def test_a_tar_file_on_any_server_gives_the_same_images(ready, tmp_path, ranges, length):
    images, a_map = ready
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, data in images.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    (tmp_path / "a.tar").write_bytes(packed.getvalue())
    with web_server(ranges=ranges, length=length) as server:
        server.files = {"/a.tar": packed.getvalue()}
        for url, output in ((f"{server.url}/a.tar", "web"), (str(tmp_path / "a.tar"), "local")):
            assert transport.main(["--input", url, "--map", a_map, "--output", str(tmp_path / output)]) == 0
    web, local = (_rows(tmp_path / output, "manifest") for output in ("web", "local"))
    assert len(web) == 6
    assert {key: row["sha256"] for key, row in web.items()} == {key: row["sha256"] for key, row in local.items()}


def test_each_status_is_a_row_of_the_failures_with_its_cause(ready, tmp_path, monkeypatch):
    monkeypatch.setenv("DOT_RETRY_SECONDS", "0.1")
    images, a_map = ready
    causes = {401: "permission_denied", 403: "permission_denied", 404: "not_found", 410: "not_found", 418: "io_error"}
    causes |= {429: "unavailable", 503: "unavailable"}
    with web_server() as server:
        server.files = {f"/{name}": data for name, data in images.items()}
        server.statuses = {f"/{status}.png": status for status in causes}
        paths = [*server.statuses, *server.files]
        (tmp_path / "list.txt").write_text("\n".join(f"{server.url}{path}" for path in paths))
        job = ["--input", str(tmp_path / "list.txt"), "--map", a_map, "--output", str(tmp_path / "out")]
        transport.main([*job, "--max_failure_fraction", "1"])
    rows = _rows(tmp_path / "out", "failures").values()
    failed = {row["source_uri"].rpartition("/")[2]: row["error_type"] for row in rows}
    assert failed == {f"{status}.png": cause for status, cause in causes.items()}
    assert len(_rows(tmp_path / "out", "manifest")) == 6
