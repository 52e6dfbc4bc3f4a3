"""A few pairs of a restored image and its original, kept back for `FitTransportMap` to check its map on."""

import dataclasses
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import apache_beam as beam
from apache_beam.typehints.decorators import no_annotations

from ot_core import DecodedImage
from ot_core.check import CROP, MOST_PAIRS, Pair, middle, part_to_keep_back
from ot_core.degradation import Degradation
from ot_core.images import DEFAULT_MAX_BYTES, DEFAULT_MAX_PIXELS
from ot_core.parts import SIDES
from ot_core.restorer import load_restorer, restore_image
from ot_core.transfer import Pixels
from transforms import metrics
from transforms.elements import ImageRef
from transforms.read_images import read_image
from transforms.windows import check_windows

#: Group, and the number of a random part of its images.
_PartOfGroup = tuple[str, int]
#: What orders the pairs of a part, the same in every run, and the images of one, by side.
_Candidate = tuple[int, str, dict[str, ImageRef]]
#: The number of the part that is kept back, and the images of its pairs.
KeptRefs = tuple[int, list[dict[str, ImageRef]]]


@beam.typehints.with_input_types(ImageRef)
@beam.typehints.with_output_types(tuple[str, KeptRefs])
class KeepBackPairs(beam.PTransform):
    """ImageRef, in parts as `choose_part` chooses them -> (group, which pairs to keep back).

    References alone cross the shuffle. Of each group one random part is kept back, and of that so many pairs at
    most; the same ones in every run.

    Args:
        sides: those that an image must be on to be a pair: both, or only the target where `--degrade` makes the source.
        most: pairs of each group, at most.
    """

    def __init__(self, sides: Sequence[str] = SIDES, most: int = MOST_PAIRS) -> None:
        super().__init__()
        self._sides, self._most = frozenset(sides), most

    @no_annotations
    def expand(self, refs: beam.PCollection[ImageRef]) -> beam.PCollection[tuple[str, KeptRefs]]:
        """Pairs by key, the first few of each part, then one part."""
        check_windows(self, refs)
        return (
            refs
            | "ByKey" >> beam.Map(_by_key).with_output_types(tuple[tuple[str, int, str], ImageRef])
            | "GroupByKey" >> beam.GroupByKey()
            | "Pairs" >> beam.FlatMap(_pairs, self._sides).with_output_types(tuple[_PartOfGroup, _Candidate])
            | "Few" >> beam.combiners.Top.SmallestPerKey(self._most, key=_order)
            | "ByGroup" >> beam.MapTuple(lambda part, few: (part[0], (part[1], few)))
            | "GroupByGroup" >> beam.GroupByKey()
            | "KeepBack" >> beam.FlatMapTuple(_kept_back).with_output_types(tuple[str, KeptRefs])
        )


def _by_key(ref: ImageRef) -> tuple[tuple[str, int, str], ImageRef]:
    return (ref.group, ref.part_number, ref.key), ref


def _pairs(
    element: tuple[tuple[str, int, str], Iterable[ImageRef]], sides: frozenset[str]
) -> Iterator[tuple[_PartOfGroup, _Candidate]]:
    (group, number, key), refs = element
    by_side = {ref.side: ref for ref in refs}
    if sides <= by_side.keys():
        order = zlib.crc32(key.encode("utf-8", "surrogatepass"), 1)
        yield (group, number), (order, key, by_side)


def _order(candidate: _Candidate) -> tuple[int, str]:
    return candidate[:2]


def _kept_back(group: str, parts: Sequence[tuple[int, Sequence[_Candidate]]]) -> Iterator[tuple[str, KeptRefs]]:
    by_number = dict(parts)
    number = part_to_keep_back(by_number)
    if number is not None:
        yield group, (number, [refs for _, _, refs in by_number[number]])


@dataclass(frozen=True)
class PairReader:
    """Reads the middles of the images of a pair, and makes of the original what is missing.

    Attributes:
        degradation: makes the restored image from the original (`ot_core.degradation`), with the restorer; None where
            there is one.
        restorer: what `ot_core.load_restorer` takes; None for images that are restored.
        max_pixels, max_bytes: as in `ReadImages`.
        device: of the restorer, as in `ot_core.hardware.chosen_device`.
    """

    degradation: str | None = None
    restorer: str | None = None
    max_pixels: int = DEFAULT_MAX_PIXELS
    max_bytes: int = DEFAULT_MAX_BYTES
    device: str | None = None

    def __call__(self, refs: Mapping[str, ImageRef]) -> Pair | None:
        """The pair, or None where an image can't be used: what reads all images tells why."""
        with metrics.captured():  # nothing here counts as read, which it was before
            try:
                return self._read(refs)
            except Exception:  # as any other image that can't be read
                return None

    def _read(self, refs: Mapping[str, ImageRef]) -> Pair | None:
        original = self._image(refs["target"])
        restorer = load_restorer(self.restorer, self.device) if self.restorer else None
        scale = restorer.scale if restorer else 1
        if self.degradation is not None:
            degradation = Degradation(self.degradation)
            pixels = middle(original.pixels, CROP, degradation.scale)
            if pixels is None:
                return None
            source = degradation(_of(original, pixels), refs["target"].key)
        else:
            found = self._image(refs["source"])
            small, pixels = middle(found.pixels, CROP // scale), middle(original.pixels, CROP // scale * scale, scale)
            if small is None or pixels is None or original.pixels.shape[0] != scale * found.pixels.shape[0]:
                return None
            source = _of(found, small)
        restored = restore_image(source, restorer) if restorer else source
        return Pair(restored.pixels, pixels) if restored.pixels.shape == pixels.shape else None

    def _image(self, ref: ImageRef) -> DecodedImage:
        return read_image(ref, self.max_pixels, self.max_bytes).image


def _of(image: DecodedImage, pixels: Pixels) -> DecodedImage:
    return dataclasses.replace(image, pixels=pixels, transparency=None)
