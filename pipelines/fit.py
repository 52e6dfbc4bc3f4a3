"""Fits a transport map from a few natural images (target) and a few restored ones (source).

ListImages -> LatentStatistics.PerKey (+ ReadStatistics) -> FitTransportMap -> WriteTransportMap
failures -> WriteFailures
"""

import argparse
import math
import posixpath
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ot_core import FittedMap, UserError, load_autoencoder, load_restorer, read_map, storage
from ot_core.degradation import Degradation
from ot_core.fitted_map import UNKNOWN_ORIGIN, SourceOrigin
from ot_core.fitting import autoencoder_of, check_restorer
from ot_core.groups import GROUP, is_pattern, map_of_group
from ot_core.layout import numbered
from ot_core.map_file import read_statistics
from ot_core.parts import SIDES, Part
from pipelines import options, parsers
from pipelines.apart import check_apart
from pipelines.launch import Job, check_inputs, launch
from pipelines.summary import Counters
from transforms import (
    Failure,
    FitTransportMap,
    ImageRef,
    LatentStatistics,
    ListImages,
    ReadStatistics,
    WriteFailures,
    WriteTransportMap,
    metrics,
)
from transforms.grouped_images import choose_part
from transforms.latent_statistics import MergeStatistics
from transforms.pairs import KeepBackPairs, KeptRefs, PairReader
from transforms.quiet_beam import beam

parser = parsers.fit
_EXTENSION = ".safetensors"


@dataclass(frozen=True)
class Plan:
    """A job, as its flags and the statistics that they name say.

    Attributes:
        args: the flags.
        vae: the autoencoder; None for the default one.
        patch_size: p.
        margin: of earlier statistics; None where it is to be measured.
        method: one of `ot_core.choices.METHODS`.
        restorer: what restores the source, also where --degrade alone calls for one.
    """

    args: argparse.Namespace
    vae: str | None
    patch_size: int
    margin: int | None
    method: str
    restorer: str | None


def resolve(args: argparse.Namespace) -> Plan:
    """The plan, of which anything that is wrong is told before any work starts."""
    options.check_group_by(args)
    images, statistics = images_of(args), statistics_of(args)
    _check_degradation(args)
    if args.add_to and not args.source and not args.target:
        raise UserError("--add_to: expected images to add, in --source, --target or both")
    for side in SIDES:
        if side not in images and side not in dict(statistics) and not (side == "source" and args.degrade):
            raise UserError(f"--{side}: expected images or statistics; a side may be left out only with --add_to")
    if args.paired and len(images) < len(SIDES):
        raise UserError("--paired: expected images in both --source and --target")
    if args.paired and args.common_target:
        raise UserError("--common_target: leave it out with --paired, which pairs images within a group")
    folder, name = failures_beside(args.map)
    inputs = [(f"--{side}", spec) for side, specs in images.items() for spec in specs]
    check_apart(inputs, f"--map {args.map}", [], [storage.join(folder, numbered(name, 0, 1))])
    for side, specs in images.items():
        check_inputs((f"--{side}", specs), group_by=args.group_by if side in _grouped(args) else None)
    return resolve_output(args)


def _check_degradation(args: argparse.Namespace) -> None:
    """Refuses inputs that don't go with --degrade."""
    if not args.degrade:
        return
    for flag in ("source", "paired", "common_target"):
        if getattr(args, flag, None):
            raise UserError(f"--degrade: makes the source from --target, in pairs; leave --{flag} out")
    if "target" not in images_of(args):
        raise UserError("--degrade: expected natural images in --target")


def restorer_for(degrade: str, restorer: str | None, device: str | None) -> str | None:
    """The restorer of what is degraded: the given one; without one, what brings a reduced image back to its size.

    Raises:
        UserError: if the restorer, or what degrade says, can't be used, or they don't go together.
    """
    scale = Degradation(degrade).scale
    if scale > 1 and not restorer:
        restorer = f"bicubic:{scale}"
    found = load_restorer(restorer, device).scale if restorer else 1
    if found != scale:
        raise UserError(f"--degrade {degrade}: needs a restorer of scale {scale}; {restorer} has {found}")
    return restorer


