"""Transports an archive of restored images with a fitted map.

ListImages (-> SkipDone) -> TransportImages (-> PackShards) -> WriteManifest (-> RemoveUnneeded)
statistics of latents -> WriteDrift ; failures -> WriteFailures
"""

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ot_core import UserError, load_restorer, read_map, storage
from ot_core.drift import LIMIT, Verdict
from ot_core.fitting import check_restorer, read_maps
from ot_core.groups import GROUP, find_maps, is_pattern
from ot_core.layout import OutputLayout, drift_url, statistics_url
from pipelines import options, parsers
from pipelines.apart import check_apart
from pipelines.launch import Job, check_inputs, launch
from pipelines.parsers import AUTO
from pipelines.summary import Counters
from transforms import (
    Failure,
    ImageRecord,
    ImageRef,
    ListImages,
    PackShards,
    RemoveUnneeded,
    SkipDone,
    TransportImages,
    TransportOptions,
    WriteDrift,
    WriteFailures,
    WriteManifest,
    metrics,
)
from transforms.quiet_beam import beam
from transforms.records import counted
from transforms.resume import ReplaceOutdated
from transforms.starting import Start, images_left, plan_start, start_job

parser = parsers.transport


@dataclass(frozen=True)
class Plan:
    """A job, as its flags, its maps and its output say.

    Attributes:
        args: the flags.
        maps: URL of the map of each group; "" is for images of any other.
        start: where the results go, and what becomes of those that the output holds.
        warning: what speaks against it, if anything.
        removed: files of an earlier job that were removed.
        left: images that are left where those were.
    """

    args: argparse.Namespace
    maps: Mapping[str, str]
    start: Start
    warning: str = ""
    removed: int = 0
    left: int = 0

    @property
    def layout(self) -> OutputLayout:
        """Where the results go."""
        return self.start.layout


def resolve(args: argparse.Namespace) -> Plan:
    """The plan, of which anything that is wrong is told before any work starts."""
    options.check_group_by(args)
    maps = _maps(args)
    alphas, warning = chosen_alphas(args, maps)
    wanted = _wanted(args, alphas)
    inputs = [("--input", spec) for spec in args.input]
    check_apart(inputs, f"--output {args.output}", wanted.places(), wanted.examples())
    check_inputs(("--input", args.input), group_by=args.group_by)
    return _planned(args, maps, wanted, warning)


def resolve_output(args: argparse.Namespace) -> Plan:
    """The plan of a job whose inputs are rows."""
    maps = _maps(args)
    alphas, warning = chosen_alphas(args, maps)
    return _planned(args, maps, _wanted(args, alphas), warning)


def _wanted(args: argparse.Namespace, alphas: Sequence[float]) -> OutputLayout:
    """The output as a new one would be, with the restored image itself where that is kept."""
    kept = [1.0] if args.keep_restored and 1.0 not in alphas else []
    return OutputLayout.of(args.output, [*alphas, *kept], args.format, args.output_format)


def _planned(args: argparse.Namespace, maps: Mapping[str, str], wanted: OutputLayout, warning: str) -> Plan:
    return Plan(args, maps, plan_start(wanted, _settings(args, maps), args.resume, args.overwrite), warning)


def begin(plan: Plan) -> Plan:
    """Writes to the output what its images are made with, and removes what the plan says."""
    if getattr(plan.args, "plan", False):
        return plan
    storage.check_writable(plan.args.output)
    removed = start_job(plan.start)
    return replace(plan, removed=removed, left=images_left(plan.start))


def chosen_alphas(args: argparse.Namespace, maps: Mapping[str, str]) -> tuple[list[float], str]:
    """The alphas, with those of the maps in place of auto: of several maps the largest, which changes images least.

    Returns:
        Also a warning where a map says that it doesn't help; else "".

    Raises:
        UserError: if auto was asked for, and a map wasn't checked, or its check found no alpha that helps.
    """
    given: list[float | str] = args.alpha if args.alpha is not None else [AUTO]
    if AUTO not in given:
        return [alpha for alpha in given if not isinstance(alpha, str)], ""
    alphas, warning = list[float](), ""
    for url in maps.values():
        check = read_map(url).check
        if check is not None and check.alpha is not None:
            alphas.append(check.alpha)
        elif args.alpha is not None and check is None:
            raise UserError(
                f"--alpha auto: map {url} wasn't checked on pairs; fit with --degrade or --paired, or pass a number"
            )
        elif args.alpha is not None and check is not None:
            raise UserError(f"--alpha auto: map {url} {check.sentence}; pass a number to transport all the same")
        else:
            alphas, warning = [0.0], f"map {url} {check.sentence}" if check is not None else ""
            break
    found = max(alphas, default=0.0)
    return list(dict.fromkeys(found if isinstance(alpha, str) else alpha for alpha in given)), warning


