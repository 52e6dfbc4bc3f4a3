"""What a fleet of GPU workers would take for an archive: a calculation from what has been measured, not a measurement.

    python -m benchmarks.fleet --output benchmarks/results/fleet.md

Times of single steps are read from the other benchmarks' results (throughput.json, scale.json, listing.md; the speed of
a GPU from throughput-gpu.json, once there is one), sizes of the manifest and of what crosses a shuffle are measured on
the spot, and everything else is an argument whose default is an assumption. The page says of each figure which it is.

Times of decoding and encoding are those of threads that share the benchmark's cores with the model, so a worker whose
model has a GPU of its own needs fewer cores than this says. They are scaled by pixels; reading and writing are not.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apache_beam.coders import registry

from benchmarks.measure import ROOT, Figures, table
from benchmarks.pages import write_page
from ot_core import storage
from ot_core.layout import IMAGES
from transforms.elements import ImageRecord, ImageRef
from transforms.records import ROWS_PACKED, pack_rows
from transforms.records import _WriteParquetDoFn as WriteParquetDoFn

RESULTS = ROOT / "benchmarks/results"
_ROWS_MEASURED = 100_000
#: Objects that a page of a list request holds at most, on gs://.
_PAGE = 5000
_CORES = "the cores, decoding and encoding"


@dataclass(frozen=True)
class Assumption:
    """What was not measured: an argument of the command line.

    Attributes:
        default: used unless given.
        unit: for the page.
        why: where the default comes from.
    """

    default: float
    unit: str
    why: str


ASSUMPTIONS = {
    "images": Assumption(10e6, "images", "the question"),
    "workers": Assumption(100, "workers", "the question"),
    "megapixels": Assumption(0.262144, "megapixels an image", "512 x 512"),
    "input_megabytes": Assumption(0.06, "MB an image read", "JPEG of that size"),
    "output_megabytes": Assumption(0.4, "MB an image written", "PNG of that size, 1.5 bytes a pixel"),
    "gpu_images_per_second": Assumption(10, "images/s of one GPU", "no GPU was there to measure on"),
    "cores": Assumption(8, "cores a worker", "g2-standard-8"),
    "worker_price": Assumption(1.2, "USD an hour and worker", "one L4 with 8 cores, list prices, not looked up"),
    "plain_worker_price": Assumption(0.3, "USD an hour and worker", "4 cores without GPU, likewise"),
    "startup_minutes": Assumption(10, "minutes until a worker works", "boot, driver, image of several GB"),
    "request_milliseconds": Assumption(50, "ms a storage request", "the delay in the benchmark of throughput"),
    "write_price": Assumption(0.05, "USD for 10,000 writes or list pages", "class A's list price, not looked up"),
    "read_price": Assumption(0.004, "USD for 10,000 reads", "class B's list price, not looked up"),
    "first_writes_per_second": Assumption(1000, "writes/s that a bucket takes at first", "guidelines, not looked up"),
    "first_reads_per_second": Assumption(5000, "reads/s that a bucket takes at first", "guidelines, not looked up"),
    "doubling_minutes": Assumption(20, "minutes until a bucket takes twice as many", "guidelines, not looked up"),
}


def measured(results: Path = RESULTS) -> Figures:
    """Seconds of single steps, from the files of the other benchmarks.

    Raises:
        SystemExit: if one isn't there or says something else than expected.
    """
    throughput = json.loads(_text(results / "throughput.json"))
    stages, images, megapixels = (throughput[name] for name in ("job_stage_seconds", "images", "megapixels"))
    overhead = json.loads(_text(results / "scale.json"))["overhead"]
    fewer, most = overhead[-2:]
    beyond = (most["overhead_seconds"] - fewer["overhead_seconds"]) / (most["images"] - fewer["images"])
    listing = _text(results / "listing.md")
    objects = re.search(r"([\d,]+) objects in", listing)
    median = re.search(r"\| `list_images` \| [^|]+ \| ([\d.]+) \|", listing)
    if objects is None or median is None:
        raise SystemExit(f"{results / 'listing.md'}: found no time of list_images; run python -m benchmarks.listing")
    return {
        "decode_seconds_per_megapixel": stages["decode_image"] / megapixels,
        "encode_seconds_per_megapixel": stages["encode_image"] / megapixels,
        "read_seconds": stages["read"] / images,
        "write_seconds": stages["write"] / images,
        "beam_seconds": beyond,
        "beam_at": most["images"],
        "listed_per_second": int(objects[1].replace(",", "")) / float(median[1]),
        "load_seconds": throughput["job_startup_seconds"],
        "machine": throughput["machine"]["cpu"],
        "threads": throughput["threads"],
    }


def gpu_images_per_second(results: Path = RESULTS) -> float | None:
    """Of a job on a GPU, once somebody has measured it into throughput-gpu.json."""
    path = results / "throughput-gpu.json"
    return float(json.loads(path.read_text())["job_images_per_second"]) if path.exists() else None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        raise SystemExit(f"{path}: not there; run the benchmark that writes it") from None


def measure_rows(rows: int = _ROWS_MEASURED) -> Figures:
    """Writes a manifest as the job does, and encodes what crosses a shuffle for an image: its reference and its row."""
    keys = [f"{index % 997:03d}/photograph-{index:08d}" for index in range(rows)]
    records = [_record(key, index) for index, key in enumerate(keys)]
    packs = [pack_rows(records[start : start + ROWS_PACKED]) for start in range(0, rows, ROWS_PACKED)]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        (url,) = WriteParquetDoFn(folder, "manifest", ImageRecord, 1).process((0, packs))
        seconds = time.perf_counter() - start
        size = Path(url).stat().st_size
    ref = ImageRef(records[0].key, records[0].source_uri, version=records[0].source_version, modified=1.7e9)
    reference = len(registry.get_coder(object).encode((ref.key, tuple(ref[1:]))))
    return {
        "row_bytes": size / rows,
        "row_seconds": seconds / rows,
        "shuffled_bytes": reference + sum(map(len, packs)) / rows,
    }


def _record(key: str, index: int) -> ImageRecord:
    """A row whose digests don't compress, like real ones."""
    digest = f"{pow(31, index + 1, 2**521 - 1):0131x}"
    url = storage.join("gs://enhanced-archive/run7", IMAGES, key + ".png")
    source = f"gs://restored-archive/run7/{key}.jpg"
    size, version = 393_216 + index % 9973, digest[64:96]
    return ImageRecord(key, source, url, 0.0, 512, 512, size, sha256=digest[:64], seconds=0.1, source_version=version)


