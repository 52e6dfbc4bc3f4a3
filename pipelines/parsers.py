"""The flags of each command. Nothing here imports torch or Beam, so that help and mistakes are told at once."""

import argparse
import datetime
import math

from ot_core.check import MOST_PAIRS
from ot_core.choices import INTERPOLATIONS, METHODS
from ot_core.drift import LIMIT
from ot_core.encoding import DEFAULT_COMPRESS_LEVEL, OUTPUT_FORMATS
from ot_core.layout import KINDS
from pipelines.flags import (
    DEGRADATIONS,
    ArgumentParser,
    Several,
    add_accelerator,
    add_group_by,
    add_input,
    add_limits,
    add_model,
    add_other_restorer,
    add_restorer,
    add_run,
    add_telling,
    number,
)
from pipelines.verdict import MEASURES

#: In the place of an alpha: the one that the map's check found best.
AUTO = "auto"
#: Photographs of a trial: two to fit on, and two to try it on.
FEWEST = 4
_ADVANCED = "advanced"


def fit() -> ArgumentParser:
    """Of dot-fit."""
    flags = ArgumentParser(
        "dot-fit",
        "Fits a transport map from natural and restored images.",
        "dot-fit --target photos/ --degrade jpeg:10 --map map.safetensors\n"
        "dot-fit --target photos/ --source restored/ --paired --map map.safetensors",
    )
    images = flags.add_argument_group("images and the map")
    add_input(images, "--target", "natural images, or a map whose target to take", required=False)
    add_input(images, "--source", "restored images, or a drift.safetensors of dot-transport, or a map", required=False)
    images.add_argument(
        "--degrade",
        metavar="SPEC",
        help="make the source from --target: degrade each natural image, then restore it, which gives pairs. "
        + DEGRADATIONS,
    )
    add_restorer(images, "--source, or what --degrade makes")
    images.add_argument("--map", required=True, metavar="URL", help="the .safetensors file to write")
    images.add_argument(
        "--paired",
        action="store_true",
        help="take only images that both sides have, by key, so that both show the same",
    )
    images.add_argument(
        "--max_images",
        type=number(int, 1),
        metavar="N",
        help="take at most N images of each side, or of each group of a side",
    )
    add_model(flags.add_argument_group("model"))
    add_run(flags.add_argument_group("running"))
    groups = flags.add_argument_group("groups and earlier maps")
    add_group_by(groups)
    groups.add_argument(
        "--common_target",
        action="store_true",
        help="take all of --target as the target of every group (default: its images are in groups, too)",
    )
    groups.add_argument(
        "--add_to",
        metavar="URL",
        help="add the images to the statistics of this map, and keep its method, patch size and autoencoder; either "
        "side may be left out. A map doesn't know its images: one that is added twice counts twice",
    )
    advanced = flags.add_argument_group(_ADVANCED)
    advanced.add_argument(
        "--method",
        choices=METHODS,
        help="matched (default) leaves differences in the mean colour of patches alone, since restorers keep it; "
        "pixels (default for pairs) maps them too. Both change decoded pixels as little as possible; paper the latents",
    )
    advanced.add_argument(
        "--patch_size",
        type=int,
        choices=(1, 3, 5, 7),
        help="side of a latent patch (default 3, or as in earlier statistics)",
    )
    advanced.add_argument(
        "--check_pairs",
        type=number(int, 0),
        default=MOST_PAIRS,
        metavar="N",
        help="of the pairs that --paired and --degrade give, keep at most N back and check the map on them; the map "
        "holds the result. 0 checks nothing (default %(default)s)",
    )
    advanced.add_argument(
        "--residual",
        type=number(float, 0, 1),
        metavar="W",
        help="how much transport adds back of what the autoencoder loses of an image, from 0 to 1 (default: half of "
        "the share that is best for the pairs that are kept back; else 0)",
    )
    add_other_restorer(advanced)
    add_accelerator(advanced)
    add_limits(advanced)
    return flags


