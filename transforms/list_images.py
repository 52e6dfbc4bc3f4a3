"""From input specs to image references."""

import hashlib
import itertools
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.typehints.decorators import no_annotations

from ot_core import Cause, ImageError, UserError, listing, storage
from ot_core.groups import Grouping
from ot_core.images import DEFAULT_MAX_BYTES, DEFAULT_MAX_PIXELS
from ot_core.listing import Listed
from ot_core.names import Ignored
from ot_core.overlap import Share
from transforms import metrics
from transforms.elements import Failure, ImageRef
from transforms.read_images import read_image
from transforms.threaded import ThreadedDoFn

_Keyed = tuple[str, ImageRef]


class ListedImages(NamedTuple):
    """Result of `ListImages`."""

    images: beam.PCollection[ImageRef]
    failures: beam.PCollection[Failure]


class ListImages(beam.PTransform):
    """Lists the images of one or more inputs, each key once, spread over all workers.

    Where several images of a side have one key, the first by URL that can be read is given, and the others are
    failures. To know that, these are read here too. Files that aren't named like images are counted by their
    extensions, in `files_ignored` and the like.

    Args:
        inputs: one spec, several, or a mapping from side to one or several; a spec is a folder, a glob, one
            image, or a list of URLs (see `ot_core.listing.list_images`).
        max_images: take at most so many of each side, the same ones in every run. Default all.
        paired: take only keys that every side has; the counter `images_unpaired` says how many others there were.
        versions: ask the store for the version and time of the images of lists too; folders and globs tell them anyway.
        since: take only images modified at this time or later, in seconds since 1970, and those whose time isn't known;
            the counter `images_older` says how many others there were.
        group_by: what tells an image's group, "folder:1" or "column:camera" (see `ot_core.groups.Grouping`); or a
            mapping from the sides that have groups. Of these max_images are taken of each.
        max_pixels, max_bytes: as in `ReadImages`: what is larger can't be read.

    Raises:
        UserError: if group_by is neither.
    """

    def __init__(
        self,
        inputs: str | Sequence[str] | Mapping[str, str | Sequence[str]],
        max_images: int | None = None,
        paired: bool = False,
        versions: bool = False,
        since: float | None = None,
        group_by: str | Mapping[str, str] | None = None,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        max_bytes: int = DEFAULT_MAX_BYTES,
    ) -> None:
        super().__init__()
        sides = inputs if isinstance(inputs, Mapping) else {"": inputs}
        if not isinstance(group_by, Mapping):
            group_by = dict.fromkeys(sides, group_by) if group_by else {}
        for text in group_by.values():
            Grouping.parse(text)
        self._specs = [
            (side, spec, group_by.get(side, ""))
            for side, specs in sides.items()
            for spec in ([specs] if isinstance(specs, str) else specs)
        ]
        self._max_images, self._sides, self._paired = max_images, len(sides), paired
        self._versions, self._since = versions or since is not None, since
        self._limits = max_pixels, max_bytes

    def display_data(self) -> dict[str, Any]:
        """Shown by runners' user interfaces."""
        return {"inputs": ", ".join(spec for _, spec, _ in self._specs), "max_images": self._max_images or "all"}

    @no_annotations
    def expand(self, pbegin: beam.Pipeline) -> ListedImages:
        """Matches inputs, then groups by key, which also spreads the work over workers."""
        matched = (
            pbegin
            | "Inputs" >> beam.Create(self._specs)
            | "MatchInputs"
            >> beam.ParDo(_MatchInputDoFn()).with_output_types(_Keyed).with_outputs("failures", main="images")
        )
        unique = (
            matched.images
            | "GroupByKey" >> beam.GroupByKey()
            | "FirstByUri"
            >> beam.ParDo(_FirstByUriDoFn(self._sides, self._paired, *self._limits)).with_outputs(
                "failures", main="images"
            )
        )
        failures = (matched.failures, unique.failures) | "FlattenFailures" >> beam.Flatten()
        images = unique.images
        if self._versions:
            images = images | "AskVersions" >> beam.ParDo(_AskVersionDoFn()).with_output_types(ImageRef)
        if self._since is not None:
            images = images | "Since" >> beam.Filter(_is_since, self._since)
        if self._max_images is not None:
            images = images | "LimitImages" >> _LimitImages(self._max_images)
        if any(".parquet" in spec.lower() for _, spec, _ in self._specs):
            # Left out elsewhere, since its Flatten makes the local runner hold every image once more.
            images = images | "RowGroupsTogether" >> _RowGroupsTogether()
        return ListedImages(images, failures)


class _MatchInputDoFn(beam.DoFn):
    """Gives images by key."""

    #: Images that are counted at once; one by one, counting takes a tenth of the time.
    _COUNTED = 1000

    def process(self, element: tuple[str, str, str]) -> Iterator[Any]:
        side, spec, group_by = element
        waiting, ignored = 0, Ignored()
        with metrics.timed("list"):
            for listed in _listed(spec, Grouping.parse(group_by) if group_by else None, ignored):
                waiting += 1
                if waiting == self._COUNTED:
                    metrics.count(metrics.IMAGES_LISTED, waiting)
                    waiting = 0
                ref = ImageRef(listed.key, listed.uri, side, listed.member, *listed.details, listed.group)
                try:
                    if listed.problem:
                        raise listed.problem
                    storage.check_key(listed.key)
                except ImageError as error:
                    yield beam.pvalue.TaggedOutput("failures", Failure.of(ref, "list", error))
                else:
                    yield ref.key, ref
        metrics.count(metrics.IMAGES_LISTED, waiting)
        for kind, files in ignored.counts.items():
            metrics.count(metrics.FILES_IGNORED, files)
            metrics.count(f"{metrics.FILES_IGNORED}_{kind}", files)