def origin_of(plan: Plan) -> SourceOrigin:
    """How the images of the source are made in this job; where it reads none, how earlier ones were."""
    args = plan.args
    if plan.restorer:
        restorer = load_restorer(plan.restorer, options.device_here(args))
        return SourceOrigin(restorer.name, restorer.fingerprint, args.degrade or "")
    as_rows = not hasattr(args, "source")  # in Beam YAML
    if args.degrade or as_rows or images_of(args).get("source"):
        return SourceOrigin(degradation=args.degrade or "")
    earlier = (read_statistics(url).origin for side, url in statistics_of(args) if side == "source")
    return next(earlier, UNKNOWN_ORIGIN)


def resolve_output(args: argparse.Namespace) -> Plan:
    """The plan of a job whose images are rows. Earlier statistics decide what the flags leave open."""
    if not args.map.endswith(_EXTENSION):
        raise UserError(f"--map {args.map}: expected a name ending in {_EXTENSION}")
    if args.common_target and not is_pattern(args.map):
        raise UserError(f"--common_target: expected groups, with {GROUP} in --map")
    restorer = restorer_for(args.degrade, args.restorer, options.device_here(args)) if args.degrade else args.restorer
    storage.check_writable(storage.parent(args.map.partition(GROUP)[0] + "x"))
    _check_replaced(args.map)
    statistics = statistics_of(args)
    for side, url in statistics:
        if side in _grouped(args):
            raise UserError(f"--map {args.map}: leave out {GROUP}, since the {side} statistics of {url} have no group")
    if not statistics:
        load_autoencoder(args.vae, options.device_here(args), options.precision_of(args))
    vae, patch_size, margin = _agreed(args, statistics, restorer)
    method = args.method or ("pixels" if getattr(args, "paired", False) or args.degrade else "matched")
    if args.add_to:
        method = read_map(args.add_to).map.method
        if args.method not in (None, method):
            raise UserError(f"--method {args.method}: {args.add_to} was fitted with {method}; leave --method out")
    return Plan(args, vae, patch_size or 3, margin, method, restorer)


def _check_replaced(map_url: str) -> None:
    """Refuses to write a map over anything but an earlier one: weights and statistics have that extension, too."""
    if is_pattern(map_url) or storage.details(map_url) is None:
        return
    try:
        if storage.read_bytes(map_url, end=1):
            read_map(map_url)
    except (OSError, UserError):
        raise UserError(f"--map {map_url}: is a file that isn't a map; choose another name") from None


def _grouped(args: argparse.Namespace) -> tuple[str, ...]:
    """The sides whose images count for the map of their group alone."""
    return () if not is_pattern(args.map) else ("source",) if args.common_target else SIDES


def images_of(args: argparse.Namespace) -> dict[str, list[str]]:
    """The inputs of each side that are images."""
    found = {side: [spec for spec in getattr(args, side) or [] if not spec.endswith(_EXTENSION)] for side in SIDES}
    return {side: specs for side, specs in found.items() if specs}


def statistics_of(args: argparse.Namespace) -> list[tuple[str, str]]:
    """Side and URL of the inputs that are files of statistics; a map that is added to is one for either side."""
    given = [(side, spec) for side in SIDES for spec in getattr(args, side, None) or [] if spec.endswith(_EXTENSION)]
    return given + [(side, args.add_to) for side in SIDES if args.add_to]