def transport() -> ArgumentParser:
    """Of dot-transport."""
    flags = ArgumentParser(
        "dot-transport",
        "Transports restored images with a fitted map.",
        "dot-transport --input archive/ --restorer swinir.safetensors --map map.safetensors --output out/\n"
        "dot-transport --input gs://bucket/restored/ --map map.safetensors --output gs://bucket/out/ --resume",
    )
    images = flags.add_argument_group("images and the map")
    add_input(images, "--input", "restored images")
    add_restorer(images, "--input")
    images.add_argument("--map", required=True, metavar="URL", help="a map written by dot-fit")
    images.add_argument(
        "--output", required=True, metavar="URL", help="folder to write images, manifest and failures to"
    )
    images.add_argument(
        "--alpha",
        type=_alpha,
        nargs="+",
        action=Several,
        metavar="A",
        help="weight of the restored image in the result: 0 is full transport, 1 the restored image itself. auto is "
        "the alpha that dot-fit found best on pairs that it kept back; it is the default for such a map (else 0)",
    )
    images.add_argument("--keep_restored", action="store_true", help="also write what --restorer made, as alpha 1 does")
    again = flags.add_argument_group("running it again")
    again.add_argument(
        "--resume",
        action="store_true",
        help="skip images that the output holds already, unless their source has changed. The settings must be the "
        "same; alphas may be added",
    )
    again.add_argument(
        "--overwrite",
        action="store_true",
        help="first remove the results that the output holds, and nothing else. Without this or --resume, an output "
        "that holds results is refused",
    )
    again.add_argument(
        "--plan",
        action="store_true",
        help="only count the images that the job would do, with --resume the new and changed ones, and write nothing "
        "to --output",
    )
    again.add_argument(
        "--since",
        type=_time,
        metavar="TIME",
        help="take only images modified at this time or later: a date or time such as 2025-12-31T23:00, in UTC",
    )
    written = flags.add_argument_group("format of the results")
    written.add_argument(
        "--format", choices=sorted(OUTPUT_FORMATS), default="png", help="format of the images (default png)"
    )
    written.add_argument(
        "--quality",
        type=number(int, 1, 100),
        default=95,
        metavar="N",
        help="quality of jpeg, webp and avif (default %(default)s)",
    )
    written.add_argument(
        "--compress_level",
        type=number(int, 0, 9),
        default=DEFAULT_COMPRESS_LEVEL,
        metavar="N",
        help="compression of png and tiff: higher is smaller and slower (default %(default)s)",
    )
    written.add_argument(
        "--output_format",
        choices=KINDS,
        default="files",
        help="a file for each result, or shards of many: WebDataset's tar files, or Parquet (default %(default)s)",
    )
    written.add_argument(
        "--output_shards",
        type=number(int, 1),
        default=16,
        metavar="N",
        help="number of shards for each alpha; a shard should be some 100 MB (default %(default)s)",
    )
    written.add_argument(
        "--manifest_shards",
        type=number(int, 1),
        default=1,
        metavar="N",
        help="number of files for the manifest, and for the failures (default 1)",
    )
    add_model(flags.add_argument_group("model"), precision="auto")
    add_run(flags.add_argument_group("running"))
    groups = flags.add_argument_group("groups and drift")
    add_group_by(groups)
    groups.add_argument(
        "--default_map",
        metavar="URL",
        help="map of images that have no group, or whose group has no map (default: they are failures)",
    )
    groups.add_argument(
        "--max_drift",
        type=number(float, 0),
        metavar="X",
        help="exit with 1 if the inputs drifted from those that the map was fitted on by more than X times the "
        "distance between its two sides, and by more than chance explains. Everything is written all the same. Where "
        f"there are too few images to tell, later runs judge them too (default: report it, from {LIMIT} on as unlike)",
    )
    advanced = flags.add_argument_group(_ADVANCED)
    advanced.add_argument(
        "--residual",
        type=number(float, 0, 1),
        metavar="W",
        help="how much to add back of what the autoencoder loses of an image, from 0 to 1 (default: as the map says)",
    )
    advanced.add_argument(
        "--interpolation",
        choices=INTERPOLATIONS,
        default="pixels",
        help="what --alpha mixes: the two images, or their latents before decoding (default %(default)s)",
    )
    advanced.add_argument(
        "--zero_shot",
        action="store_true",
        help="transport each image from its own statistics instead of the map's source",
    )
    advanced.add_argument(
        "--kernel_size", type=int, choices=(1, 3, 5, 7), help="fold only the middle k x k of each patch (default: all)"
    )
    advanced.add_argument(
        "--sigma",
        type=number(float, 0.01),
        default=math.inf,
        metavar="S",
        help="fold with Gaussian weights of this standard deviation, in latent pixels (default: equal weights)",
    )
    advanced.add_argument(
        "--compile",
        action="store_true",
        help="compile the autoencoder first. This takes half a minute or more, and pays for many thousand images",
    )
    add_other_restorer(advanced)
    add_accelerator(advanced)
    add_limits(advanced)
    return flags