def calculate(known: Figures, rows: Figures, given: Figures) -> Figures:
    """Everything on the page."""
    images, workers, pixels = given["images"], given["workers"], given["megapixels"]
    decode, encode = (known[f"{what}_seconds_per_megapixel"] * pixels for what in ("decode", "encode"))
    core_seconds = decode + encode + known["read_seconds"] + known["write_seconds"] + known["beam_seconds"]
    limits = {
        "the GPU": given["gpu_images_per_second"],
        _CORES: given["cores"] / core_seconds,
        "Beam's own work, in one thread": 1 / known["beam_seconds"],
        "reading, 16 at a time": 16 / (given["request_milliseconds"] / 1000 + decode),
    }
    bottleneck = min(limits, key=lambda name: limits[name])
    rate = workers * limits[bottleneck]
    start, transport = given["startup_minutes"] * 60 + known["load_seconds"], seconds_for(images, rate, given)
    listing, manifest = images / known["listed_per_second"], images * rows["row_seconds"]
    shards = math.ceil(images * rows["row_bytes"] / 100e6)
    at_once = min(shards, workers)
    manifest_in_shards = manifest / shards * math.ceil(shards / at_once)
    seconds = listing + start + transport + manifest_in_shards
    prices = images / 1e4 * (given["write_price"] + given["read_price"]) + images / _PAGE / 1e4 * given["write_price"]
    return {
        "limits": limits,
        "bottleneck": bottleneck,
        "rate": rate,
        "core_seconds": core_seconds,
        "cores_for_gpu": given["gpu_images_per_second"] * core_seconds,
        "start": start,
        "transport": transport,
        "listing": listing,
        "manifest_in_one": manifest,
        "manifest": manifest_in_shards,
        "manifest_bytes": images * rows["row_bytes"],
        "shards": shards,
        "pages": math.ceil(images / _PAGE),
        "hours": seconds / 3600,
        "gpu_cost": workers * (start + transport) / 3600 * given["worker_price"],
        "gpu_cost_in_one_pool": workers * seconds / 3600 * given["worker_price"],
        "plain_cost": (listing + start + manifest_in_shards) / 3600 * at_once * given["plain_worker_price"],
        "request_cost": prices,
        "ramp": ramp_minutes(rate, given["first_writes_per_second"], given["doubling_minutes"]),
        "read_ramp": ramp_minutes(rate, given["first_reads_per_second"], given["doubling_minutes"]),
        "pixels_bytes": images * pixels * 1e6 * 3 * 2,
        "shuffled": images * rows["shuffled_bytes"],
        "read_bytes_per_second": rate * given["input_megabytes"] * 1e6,
        "written_bytes_per_second": rate * given["output_megabytes"] * 1e6,
        "written_bytes": images * given["output_megabytes"] * 1e6,
    }


