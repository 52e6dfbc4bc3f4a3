"""Fits a transport map from a few natural images (target) and a few restored ones (source).

ListImages -> LatentStatistics.PerKey -> FitTransportMap -> WriteTransportMap ; failures -> WriteFailures
"""

import argparse
import posixpath
import sys
from collections.abc import Sequence

import apache_beam as beam

from ot_core import UserError, load_autoencoder, read_map, storage
from pipelines import options
from pipelines.launch import Counters, check_inputs, launch
from transforms import FitTransportMap, LatentStatistics, ListImages, WriteFailures, WriteTransportMap, metrics


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
    options.add_common(flags)
    return flags


def check(args: argparse.Namespace) -> None:
    """What is wrong before any work starts."""
    if not args.map.endswith(".safetensors"):
        raise UserError(f"--map {args.map}: expected a name ending in .safetensors")
    check_inputs(("--target", args.target), ("--source", args.source))
    storage.check_writable(storage.parent(args.map))
    load_autoencoder(args.vae)


def build(pipeline: beam.Pipeline, args: argparse.Namespace) -> None:
    """The whole dataflow."""
    images, unlisted = pipeline | "ListImages" >> ListImages(
        {"source": args.source, "target": args.target}, args.max_images
    )
    statistics, unread = images | "LatentStatistics" >> LatentStatistics.PerKey(
        args.vae, args.patch_size, args.max_pixels, args.max_batch_pixels
    )
    maps, unfitted = statistics | "FitTransportMap" >> FitTransportMap(args.vae, args.patch_size)
    _ = maps | "WriteTransportMap" >> WriteTransportMap(args.map)

    failures = (unlisted, unread, unfitted) | "FlattenFailures" >> beam.Flatten()
    _ = failures | "WriteFailures" >> WriteFailures(storage.parent(args.map), name=_failures_name(args.map))


def report(args: argparse.Namespace, counters: Counters) -> str:
    """What was fitted, read back from the map."""
    if not counters.get(metrics.MAPS_WRITTEN):
        where = storage.join(storage.parent(args.map), _failures_name(args.map))
        raise UserError(f"no map was written: no image of one side or both could be used; see {where}-*.parquet")
    fitted = read_map(args.map)
    return (
        f"map {args.map}\n"
        f"  source {fitted.source.count} and target {fitted.target.count} patches of dimension {fitted.dimension}\n"
        f"  squared Wasserstein distance between them {fitted.distance_squared():.4g}"
    )


def _failures_name(map_url: str) -> str:
    return posixpath.basename(map_url).removesuffix(".safetensors") + ".failures"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the job; returns its exit code."""
    return launch(parser(), argv, check, build, report)


if __name__ == "__main__":
    sys.exit(main())