def evaluate() -> ArgumentParser:
    """Of dot-evaluate."""
    flags = ArgumentParser(
        "dot-evaluate",
        "Compares restored and enhanced images with natural ones, and writes a report.",
        "dot-evaluate --reference originals/ --candidate restored=restored/ enhanced=out/ --report report/",
    )
    images = flags.add_argument_group("images and the report")
    add_input(images, "--reference", "natural images, or the originals under the same keys")
    images.add_argument(
        "--candidate",
        required=True,
        nargs="+",
        action="extend",
        metavar="NAME=URL",
        help="images to compare, and a name for them: an input like --reference, or an output folder of dot-transport, "
        "which gives a candidate for each alpha. The first that transport didn't make counts as the restored images",
    )
    images.add_argument(
        "--restorer",
        metavar="SPEC",
        help="a model, as in dot-transport, that restores the images of the first candidate that transport didn't make "
        "before they are compared (default: they are restored already)",
    )
    images.add_argument("--report", required=True, metavar="URL", help="folder to write the report to")
    measures = flags.add_argument_group("measures")
    measures.add_argument(
        "--features",
        nargs="+",
        choices=sorted(MEASURES),
        default=["latent", "pixel"],
        help="what the distance between sets of images is measured on (default latent pixel)",
    )
    measures.add_argument(
        "--patch_size",
        type=int,
        choices=(1, 3, 5, 7),
        default=1,
        help="side of a patch of latent features (default %(default)s)",
    )
    measures.add_argument(
        "--inception_weights", metavar="URL", help="file of torch-fidelity's weights-inception-2015-12-05-6726825d.pth"
    )
    measures.add_argument(
        "--lpips_weights", metavar="URL", help="file of torchvision's alexnet-owt-7be5be79.pth: also measure LPIPS"
    )
    add_model(flags.add_argument_group("model"))
    add_run(flags.add_argument_group("running"))
    add_limits(flags.add_argument_group(_ADVANCED))
    return flags


def trial() -> ArgumentParser:
    """Of dot-trial."""
    flags = ArgumentParser(
        "dot-trial",
        "Tells whether transport would help: degrades, restores, fits and transports a few photographs, and judges.",
        "dot-trial --natural photos/ --degrade jpeg:10 --report trial/",
    )
    images = flags.add_argument_group("images and the report")
    add_input(images, "--natural", "natural photographs")
    images.add_argument(
        "--degrade",
        required=True,
        metavar="SPEC",
        help=f"how your archive is degraded: {DEGRADATIONS}",
    )
    add_restorer(images, "what --degrade makes")
    images.add_argument("--report", required=True, metavar="URL", help="folder to write report, map and sheet to")
    images.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the trial that --report holds, and nothing else. Without this, such a folder is refused",
    )
    images.add_argument(
        "--max_images",
        type=number(int, FEWEST),
        default=30,
        metavar="N",
        help="take at most N photographs, the same ones in every run; half of them to fit on (default %(default)s)",
    )
    images.add_argument(
        "--crop",
        type=number(int, 32),
        default=512,
        metavar="N",
        help="take at most N x N pixels, from the middle of each photograph (default %(default)s)",
    )
    add_model(flags.add_argument_group("model"))
    add_run(flags.add_argument_group("running"), summary=False)
    add_limits(flags.add_argument_group(_ADVANCED))
    return flags


def maps() -> ArgumentParser:
    """Of dot-map."""
    flags = ArgumentParser(
        "dot-map",
        "Describes a map, or tells how two maps differ.",
        "dot-map inspect map.safetensors\ndot-map diff before.safetensors after.safetensors",
        on_beam=False,
    )
    flags.add_argument("command", choices=("inspect", "diff"), help="inspect describes one map; diff compares two")
    flags.add_argument("maps", nargs="+", metavar="MAP", help="maps written by dot-fit, at any fsspec URL")
    flags.add_argument("--json", action="store_true", help="print JSON")
    return flags


def demo() -> ArgumentParser:
    """Of dot-demo."""
    flags = ArgumentParser(
        "dot-demo", "Runs dot-trial on bundled photographs and draws a before/after sheet.", "dot-demo", on_beam=False
    )
    flags.add_argument("--output", default="demo-output", metavar="URL", help="folder (default %(default)s)")
    add_telling(flags)
    return flags


def _alpha(text: str) -> float | str:
    """A number, or AUTO."""
    if text == AUTO:
        return AUTO
    try:
        value: float = number(float)(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: expected {AUTO} or a number") from None
    return value


def _time(text: str) -> float:
    """Seconds since 1970."""
    try:
        time = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: expected a date or time like 2025-12-31T23:00") from None
    return (time if time.tzinfo else time.replace(tzinfo=datetime.UTC)).timestamp()