def _maps(args: argparse.Namespace) -> dict[str, str]:
    """The maps by group; "" is for images of any other.

    Raises:
        UserError: if there are none where there should be.
    """
    grouped = is_pattern(args.map)
    if args.default_map and not grouped:
        raise UserError(f"--default_map: expected --group_by, and {GROUP} in --map")
    maps = find_maps(args.map) if grouped else {"": args.map}
    return {**maps, "": args.default_map} if args.default_map else dict(maps)


def _settings(args: argparse.Namespace, maps: Mapping[str, str]) -> dict[str, object]:
    """The settings that the bytes of the images depend on.

    Raises:
        UserError: if maps, autoencoder and flags don't go together.
    """
    here = options.device_here(args)
    restorer = load_restorer(args.restorer, here) if args.restorer else None
    if args.keep_restored and (restorer is None or args.interpolation != "pixels"):
        raise UserError("--keep_restored: expected --restorer, and no --interpolation latents")
    fingerprints = set[str]()
    for group, fitted, autoencoder in read_maps(maps, args.vae, here, options.precision_of(args)):
        if restorer is not None and not args.allow_other_restorer:
            check_restorer(fitted.origin, f"map {maps[group]}", restorer)
        if args.kernel_size and args.kernel_size > fitted.space.patch_size:
            of_group = f"the patch size of {maps[group]} is {fitted.space.patch_size}"
            raise UserError(f"--kernel_size {args.kernel_size}: {of_group}")
        fingerprints.add(autoencoder.fingerprint)
    (vae_sha256,) = fingerprints
    digests = {group: hashlib.sha256(storage.read_bytes(url)).hexdigest() for group, url in maps.items()}
    of_all = hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()
    names = (
        "format",
        "quality",
        "compress_level",
        "interpolation",
        "kernel_size",
        "zero_shot",
        "precision",
        "residual",
    )
    return {
        "compile": args.compile,
        "output_format": args.output_format,
        "output_shards": None if args.output_format == "files" else args.output_shards,
        "map_sha256": of_all if is_pattern(args.map) else digests[""],
        "vae_sha256": vae_sha256,
        "restorer_sha256": restorer.fingerprint if restorer else None,
        "sigma": str(args.sigma),
        **{name: getattr(args, name) for name in names},
    }


def build(pipeline: beam.Pipeline, plan: Plan) -> None:
    """The whole dataflow."""
    args = plan.args
    images, unlisted = pipeline | "ListImages" >> ListImages(
        args.input,
        versions=True,
        since=args.since,
        group_by=args.group_by,
        max_pixels=args.max_pixels,
        max_bytes=args.max_bytes,
    )
    if args.plan:
        _ = images | ("SkipDone" >> SkipDone(plan.layout) if args.resume else "CountNew" >> beam.Map(_counted_new))
        _ = unlisted | "CountFailures" >> beam.Map(counted)
        return
    _, failures = transport_images(images, plan)
    all_failures = (unlisted, *failures) | "FlattenFailures" >> beam.Flatten()
    _ = all_failures | "WriteFailures" >> WriteFailures(args.output, args.manifest_shards)


def _counted_new(image: ImageRef) -> ImageRef:
    metrics.count(metrics.IMAGES_NEW)
    return image


def transport_images(
    images: beam.PCollection[ImageRef], plan: Plan
) -> tuple[beam.PCollection[ImageRecord], Sequence[beam.PCollection[Failure]]]:
    """From images to the rows of the manifest, which is written too, and failures."""
    args, layout = plan.args, plan.layout
    unneeded = []
    if args.resume:
        images, done, outdated, packed_before = images | "SkipDone" >> SkipDone(layout)
        unneeded.append(packed_before)
    transport = TransportImages(
        map=plan.maps,
        output=layout,
        quality=args.quality,
        compress_level=args.compress_level,
        vae=args.vae,
        max_pixels=args.max_pixels,
        max_bytes=args.max_bytes,
        max_batch_pixels=args.max_batch_pixels,
        precision=options.precision_of(args),
        device=options.device_of(args),
        statistics=True,
        options=TransportOptions(
            args.interpolation, args.kernel_size, args.sigma, args.zero_shot, args.residual, args.compile
        ),
        restorer=args.restorer,
    )
    records, untransported, statistics = images | "TransportImages" >> options.on_accelerator(transport, args)
    failures = [untransported]
    if args.resume:
        records = records | "ReplaceOutdated" >> ReplaceOutdated(outdated)
        records = (records, done) | "FlattenRecords" >> beam.Flatten()
    if layout.packed:
        records, unpacked, staged = records | "PackShards" >> PackShards(layout, args.output_shards)
        failures.append(unpacked)
        unneeded.append(staged)
    manifest = records | "WriteManifest" >> WriteManifest(args.output, args.manifest_shards)
    limit = getattr(args, "max_drift", None)  # a command's flag: Beam YAML has no exit code
    _ = statistics | "WriteDrift" >> WriteDrift(
        plan.maps, args.output, LIMIT if limit is None else limit, args.resume, after=manifest
    )
    if layout.packed:
        unneeded_files = unneeded | "FlattenUnneeded" >> beam.Flatten()
        _ = unneeded_files | "RemoveUnneeded" >> RemoveUnneeded(layout, manifest)
    return records, failures