def _listed(spec: str, grouping: Grouping | None, ignored: Ignored) -> Iterator[Listed]:
    """The images of a spec; where it can't be listed at all any more, a job goes on with its other inputs."""
    try:
        yield from listing.list_images(spec, grouping, ignored)
    except UserError as error:
        why = error.__cause__
        cause = listing.cause_of(why) if isinstance(why, Exception) else Cause.BAD_LIST
        yield Listed("", spec, ImageError(cause, str(error)))


class _FirstByUriDoFn(beam.DoFn):
    def __init__(self, sides: int, paired: bool, max_pixels: int, max_bytes: int) -> None:
        self._sides, self._paired, self._limits = sides, paired, (max_pixels, max_bytes)

    def process(self, element: tuple[str, Iterable[ImageRef]]) -> Iterator[Any]:
        refs = sorted(element[1], key=_by_side_and_uri)
        first: list[ImageRef] = []
        for _, of_side in itertools.groupby(refs, operator.attrgetter("side")):
            chosen, failures = self._first(list(of_side))
            first += [chosen] if chosen else []
            yield from (beam.pvalue.TaggedOutput("failures", failure) for failure in failures)
        shared = len(first) == self._sides
        if self._sides > 1 and shared:
            metrics.count(metrics.KEYS_SHARED)
        if self._paired and not shared:
            metrics.count(metrics.IMAGES_UNPAIRED, len(first))
            return
        yield from first

    def _first(self, refs: list[ImageRef]) -> tuple[ImageRef | None, list[Failure]]:
        """The first image that can be read, and why each of the others isn't taken; one alone is read later."""
        chosen = refs[0] if len(refs) == 1 else None
        failures = []
        for ref in refs if chosen is None else ():
            if chosen is None:
                try:
                    read_image(ref, *self._limits)
                    chosen = ref
                except Exception as error:  # one bad image costs one row, whatever went wrong with it
                    failures.append(Failure.of(ref, "read", error))
            else:
                said = f"its key is also that of {chosen.source_uri}, the first that can be read"
                failures.append(Failure.of(ref, "list", ImageError(Cause.DUPLICATE_KEY, said)))
        return chosen, failures


def _by_side_and_uri(ref: ImageRef) -> tuple[str, str, str]:
    return ref.side, ref.uri, ref.member


def _is_since(ref: ImageRef, since: float) -> bool:
    if ref.modified is None or ref.modified >= since:
        return True
    metrics.count(metrics.IMAGES_OLDER)
    return False


class _AskVersionDoFn(ThreadedDoFn):
    """Fills in version and time where listing didn't tell them, many requests at once."""

    def process(self, element: ImageRef) -> Iterator[Any]:
        if element.version or element.modified is not None:
            yield element
        else:
            yield from super().process(element)

    def work(self, element: ImageRef, shares: Sequence[Share]) -> list[ImageRef]:
        try:
            details = storage.details(element.uri)
        except Exception:  # reading it will tell what is wrong with it
            details = None
        return [element._replace(version=details.version, modified=details.modified) if details else element]


class _RowGroupsTogether(beam.PTransform):
    """Brings the rows of a Parquet row group together again, so that it is read once and not once for each."""

    @no_annotations
    def expand(self, images: beam.PCollection[ImageRef]) -> beam.PCollection[ImageRef]:
        rows, others = images | "IsRow" >> beam.Partition(_is_no_row, 2)
        together = (
            rows
            | "KeyByRowGroup" >> beam.Map(_by_row_group)
            | "GroupByRowGroup" >> beam.GroupByKey()
            | "Rows" >> beam.FlatMapTuple(_refs_of)
        )
        return (others, together) | "Flatten" >> beam.Flatten()


def _is_no_row(ref: ImageRef, partitions: int) -> int:
    return 0 if ref.member.startswith("row:") else 1


def _by_row_group(ref: ImageRef) -> _Keyed:
    return f"{ref.member.split(':')[1]}:{ref.uri}", ref


def _refs_of(_: str, refs: Iterable[ImageRef]) -> Iterable[ImageRef]:
    return refs


class _LimitImages(beam.PTransform):
    """At most n images of each side and group: those whose keys hash lowest, so that every run takes the same."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self._n = n

    @no_annotations
    def expand(self, images: beam.PCollection[ImageRef]) -> beam.PCollection[ImageRef]:
        return (
            images
            | "KeyByGroup" >> beam.Map(_by_group_with_hash)
            | "LowestHashes" >> beam.combiners.Top.SmallestPerKey(self._n)
            | "Refs" >> beam.FlatMap(_refs_of_group)
        )


def _by_group_with_hash(ref: ImageRef) -> tuple[tuple[str, str], tuple[str, ImageRef]]:
    return (ref.side, ref.group), (hashlib.sha256(ref.key.encode()).hexdigest(), ref)


def _refs_of_group(element: tuple[tuple[str, str], list[tuple[str, ImageRef]]]) -> Iterator[ImageRef]:
    yield from (ref for _, ref in element[1])
