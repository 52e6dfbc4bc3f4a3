"""Measures what was gained: how near candidates are to a reference, image by image and as distributions.

ListImages -> CompareImages -> TotalQuality ; -> FeatureStatistics -> FeatureDistances ; all -> WriteReport
"""

import argparse
import dataclasses
import datetime
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ot_core import UserError, __version__, load_autoencoder, load_restorer, storage, strict_json
from ot_core.features import FeatureExtractor, InceptionFeatures, LatentFeatures, PixelFeatures
from ot_core.layout import FAILURES, PAGE, QUALITY, TOTALS, find_numbered, numbered
from ot_core.leaving_out import PARTS, Distance
from ot_core.parts import number_of
from ot_core.quality import QualityTotals, load_lpips
from ot_core.results import read_job
from ot_core.scenes import SceneFeatures
from pipelines import options, parsers
from pipelines.apart import check_apart
from pipelines.candidates import Candidate, autoencoders_of, baseline_of, parse_candidates, told_jobs
from pipelines.launch import Job, check_inputs, launch
from pipelines.report import Gallery, Reading, gallery_candidates, gallery_of, picture, render, shown_candidates
from pipelines.summary import Counters
from pipelines.verdict import MEASURES, Result, gain_interval, judge
from transforms import (
    CompareImages,
    Failure,
    FeatureDistances,
    FeatureStatistics,
    ImageQuality,
    ImageRef,
    ListImages,
    TotalQuality,
    WriteFailures,
    WriteQuality,
    metrics,
)
from transforms.compare_images import REFERENCE
from transforms.elements import Change
from transforms.quiet_beam import beam
from transforms.records import schema_of

parser = parsers.evaluate
#: Images shown of the most changed and of typical ones, and in the gallery; bars of the histogram.
_SHOWN, _GALLERY, _LEVELS = 3, 60, 33


@dataclass(frozen=True)
class Plan:
    """A job, as its flags and its candidates say.

    Attributes:
        args: the flags.
        candidates: what is compared.
        flatters: whether the latent distance is taken in the space in which a candidate was transported; None where
            that isn't known.
        jobs: what made the candidates, each a term and a text.
    """

    args: argparse.Namespace
    candidates: Sequence[Candidate]
    flatters: bool | None
    jobs: Sequence[tuple[str, str]]


def resolve(args: argparse.Namespace) -> Plan:
    """The plan, of which anything that is wrong is told before any work starts."""
    if ("inception" in args.features) != bool(args.inception_weights):
        raise UserError("--features inception and --inception_weights URL: expected both or neither")
    examples = [storage.join(args.report, numbered(name, 0, 1)) for name in (QUALITY, FAILURES)]
    inputs = [("--reference", spec) for spec in args.reference]
    inputs += [("--candidate", spec.partition("=")[2]) for spec in args.candidate]
    check_apart(inputs, f"--report {args.report}", [], examples)
    if read_job(args.report) is not None:
        raise UserError(f"--report {args.report}: is an output of dot-transport; use another folder")
    for name, row_type in ((QUALITY, ImageQuality), (FAILURES, Failure)):
        _check_replaced(args.report, name, row_type)
    candidates, here = parse_candidates(args.candidate), options.device_here(args)
    if args.restorer:
        if all(candidate.alpha is not None for candidate in candidates):
            raise UserError("--restorer: expected a candidate that transport didn't make, to restore its images")
        load_restorer(args.restorer, here)
    check_inputs(("--reference", args.reference), *((f"--candidate {c.name}:", [c.url]) for c in candidates))
    storage.check_writable(args.report)
    for extractor in _extractors(args, here).values():
        extractor.load()
    made_by, flatters = autoencoders_of(candidates), None
    if made_by and "latent" in args.features:
        flatters = load_autoencoder(args.vae, here, options.precision_of(args)).fingerprint in made_by
    if args.lpips_weights:
        load_lpips(args.lpips_weights, here)
    return Plan(args, candidates, flatters, told_jobs(candidates))


def _check_replaced(report_url: str, name: str, row_type: Any) -> None:
    """Refuses a folder whose files of that name aren't of a report: data sets have such names, too."""
    for file in find_numbered(report_url, name):
        try:
            storage.check_columns(file.url, schema_of(row_type))
        except UserError:
            raise UserError(
                f"--report {report_url}: {file.name} there isn't part of a report; use another folder"
            ) from None