def _agreed(
    args: argparse.Namespace, statistics: Sequence[tuple[str, str]], restorer: str | None
) -> tuple[str | None, int | None, int | None]:
    """Autoencoder, patch size and margin that all files of statistics and the flags agree on.

    Raises:
        UserError: if they don't.
    """
    vae, patch_size, margin = args.vae, args.patch_size, None
    for side, url in statistics:
        if statistics.count((side, url)) > 1:
            raise UserError(f"--{side} {url}: given twice, so its statistics would count twice")
        sets = read_statistics(url)
        if not sets.of_side(side):
            raise UserError(
                f"--{side} {url}: holds statistics of {', '.join(sets.sides) or 'nothing'}, not of a {side}"
            )
        patch_size = patch_size or sets.space.patch_size
        margin = sets.space.margin if margin is None else margin
        difference = sets.space.difference(replace(sets.space, patch_size=patch_size, margin=margin))
        if difference:
            raise UserError(f"{url}: has {difference}; fit both with the same settings")
        autoencoder_of(sets.space, url, vae, options.device_here(args), options.precision_of(args))
        if side == "source" and restorer and not args.allow_other_restorer:
            check_restorer(sets.origin, url, load_restorer(restorer, options.device_here(args)))
        vae = vae or sets.space.vae or None
    return vae, patch_size, margin


def build(pipeline: beam.Pipeline, plan: Plan) -> None:
    """The whole dataflow."""
    args = plan.args
    images, unlisted = pipeline | "ListImages" >> ListImages(
        images_of(args),
        args.max_images,
        args.paired,
        group_by=dict.fromkeys(_grouped(args), args.group_by),
        max_pixels=args.max_pixels,
        max_bytes=args.max_bytes,
    )
    _, failures = fit_map(images, plan)
    folder, name = failures_beside(args.map)
    all_failures = (unlisted, *failures) | "FlattenFailures" >> beam.Flatten()
    _ = all_failures | "WriteFailures" >> WriteFailures(folder, name=name)


def fit_map(
    images: beam.PCollection[ImageRef], plan: Plan
) -> tuple[beam.PCollection[str], Sequence[beam.PCollection[Failure]]]:
    """From images of the sides, and earlier statistics, to the URL of each map that was written, and failures."""
    args = plan.args
    encode = LatentStatistics.PerKey(
        plan.vae,
        plan.patch_size,
        args.max_pixels,
        args.max_batch_pixels,
        precision=options.precision_of(args),
        degradation=args.degrade,
        restorer=plan.restorer,
        max_bytes=args.max_bytes,
        margin=plan.margin,
        device=options.device_of(args),
    )
    grouped = _grouped(args)
    chosen, ungrouped = images | "SplitSides" >> choose_part(grouped)
    statistics, unread = chosen | "LatentStatistics" >> options.on_accelerator(encode, args)
    earlier = statistics_of(args)
    if earlier:
        read = images.pipeline | "ReadStatistics" >> ReadStatistics(earlier)
        both = (statistics, read) | "FlattenStatistics" >> beam.Flatten()
        statistics = both | "AddStatistics" >> MergeStatistics(Part)
    fit = FitTransportMap(
        plan.vae,
        plan.patch_size,
        plan.method,
        grouped=bool(grouped),
        origin=origin_of(plan),
        margin=plan.margin,
        kept_back=kept_back_for(chosen, args),
        read_pair=PairReader(
            args.degrade, plan.restorer, args.max_pixels, args.max_bytes, options.device_elsewhere(args)
        ),
        residual=args.residual,
        device=options.device_elsewhere(args),
    )
    maps, unfitted = statistics | "FitTransportMap" >> fit
    return maps | "WriteTransportMap" >> WriteTransportMap(args.map), (ungrouped, unread, unfitted)


def kept_back_for(
    images: beam.PCollection[ImageRef], args: argparse.Namespace
) -> "beam.PCollection[tuple[str, KeptRefs]] | None":
    """The pairs to check the map on, or None where there are none."""
    if not args.check_pairs or not (args.degrade or getattr(args, "paired", False)):
        return None
    return images | "KeepBackPairs" >> KeepBackPairs(["target"] if args.degrade else SIDES, args.check_pairs)