def ramp_minutes(wanted: float, first: float, doubling: float) -> float:
    """Until a store that takes so many requests a second at first, and twice as many ever so often, takes all."""
    return max(0.0, math.log2(wanted / first)) * doubling


def seconds_for(images: float, rate: float, given: Figures) -> float:
    """Time of so many images at most at a rate, with what the bucket lets be written at first and later."""
    limit, step, seconds = given["first_writes_per_second"], given["doubling_minutes"] * 60, 0.0
    while limit < rate and images > limit * step:
        images, seconds, limit = images - limit * step, seconds + step, 2 * limit
    return float(seconds + images / min(limit, rate))


def page(known: Figures, rows: Figures, given: Figures, found: Figures, assumed: set[str]) -> str:
    """The calculation as Markdown."""
    total = found["gpu_cost"] + found["plain_cost"] + found["request_cost"]
    waiting = found["gpu_cost_in_one_pool"] - found["gpu_cost"]
    per_worker = found["rate"] / given["workers"]
    limits = sorted(found["limits"].items(), key=lambda item: item[1])
    source = "assumed" if "gpu_images_per_second" in assumed else "measured or given"
    return "\n".join(
        [
            "# A fleet",
            "",
            f"{given['images']:,.0f} images on {given['workers']:,.0f} workers with a GPU each: "
            f"**{found['hours']:.1f} hours and {total:,.0f} USD**, with {given['gpu_images_per_second']:g} images/s of "
            f"a GPU ({source}). {_hours(known, rows, given, 0.5):.1f} hours with half, "
            f"{_hours(known, rows, given, 4):.1f} with four times of these.",
            "A calculation (`python -m benchmarks.fleet`), not a run: what it rests on is told at the end, and what is",
            "*assumed* there may be wrong several times over.",
            "",
            "## Time and cost",
            "",
            table(
                ["", "minutes", "on"],
                [
                    ["listing, by one worker", f"{found['listing'] / 60:.1f}", "a plain worker"],
                    ["workers with a GPU start", f"{found['start'] / 60:.1f}", "all with a GPU"],
                    [f"{found['rate']:,.0f} images/s", f"{found['transport'] / 60:.1f}", "all with a GPU"],
                    [f"manifest in {found['shards']} files", f"{found['manifest'] / 60:.1f}", "plain workers"],
                ],
            ),
            "",
            f"USD: workers with a GPU {found['gpu_cost']:,.0f}, plain ones {found['plain_cost']:,.1f}, storage "
            f"requests {found['request_cost']:,.0f}; without storing {found['written_bytes'] / 1e12:.1f} TB.",
            "One pool of GPU workers for everything, without `--accelerator`, would cost "
            f"{waiting:,.1f} more for GPUs that wait.",
            "",
            "## What limits a worker",
            "",
            table(
                ["", "images/s", "of which used"],
                [
                    [name if index else f"**{name}**", f"{limit:,.0f}", f"{per_worker / limit:.0%}"]
                    for index, (name, limit) in enumerate(limits)
                ],
            ),
            "",
            f"An image takes at most {found['core_seconds']:.3f} s of a core: {found['cores_for_gpu']:.1f} cores keep "
            f"up with {given['gpu_images_per_second']:g} images/s of a GPU, and {given['cores']:g} cores with "
            f"{found['limits'][_CORES]:,.0f}.",
            "",
            "## Storage",
            "",
            table(
                ["", "", "limit"],
                [
                    ["list requests", f"{found['pages']:,} pages of {_PAGE}, one after the other", "none near"],
                    ["reads", _traffic(found, "read"), _ramp(given["first_reads_per_second"], found["read_ramp"])],
                    [
                        "writes, all below one prefix",
                        _traffic(found, "written"),
                        _ramp(given["first_writes_per_second"], found["ramp"]),
                    ],
                    ["manifest", f"{found['manifest_bytes'] / 1e9:.2f} GB", f"{found['shards']} files of 100 MB"],
                    ["crosses a shuffle", f"{found['shuffled'] / 1e9:.1f} GB", "references and rows only"],
                ],
            ),
            "",
            "Packing into shards (`--output_format`) adds a read and a removal of each image.",
            "",
            "## What breaks first",
            "",
            *_breaks(found, given),
            "",
            "## What it rests on",
            "",
            table(["measured", "", "where"], _sources(known, rows)),
            "",
            f"Of throughput.json: {known['machine']}, {known['threads']} threads that share the cores with the model,",
            "so times of a core are upper bounds.",
            "",
            table(
                ["not measured", "", "why", "argument"],
                [
                    [
                        "assumed" if name in assumed else "given",
                        f"{_number(given[name])} {about.unit}",
                        about.why if name in assumed else "",
                        f"`--{name}`",
                    ]
                    for name, about in ASSUMPTIONS.items()
                ],
            ),
            "",
        ]
    )


