"""Fits a transport map from a few natural images (target) and a few restored ones (source).

ListImages -> LatentStatistics.PerKey -> FitTransportMap -> WriteTransportMap ; failures -> WriteFailures
"""

import argparse
import math
import posixpath
import sys
import zlib
from collections.abc import Sequence

import apache_beam as beam

from ot_core import UserError, load_autoencoder, read_map, storage
from pipelines import options
from pipelines.launch import check_inputs, launch
from pipelines.summary import Counters
from transforms import (
    Failure,
    FitTransportMap,
    ImageRef,
    LatentStatistics,
    ListImages,
    WriteFailures,
    WriteTransportMap,
    metrics,
)
from transforms.maps import METHODS

#: Each side is gathered in so many random parts, whose halves tell how much the choice of images matters.
PARTS = 4


def parser() -> options.ArgumentParser:
    """The job's flags."""
    flags = options.ArgumentParser("dot-fit", "Fits a transport map from natural and restored images.")
    options.add_input(flags, "--target", "natural images")
    options.add_input(flags, "--source", "restored images")
    flags.add_argument("--map", required=True, metavar="URL", help="the .safetensors file to write")
    flags.add_argument("--patch_size", type=int, choices=(1, 3, 5, 7), default=3, help="p (default %(default)s)")
    flags.add_argument(
        "--max_images", type=options.number(int, 1), metavar="N", help="take at most N images of each side"
    )
    flags.add_argument(
        "--paired", action="store_true", help="take only keys that both sides have, so that both show the same things"
    )
    flags.add_argument(
        "--method",
        choices=METHODS,
        help="matched (default): takes differences in the colour of patches, which restorers keep, for content; pixels "
        "(default with --paired): doesn't; both change decoded pixels least. paper: changes latents least",
    )
    options.add_accelerator(flags)
    options.add_common(flags)
    return flags


def check(args: argparse.Namespace) -> None:
    """What is wrong before any work starts."""
    check_inputs(("--target", args.target), ("--source", args.source))
    check_output(args)


def check_output(args: argparse.Namespace) -> None:
    """What is wrong of all but the inputs."""
    if not args.map.endswith(".safetensors"):
        raise UserError(f"--map {args.map}: expected a name ending in .safetensors")
    storage.check_writable(storage.parent(args.map))
    load_autoencoder(args.vae, precision=options.precision_of(args))


def build(pipeline: beam.Pipeline, args: argparse.Namespace) -> None:
    """The whole dataflow."""
    images, unlisted = pipeline | "ListImages" >> ListImages(
        {"source": args.source, "target": args.target}, args.max_images, args.paired
    )
    _, failures = fit_map(images, args, args.method or ("pixels" if args.paired else "matched"))
    folder, name = failures_beside(args.map)
    all_failures = (unlisted, *failures) | "FlattenFailures" >> beam.Flatten()
    _ = all_failures | "WriteFailures" >> WriteFailures(folder, name=name)


def fit_map(
    images: beam.PCollection[ImageRef], args: argparse.Namespace, method: str
) -> tuple[beam.PCollection[str], Sequence[beam.PCollection[Failure]]]:
    """From the images of both sides to the URL of the map that was written, and failures."""
    encode = LatentStatistics.PerKey(
        args.vae, args.patch_size, args.max_pixels, args.max_batch_pixels, precision=options.precision_of(args)
    )
    statistics, unread = (
        images | "SplitSides" >> beam.Map(_in_random_part) | "LatentStatistics" >> options.on_accelerator(encode, args)
    )
    maps, unfitted = statistics | "FitTransportMap" >> FitTransportMap(args.vae, args.patch_size, method)
    return maps | "WriteTransportMap" >> WriteTransportMap(args.map), (unread, unfitted)


def _in_random_part(ref: ImageRef) -> ImageRef:
    return ref._replace(group=f"{ref.group}/{zlib.crc32(ref.key.encode()) % PARTS}")


def report(args: argparse.Namespace, counters: Counters) -> str:
    """What was fitted, read back from the map."""
    if not counters.get(metrics.MAPS_WRITTEN):
        where = storage.join(*failures_beside(args.map))
        raise UserError(f"no map was written: no image of one side or both could be used; see {where}-*.parquet")
    fitted = read_map(args.map)
    distance = fitted.distance_squared()
    lines = [
        f"map {args.map}",
        f"  source {fitted.source.count} and target {fitted.target.count} patches of dimension {fitted.dimension}",
        f"  squared Wasserstein distance between them {distance:.4g}",
    ]
    if args.paired:
        lines.append(f"  {counters.get(metrics.IMAGES_UNPAIRED, 0)} images without a partner left out")
    else:
        lines += _advice(distance, fitted.noise_floor, counters.get(metrics.KEYS_SHARED, 0))
    return "\n".join(lines)


def _advice(distance: float, floor: float | None, shared: int) -> list[str]:
    """What the user should know about how far to trust a map of unpaired images."""
    lines = []
    if floor is not None:
        lines.append(
            f"  of which the choice of images explains about {floor:.4g} (noise floor, from random halves of each side)"
        )
        if floor > distance / 2:
            times = math.ceil(4 * floor / (distance - floor)) if distance > 1.1 * floor else 0
            more = f"about {times} times as many" if times else "many more"
            lines.append(
                "  WARNING: the map is mostly noise: it carries what the two sides happen to show. "
                f"Fit on {more} images, or on pairs (--paired)"
            )
    if shared:
        lines.append(f"  {shared} keys are on both sides; --paired fits on these alone, which is usually much better")
    return lines


def failures_beside(map_url: str) -> tuple[str, str]:
    """Folder of a map's failures, and what their files' names begin with."""
    return storage.parent(map_url), posixpath.basename(map_url).removesuffix(".safetensors") + ".failures"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the job; returns its exit code."""
    return launch(parser(), argv, check, build, report)


if __name__ == "__main__":
    sys.exit(main())