def report(plan: Plan, counters: Counters) -> str:
    """What was fitted, read back from the map."""
    args = plan.args
    if not counters.get(metrics.MAPS_WRITTEN):
        where = storage.join(*failures_beside(args.map))
        raise UserError(f"no map was written: no image of one side or both could be used; see {where}-*.parquet")
    if args.group_by:
        return "\n".join(_maps_written(args, counters))
    fitted = read_map(args.map)
    distance = fitted.distance_squared()
    lines = [
        f"map {args.map}",
        f"  source {fitted.source.count} and target {fitted.target.count} patches of dimension {fitted.map.dimension}",
        f"  squared Wasserstein distance between them {distance:.4g}",
    ]
    added = ", ".join(sorted({url for _, url in statistics_of(args)}))
    if added:
        lines.append(f"  with the statistics of {added}")
    if args.degrade:
        lines.append(
            f"  source: target degraded by {args.degrade}" + (f", restored by {plan.restorer}" if plan.restorer else "")
        )
    elif args.paired:
        lines.append(f"  {counters.get(metrics.IMAGES_UNPAIRED, 0)} images left out, whose keys the other side lacks")
    else:
        lines += _advice(fitted, distance, counters.get(metrics.KEYS_SHARED, 0))
    lines += _checked(fitted)
    return "\n".join(lines)


def _checked(fitted: FittedMap) -> Iterator[str]:
    """The lines about the pairs that were kept back."""
    if fitted.check is not None:
        yield f"  {fitted.check.sentence}"
        shown = [("restored", fitted.check.restored)]
        shown += [(f"alpha {alpha:g}", found) for alpha, found in fitted.check.results]
        for name, found in shown:
            yield (
                f"    {name:10} PSNR {found.psnr:.2f} dB, distance {found.distance:.3g}, "
                f"spectrum {found.spectrum:.1f} dB, grid {found.grid:.2f}"
            )
    if fitted.residual:
        yield f"  adds back {fitted.residual:.2f} of what the autoencoder loses"


def _maps_written(args: argparse.Namespace, counters: Counters) -> Iterator[str]:
    """The summary of many maps."""
    yield f"{counters[metrics.MAPS_WRITTEN]} maps {args.map}"
    noisy = counters.get(metrics.MAPS_MOSTLY_NOISE, 0)
    if noisy and not args.paired:
        yield (
            f"  WARNING: {noisy} of them are noisy (dot-map inspect tells which): part of what they change is how the "
            "scenes of the two sides differ. Fit on more images, or on pairs (--paired)"
        )


def _advice(fitted: FittedMap, distance: float, shared: int) -> list[str]:
    """How far to trust a map of unpaired images."""
    lines, floor = [], fitted.noise_floor
    if floor is not None:
        lines.append(
            f"  of which the choice of images explains about {floor:.4g} (noise floor, from random halves of each side)"
        )
        if fitted.is_noisy:
            times = math.ceil(4 * floor / (distance - floor)) if distance > 1.1 * floor else 0
            more = f"about {times} times as many" if times else "many more"
            share = floor / distance if distance > floor else 1.0
            lines.append(
                f"  WARNING: chance explains {share:.0%} of the distance: part of what the map changes is how the "
                f"scenes of the two sides differ. Fit on {more} images, or on pairs (--paired)"
            )
    if shared:
        lines.append(f"  {shared} keys are on both sides; --paired fits on these alone, which is usually much better")
    return lines


def failures_beside(map_url: str) -> tuple[str, str]:
    """Folder of the failures of a map, or of all groups' maps, and what their files' names begin with."""
    map_url = map_of_group(map_url, "groups")
    return storage.parent(map_url), posixpath.basename(map_url).removesuffix(".safetensors") + ".failures"


job = Job(resolve, build, report)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the job; returns its exit code."""
    return launch(job, parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