def build(pipeline: beam.Pipeline, plan: Plan) -> None:
    """The whole dataflow."""
    _, failures = evaluate_images(pipeline, plan)
    _ = failures | "WriteFailures" >> WriteFailures(plan.args.report)


def evaluate_images(
    pipeline: beam.Pipeline, plan: Plan
) -> tuple[beam.PCollection[ImageQuality], beam.PCollection[Failure]]:
    """Writes all of the report but the failures; gives these, and the rows of the images compared."""
    args = plan.args
    sides = {REFERENCE: args.reference, **{candidate.name: candidate.url for candidate in plan.candidates}}
    refs, unlisted = pipeline | "ListImages" >> ListImages(sides, max_pixels=args.max_pixels, max_bytes=args.max_bytes)
    baseline, extractors = baseline_of(plan.candidates), _extractors(args, options.device_of(args))
    in_parts = refs | "ChooseParts" >> beam.Map(_in_part).with_output_types(ImageRef)
    images, quality, changes, uncompared = in_parts | "CompareImages" >> CompareImages(
        baseline=baseline.name if baseline else None,
        enhanced=[c.name for c in plan.candidates if c.alpha is not None and c != baseline],
        lpips_weights=args.lpips_weights,
        max_pixels=args.max_pixels,
        max_bytes=args.max_bytes,
        restorer=args.restorer,
        device=options.device_of(args),
    )
    _ = quality | "WriteQuality" >> WriteQuality(args.report)
    totals = quality | "TotalQuality" >> TotalQuality()

    statistics, unread = images | "FeatureStatistics" >> FeatureStatistics(
        extractors, args.max_batch_pixels, device=options.device_of(args)
    )
    distances, unmeasured = statistics | "FeatureDistances" >> FeatureDistances(extractors)

    failures = (unlisted, uncompared, unread, unmeasured) | "FlattenFailures" >> beam.Flatten()

    _ = (
        pipeline
        | "Once" >> beam.Create([None])
        | "WriteReport"
        >> beam.Map(
            _write_report,
            report_url=args.report,
            candidates=plan.candidates,
            features=args.features,
            max_pixels=args.max_pixels,
            max_bytes=args.max_bytes,
            restorer=args.restorer,
            device=options.device_of(args),
            flatters=plan.flatters,
            totals=beam.pvalue.AsDict(totals),
            distances=beam.pvalue.AsDict(distances),
            jobs=plan.jobs,
            most=beam.pvalue.AsSingleton(changes | "MostChanged" >> beam.combiners.Top.Largest(_SHOWN)),
            some=beam.pvalue.AsSingleton(changes | "ByChance" >> beam.combiners.Top.Of(_GALLERY, key=_hash)),
            levels=beam.pvalue.AsDict(changes | "Level" >> beam.Map(_level) | beam.combiners.Count.PerElement()),
            failures=beam.pvalue.AsSingleton(failures | "CountFailures" >> beam.combiners.Count.Globally()),
        )
    )
    return quality, failures