def report(plan: Plan, counters: Counters) -> str:
    """Where the results are."""
    args = plan.args
    lines = [f"output {args.output}"]
    if args.plan:
        new, changed = counters.get(metrics.IMAGES_NEW, 0), counters.get(metrics.IMAGES_CHANGED, 0)
        lines.append(f"  {new + changed} images to do: {new} new, {changed} changed")
    else:
        written, size = counters.get(metrics.IMAGES_WRITTEN, 0), counters.get(metrics.BYTES_WRITTEN, 0)
        lines.append(f"  {written} images transported, {size / 1e6:.1f} MB written")
        lines.append(f"  alpha {', '.join(f'{alpha:g}' for alpha in plan.layout.alphas)}")
        if plan.warning:
            lines.append(f"  WARNING: {plan.warning}")
        if args.output_format != "files":
            lines.append(f"  {counters.get(metrics.SHARDS_WRITTEN, 0)} shards written")
        if plan.removed:
            lines.append(f"  {plan.removed} files of an earlier job removed")
        if plan.left:
            lines.append(f"  {plan.left} images left there that no manifest names")
    if args.resume:
        skipped, recovered = counters.get(metrics.IMAGES_SKIPPED, 0), counters.get(metrics.IMAGES_RECOVERED, 0)
        lines.append(f"  {skipped} images were there already, {recovered} of them not yet in the manifest")
    if args.since is not None:
        lines.append(f"  {counters.get(metrics.IMAGES_OLDER, 0)} older images left out")
    if not args.plan:
        lines += [f"  {line}" for line in _told(args)]
    return "\n".join(lines)


def _drift_by_group(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What drift.json says of each group that had images; "" where there are no groups."""
    url = drift_url(args.output)
    found = json.loads(storage.read_bytes(url)) if storage.details(url) else {}  # some engines end before their work
    return {group: one for group, one in {"": found, **found.pop("groups", {})}.items() if one.get("inputs")}


def _largest_drift(by_group: Mapping[str, dict[str, Any]]) -> str:
    """The group whose inputs drifted furthest: among those that are unlike the map's, where there are any."""

    def distance(group: str) -> tuple[bool, float]:
        inputs = by_group[group]["inputs"]
        relative = math.inf if inputs["relative"] is None else inputs["relative"]
        return inputs["verdict"] == Verdict.UNLIKE, relative

    return max(by_group, key=distance)


def _told(args: argparse.Namespace) -> Iterator[str]:
    by_group = _drift_by_group(args)
    if not by_group:
        return
    group = _largest_drift(by_group)
    of_group, told = f" of group {group}, the furthest" if group else "", by_group[group]
    inputs, results = told["inputs"], told["results"]
    images = f"{inputs['images']} images"
    if inputs["images"] > inputs["images_of_this_run"]:
        images += f", {inputs['images'] - inputs['images_of_this_run']} of them of earlier runs"
    if inputs["by_chance"] is None:
        yield (
            f"drift of inputs{of_group}: can't be judged: {told['map']} doesn't say how much the images vary that it "
            "was fitted on; fit it again"
        )
    elif inputs["verdict"] == Verdict.UNKNOWN:
        chance = _share(
            inputs["by_chance"] if inputs["relative"] is None else max(inputs["by_chance"], inputs["relative"])
        )
        yield f"drift of inputs{of_group}: can't be judged from {images} (chance alone gives up to {chance})"
    else:
        yield (
            f"drift of inputs{of_group}: {_share(inputs['relative'])}, {inputs['verdict']} what the map was fitted on "
            f"({images})"
        )
    if results:
        yield f"drift of results{of_group}: {_share(results['relative'])} from its target"
    unknown = sum(one["inputs"]["verdict"] == Verdict.UNKNOWN for one in by_group.values())
    if unknown and len(by_group) > 1:
        yield f"drift can't be judged for {unknown} of {len(by_group)} groups: too few images"


def _share(of_distance: float | None) -> str:
    if of_distance is None:
        return "infinitely many times the map's distance, which is 0"
    return f"{of_distance:.3f} of the map's distance"


def objection(plan: Plan) -> str | None:
    """Says if the inputs drifted by more than --max_drift."""
    args = plan.args
    by_group = {} if args.max_drift is None or args.plan else _drift_by_group(args)
    if not by_group:
        return None
    group = _largest_drift(by_group)
    found = by_group[group]["inputs"]
    if found["verdict"] != Verdict.UNLIKE:
        return None
    of_group = f" of group {group}" if group else ""
    return (
        f"the inputs{of_group} drifted by {_share(found['relative'])}, over --max_drift "
        f"{args.max_drift}; to fit a map for them: dot-fit --source {statistics_url(args.output, group)} "
        f"--target {plan.maps[group]}"
    )


job = Job(resolve, build, report, begin, objection)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the job; returns its exit code."""
    return launch(job, parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