def _hours(known: Figures, rows: Figures, given: Figures, factor: float) -> float:
    """With a GPU so many times as fast."""
    other = given | {"gpu_images_per_second": factor * given["gpu_images_per_second"]}
    return float(calculate(known, rows, other)["hours"])


def _sources(known: Figures, rows: Figures) -> list[list[str]]:
    def milliseconds(name: str, digits: int = 1) -> str:
        return f"{1000 * known[name]:.{digits}f} ms"

    return [
        ["reading", f"{milliseconds('read_seconds')} an image", "throughput.json, local disk"],
        ["decoding", f"{milliseconds('decode_seconds_per_megapixel', 0)} a megapixel", "throughput.json"],
        ["encoding PNG", f"{milliseconds('encode_seconds_per_megapixel', 0)} a megapixel", "throughput.json"],
        ["writing", f"{milliseconds('write_seconds')} an image", "throughput.json, local disk"],
        [
            "Beam's own time",
            f"{milliseconds('beam_seconds', 2)} an image",
            f"scale.json, local runner, up to {known['beam_at']:,} images",
        ],
        ["listing", f"{known['listed_per_second']:,.0f} images/s", "listing.md, a fake store on the same cores"],
        ["loading", f"{known['load_seconds']:.1f} s", "throughput.json, imports and the default autoencoder"],
        ["manifest", f"{rows['row_bytes']:.0f} bytes and {1e6 * rows['row_seconds']:.1f} us a row", "now"],
        ["shuffled", f"{rows['shuffled_bytes']:,} bytes an image", "now: its reference and its row, encoded by Beam"],
    ]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:g}"


def _traffic(found: Figures, kind: str) -> str:
    return f"{found['rate']:,.0f}/s, {found[f'{kind}_bytes_per_second'] / 1e6:,.0f} MB/s"


def _ramp(first: float, minutes: float) -> str:
    return f"{first:,.0f}/s at first; " + (f"{minutes:.0f} minutes until it takes all" if minutes > 0 else "enough")


def _breaks(found: Figures, given: Figures) -> list[str]:
    """In the order in which they come, as the fleet grows."""
    per_worker = found["rate"] / given["workers"]
    entries = [
        (
            given["first_writes_per_second"] / per_worker,
            "the writes a second that a bucket takes at first. Its answers 429 and 503 are tried again, ever more "
            "slowly, for up to two minutes; what then still fails is a row of the failures (`unavailable`), which "
            "`--resume` does next time. A fleet that grows slowly meets a bucket that has grown too. Results are named "
            "like their sources; where those are numbered, all writes go to one end of the bucket, and nothing has "
            "been done about that.",
        ),
        (given["first_reads_per_second"] / per_worker, "the reads a second that a bucket takes at first. Likewise."),
        (
            found["transport"] * given["workers"] / found["listing"],
            "listing, which one worker does for each input, takes longer than transport. Several inputs "
            "(`--input a/ b/`) are listed by several. GPUs don't wait for it where `--accelerator` gives them a pool "
            "of their own.",
        ),
    ]
    return [
        *(f"- Beyond {_number(round(workers))} workers: {what}" for workers, what in sorted(entries)),
        "- With any number: a manifest in one file, the default, is written by one worker, in "
        f"{found['manifest_in_one'] / 60:.1f} minutes after everything else; with `--manifest_shards "
        f"{found['shards']}` in {found['manifest'] / 60:.1f}.",
        "- What doesn't break: pixels. With reading and writing apart from the model, "
        f"{found['pixels_bytes'] / 1e12:.1f} TB would cross a shuffle; fused with it, "
        f"{found['shuffled'] / 1e9:.1f} GB do.",
    ]


def main() -> None:
    """Reads, calculates, writes the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the other benchmarks' results")
    parser.add_argument("--output", type=Path)
    for name, about in ASSUMPTIONS.items():
        parser.add_argument(f"--{name}", type=float, help=f"{about.unit} (assumed: {about.default:g}, {about.why})")
    args = parser.parse_args()
    given: dict[str, Any] = {name: getattr(args, name) for name in ASSUMPTIONS}
    given["gpu_images_per_second"] = given["gpu_images_per_second"] or gpu_images_per_second(args.results)
    assumed = {name for name in ASSUMPTIONS if given[name] is None}
    given |= {name: ASSUMPTIONS[name].default for name in assumed}
    known, rows = measured(args.results), measure_rows()
    text = page(known, rows, given, calculate(known, rows, given), assumed)
    print(text)
    if args.output:
        write_page(args.output, text)


if __name__ == "__main__":
    main()