def _typical(some: Sequence[Change], most: Sequence[Change]) -> list[Change]:
    """Of images chosen by chance, those in the middle by how much they were changed."""
    ordered = sorted(change for change in some if change not in most)
    start = max(0, (len(ordered) - _SHOWN) // 2)
    return ordered[start : start + _SHOWN]


def _hash(change: Change) -> int:
    return number_of(change.key, 2**32)


def _level(change: Change) -> int:
    """The whole grey levels of a change; those above the last are with it."""
    return min(int(change.change), _LEVELS - 1)


def _in_part(ref: ImageRef) -> ImageRef:
    return ref._replace(part_number=number_of(ref.key, PARTS))


def report(plan: Plan, counters: Counters) -> str:
    """The verdict and the figures, read back from the report."""
    args = plan.args
    written = json.loads(storage.read_bytes(storage.join(args.report, TOTALS)))
    lines = [f"report {storage.join(args.report, PAGE)}", *(f"  {s}" for s in written["verdict"])]
    for row in written["candidates"]:
        psnr = "" if row["psnr_mean"] is None else f"PSNR {row['psnr_mean']:.2f} dB, "
        distances = ", ".join(f"{name} {value:.4g}" for name, value in row["distances"].items() if value is not None)
        lines.append(f"  {row['name']}: {row['count']} compared, {psnr}distance {distances or 'not measured'}")
        if row["images"] > row["count"]:
            lines[-1] += f"; {row['images'] - row['count']} images have no original of their name"
    alone = counters.get(metrics.REFERENCES_WITHOUT_CANDIDATE, 0)
    return "\n".join([*lines, *([f"  {alone} references have no candidate"] if alone else [])])


def _extractors(args: argparse.Namespace, device: str | None) -> Mapping[str, FeatureExtractor]:
    known = {
        "latent": LatentFeatures(args.vae, args.patch_size, device, options.precision_of(args), margin=0),
        "pixel": PixelFeatures(),
        "inception": InceptionFeatures(args.inception_weights or "", device),
        "scene": SceneFeatures(),
    }
    return {name: known[name] for name in MEASURES if name in args.features}


def _write_report(
    _: None,
    report_url: str,
    candidates: Sequence[Candidate],
    features: Sequence[str],
    max_pixels: int,
    max_bytes: int,
    restorer: str | None,
    device: str | None,
    flatters: bool | None,
    totals: Mapping[str, QualityTotals],
    distances: Mapping[tuple[str, str], Distance],
    jobs: Sequence[tuple[str, str]],
    most: Sequence[Change],
    some: Sequence[Change],
    levels: Mapping[int, int],
    failures: int,
) -> None:
    """Writes totals.json and report.html."""
    results = [_result(c, totals.get(c.name, QualityTotals()), features, distances) for c in candidates]
    restored = baseline_of(candidates)
    baseline = restored.name if restored else None
    verdict = judge(results, baseline, flatters)
    restore = {baseline: load_restorer(restorer, device)} if restorer and baseline else {}
    reading, alphas = Reading(max_pixels, max_bytes, restore), {c.name: c.alpha for c in candidates}
    names = shown_candidates(results, baseline, verdict.best)
    most_pictures, typical_pictures = (
        [found for change in chosen if (found := picture(change, names, alphas, verdict.best, reading)) is not None]
        for chosen in (most, _typical(some, most))
    )
    compared = gallery_candidates(results, baseline, verdict.best)
    gallery = Gallery(compared, gallery_of(some, compared, alphas, reading))
    counts = [levels.get(level, 0) for level in range(_LEVELS)]
    made = [("made", f"{datetime.date.today().isoformat()} by dot-beam {__version__}, apache-beam {beam.__version__}")]
    page = render(
        results, baseline, verdict, most_pictures, typical_pictures, gallery, counts, failures, [*jobs, *made]
    )
    before = next((result for result in results if result.name == baseline), None)
    rows = [_figures(result, before) for result in results]
    figures = {"verdict": verdict.sentences, "best": verdict.best, "candidates": rows, "failures": failures}
    storage.write_bytes(storage.join(report_url, PAGE), page.encode())
    storage.write_bytes(storage.join(report_url, TOTALS), strict_json.dumps(figures, indent=2).encode())


def _figures(result: Result, baseline: Result | None) -> dict[str, Any]:
    """A row of totals.json: the result, and how sure its gain is."""
    row = dataclasses.asdict(result)
    del row["distances_without"]
    if baseline is not None and result is not baseline:
        row["gain"] = {feature: gain_interval(result, baseline, feature) for feature in result.distances}
    return row


def _result(
    candidate: Candidate,
    totals: QualityTotals,
    features: Sequence[str],
    distances: Mapping[tuple[str, str], Distance],
) -> Result:
    found = {feature: one for (feature, name), one in distances.items() if name == candidate.name}
    return Result(
        **candidate._asdict(),
        count=totals.count,
        psnr_mean=totals.psnr.value,
        psnr_pooled=totals.psnr_pooled,
        ssim=totals.ssim.value,
        lpips=totals.lpips.value,
        distances={feature: found[feature].value if feature in found else None for feature in features},
        images=totals.images,
        change=totals.change.value,
        distances_without={feature: one.without for feature, one in found.items()},
    )


job = Job(resolve, build, report)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the job; returns its exit code."""
    return launch(job, parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
