"""Fits a transport map from a few natural images (target) and a few restored ones (source).

ListImages -> LatentStatistics.PerKey (+ ReadStatistics) -> FitTransportMap -> WriteTransportMap
failures -> WriteFailures
"""

import argparse
import math
import posixpath
import sys
from collections.abc import Sequence

import apache_beam as beam

from ot_core import UserError, load_autoencoder, read_map, storage
from ot_core.map_file import read_statistics
from ot_core.noise import part_of
from pipelines import options
from pipelines.launch import check_inputs, launch
from pipelines.summary import Counters
from transforms import (
    FitTransportMap,
    GaussianStatisticsCombineFn,
    ImageRef,
    LatentStatistics,
    ListImages,
    ReadStatistics,
    WriteFailures,
    WriteTransportMap,
    metrics,
)
from transforms.drift import INPUTS
from transforms.maps import METHODS, autoencoder_of_map, method_of

_EXTENSION = ".safetensors"
SIDES = ("source", "target")


def parser() -> options.ArgumentParser:
    """The job's flags."""
    flags = options.ArgumentParser("dot-fit", "Fits a transport map from natural and restored images.")
    options.add_input(flags, "--target", "natural images, or a map whose target to take", required=False)
    options.add_input(
        flags, "--source", "restored images, or a drift.safetensors of dot-transport, or a map", required=False
    )
    flags.add_argument("--map", required=True, metavar="URL", help="the .safetensors file to write")
    flags.add_argument(
        "--add_to",
        metavar="URL",
        help="a map whose statistics the images are added to, with its method, patch size and autoencoder; either side "
        "may be left out then. Which images a map holds isn't known, so one that is added twice counts twice",
    )
    flags.add_argument(
        "--patch_size", type=int, choices=(1, 3, 5, 7), help="p (default 3, or that of the statistics added to)"
    )
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
    if not args.map.endswith(_EXTENSION):
        raise UserError(f"--map {args.map}: expected a name ending in {_EXTENSION}")
    if args.add_to == args.map:
        raise UserError(f"--map {args.map}: expected another file than --add_to, so that a second run adds nothing")
    args.images, args.statistics = _split_inputs(args)
    check_inputs(*((f"--{side}", specs) for side, specs in args.images.items()))
    storage.check_writable(storage.parent(args.map))
    if args.statistics:
        _check_statistics(args)
    else:
        args.patch_size = args.patch_size or 3
        load_autoencoder(args.vae, precision=options.precision_of(args))
    if args.add_to:
        method = method_of(read_map(args.add_to))
        if args.method not in (None, method):
            raise UserError(f"--method {args.method}: {args.add_to} was fitted with {method}; leave --method out")
        args.method = method
    args.method = args.method or ("pixels" if args.paired else "matched")


def _split_inputs(args: argparse.Namespace) -> tuple[dict[str, list[str]], list[tuple[str, str]]]:
    """The images of each side, and the files of statistics, with the side that they are for."""
    images: dict[str, list[str]] = {}
    statistics: list[tuple[str, str]] = []
    for side in SIDES:
        for spec in getattr(args, side) or []:
            if spec.endswith(_EXTENSION):
                statistics.append((side, spec))
            else:
                images.setdefault(side, []).append(spec)
    if args.add_to:
        statistics += [(side, args.add_to) for side in SIDES]
        if not args.source and not args.target:
            raise UserError("--add_to: expected --source, --target or both: what to add")
    missing = [side for side in SIDES if side not in images and side not in dict(statistics)]
    twice = [url for side, url in statistics if statistics.count((side, url)) > 1]
    if twice:
        raise UserError(f"{twice[0]}: given twice, so its statistics would count twice")
    if missing:
        raise UserError(f"--{missing[0]}: expected images or statistics; only with --add_to may a side be left out")
    if args.paired and len(images) < len(SIDES):
        raise UserError("--paired: expected images in both --source and --target")
    return images, statistics


def _check_statistics(args: argparse.Namespace) -> None:
    """Finds out what the statistics were gathered with, on which all files and the flags must agree."""
    for index, (side, url) in enumerate(args.statistics):
        sets = read_statistics(url)
        names = [name for name in (side, INPUTS) if sets.named(name)]
        if not names or (side, names[0]) == ("target", INPUTS):
            raise UserError(
                f"--{side} {url}: holds statistics of {', '.join(sets.names) or 'nothing'}, not of a {side}"
            )
        args.statistics[index] = (side, url, names[0])
        args.patch_size = args.patch_size or sets.patch_size
        if sets.patch_size != args.patch_size:
            raise UserError(f"{url}: holds patches of size {sets.patch_size}, expected {args.patch_size}")
        autoencoder_of_map(sets, url, args.vae, precision=options.precision_of(args))
        args.vae = args.vae or sets.vae or None


def build(pipeline: beam.Pipeline, args: argparse.Namespace) -> None:
    """The whole dataflow."""
    images, unlisted = pipeline | "ListImages" >> ListImages(args.images, args.max_images, args.paired)
    encode = LatentStatistics.PerKey(
        args.vae, args.patch_size, args.max_pixels, args.max_batch_pixels, precision=options.precision_of(args)
    )
    statistics, unread = (
        images | "SplitSides" >> beam.Map(_in_random_part) | "LatentStatistics" >> options.on_accelerator(encode, args)
    )
    if args.statistics:
        earlier = pipeline | "ReadStatistics" >> ReadStatistics(args.statistics)
        statistics = (
            (statistics, earlier)
            | "FlattenStatistics" >> beam.Flatten()
            | "MergeStatistics" >> beam.CombinePerKey(GaussianStatisticsCombineFn())
        )
    maps, unfitted = statistics | "FitTransportMap" >> FitTransportMap(args.vae, args.patch_size, args.method)
    _ = maps | "WriteTransportMap" >> WriteTransportMap(args.map)

    failures = (unlisted, unread, unfitted) | "FlattenFailures" >> beam.Flatten()
    _ = failures | "WriteFailures" >> WriteFailures(storage.parent(args.map), name=_failures_name(args.map))


def _in_random_part(ref: ImageRef) -> ImageRef:
    return ref._replace(group=part_of(ref.group, ref.key))


def report(args: argparse.Namespace, counters: Counters) -> str:
    """What was fitted, read back from the map."""
    if not counters.get(metrics.MAPS_WRITTEN):
        where = storage.join(storage.parent(args.map), _failures_name(args.map))
        raise UserError(f"no map was written: no image of one side or both could be used; see {where}-*.parquet")
    fitted = read_map(args.map)
    distance = fitted.distance_squared()
    lines = [
        f"map {args.map}",
        f"  source {fitted.source.count} and target {fitted.target.count} patches of dimension {fitted.dimension}",
        f"  squared Wasserstein distance between them {distance:.4g}",
    ]
    added = ", ".join(sorted({url for _, url, _ in args.statistics}))
    if added:
        lines.append(f"  with the statistics of {added}")
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


def _failures_name(map_url: str) -> str:
    return posixpath.basename(map_url).removesuffix(".safetensors") + ".failures"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the job; returns its exit code."""
    return launch(parser(), argv, check, build, report)


if __name__ == "__main__":
    sys.exit(main())
