"""The elements that flow between our transforms.

Only ImageRef, statistics, ImageRecord and Failure ever cross a shuffle. The others carry pixels and stay inside
one fused stage; their coder exists so that a runner can ask for their size without serialising them.
"""

from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
from numpy.typing import NDArray

from ot_core import Cause, DecodedImage, FittedMap, GaussianStatistics
from ot_core.errors import as_image_error
from ot_core.parts import WHOLE, Part
from ot_core.shards import name_of


class ImageRef(NamedTuple):
    """An image yet to be read.

    Attributes:
        key: path below the input's root, without extension; names the result.
        uri: the file that holds it.
        side: what it is to the job: "source", "target", a candidate's name, or "" where there is only one.
        member: where it is in the file (`ot_core.shards`), or "" where it is the whole file.
        version: what changes whenever the image does, as the store tells it (an etag, or size and time); "" if unknown.
        modified: when it was last changed, in seconds since 1970; None if unknown.
        group: which map of several is its own (`ListImages` with group_by); "" where nothing tells it.
        alphas: those whose results are still to be made, in the order of the output's; () means all (`SkipDone`).
        part_number: of the random part of its side that it counts in; `WHOLE` where there are none.
    """

    key: str
    uri: str
    side: str = ""
    member: str = ""
    version: str = ""
    modified: float | None = None
    group: str = ""
    alphas: tuple[float, ...] = ()
    part_number: int = WHOLE

    @property
    def source_uri(self) -> str:
        """What people are told: the file, and which part of it."""
        return f"{self.uri}#{name_of(self.member)}" if self.member else self.uri

    @property
    def part(self) -> Part:
        """Which part's statistics it counts in."""
        return Part(self.side, self.part_number, self.group)


class Failure(NamedTuple):
    """A row of the failures: an image that could not be processed, and why.

    Attributes:
        key: as in ImageRef; "" where the failure concerns no single image.
        source_uri: where it was read.
        stage: list, read, degrade, restore, compare, encode, transport, write, fit or distance.
        error_type: a value of `ot_core.Cause`.
        message: one line.
    """

    key: str
    source_uri: str
    stage: str
    error_type: str
    message: str

    @classmethod
    def of(cls, ref: ImageRef, stage: str, error: Exception) -> "Failure":
        """The row for an exception that was raised while working on an image."""
        known = as_image_error(error)
        return cls(_printable(ref.key), _printable(ref.source_uri), stage, str(known.cause), _printable(known.message))


def _printable(text: str) -> str:
    """File names may hold bytes that aren't UTF-8; a row of the failures must be writable all the same."""
    return text.encode("utf-8", "backslashreplace").decode()


class ImageRecord(NamedTuple):
    """A row of the manifest: an image written.

    Attributes:
        key, source_uri: as in ImageRef.
        output_uri: where it was written.
        alpha: weight of the restored image in it.
        width, height: in pixels.
        bytes, sha256: of the written file.
        seconds: reading, decoding, this image's share of the model, and writing; 0 where another run did that.
        source_version: of the image that it was made from, as in ImageRef.
        group: as in ImageRef.
    """

    key: str
    source_uri: str
    output_uri: str
    alpha: float
    width: int
    height: int
    bytes: int
    sha256: str
    seconds: float
    source_version: str = ""
    group: str = ""


class ImageQuality(NamedTuple):
    """A row of an evaluation: how near one image of a candidate is to its reference.

    Attributes:
        key, candidate: which image of which candidate.
        reference_uri, candidate_uri: where the two were read; the reference's is "" where there is none of that key.
        mse, psnr, ssim, lpips: see `ot_core.quality.Quality`; None without a reference.
        change: root of the mean squared difference from the baseline's image, in grey levels of 255; None where there
            is no such image of that size.
        width, height: in pixels.
    """

    key: str
    candidate: str
    reference_uri: str
    candidate_uri: str
    mse: float | None
    psnr: float | None
    ssim: float | None
    lpips: float | None
    change: float | None
    width: int
    height: int


class Change(NamedTuple):
    """How much the candidates changed the baseline's image; ordered by that, so that the extremes can be picked.

    Attributes:
        change: the largest among the candidates; see `ImageQuality`.
        key: which image.
        refs: the image of every candidate that was compared, and the reference's, if there is one.
        psnr: of every candidate, in dB; None without a reference.
    """

    change: float
    key: str
    refs: tuple[ImageRef, ...]
    psnr: tuple[tuple[str, float | None], ...] = ()


class LoadedImage(NamedTuple):
    """An image read and decoded. `seconds` is the time spent on it so far."""

    ref: ImageRef
    image: DecodedImage
    seconds: float

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.image.pixels.shape[:2]
        return height, width


class ImageBatch(tuple[LoadedImage, ...]):
    """Images for one call of the model; as long as there are images, which Beam counts.

    Attributes:
        map: to transport them with, where it isn't known before the pipeline runs.
    """

    map: FittedMap | None = None


class TransportedImage(NamedTuple):
    """What transport made of an image: for each alpha that is to be made an (H, W, 3) array.

    It is uint8; or float32 in [0, 1], of an image that was float32.
    """

    loaded: LoadedImage
    pixels: tuple[NDArray[np.generic], ...]
    seconds: float

    @property
    def nbytes(self) -> int:
        """Size in memory."""
        return self.loaded.image.nbytes + sum(array.nbytes for array in self.pixels)


class RestorePrediction(NamedTuple):
    """What `RestoreModelHandler` gives; the same fields as Beam's PredictionResult.

    Attributes:
        example: the ImageRef, not the pixels.
        inference: the restored image, or a Failure.
        model_id: fingerprint of the restorer.
    """

    example: ImageRef
    inference: LoadedImage | Failure
    model_id: str


class GatheredStatistics(NamedTuple):
    """Statistics of the latents of a batch, by part; they go the way of its images."""

    parts: tuple[tuple[Part, GaussianStatistics], ...]


class TransportPrediction(NamedTuple):
    """What transport's RunInference gives.

    The same fields as Beam's PredictionResult, which isn't subclassed because its module imports torch.

    Attributes:
        example: the ImageRef, not the pixels; None where it isn't about one image.
        inference: a TransportedImage, or a Failure; of a whole batch, GatheredStatistics.
        model_id: fingerprint of the autoencoder.
    """

    example: ImageRef | None
    inference: TransportedImage | Failure | GatheredStatistics
    model_id: str


def failure_of_side(side: str, stage: str, cause: Cause, message: str) -> Failure:
    """A row that concerns a whole side rather than one image."""
    return Failure("", side, stage, str(cause), message)


class _RowCoder(beam.coders.Coder):
    """Codes the fields of a named tuple alone; Beam's coder for any object pickles it, class name and all.

    Beam's own coder for rows gives rows of another class to workers elsewhere, and lists in the place of tuples.

    Args:
        row_type: the named tuple's class, of numbers, texts and tuples of these.
    """

    _FIELDS = beam.coders.FastPrimitivesCoder().get_impl()

    def __init__(self, row_type: Any) -> None:
        self._row_type = row_type

    @classmethod
    def from_type_hint(cls, typehint: Any, registry: Any) -> "_RowCoder":
        return cls(typehint)

    def encode(self, value: Any) -> bytes:
        encoded: bytes = self._FIELDS.encode(tuple(value))
        return encoded

    def decode(self, encoded: bytes) -> Any:
        return self._row_type(*self._FIELDS.decode(encoded))

    def is_deterministic(self) -> bool:
        return True

    def to_type_hint(self) -> Any:
        return self._row_type


class _PixelCoder(beam.coders.Coder):
    """Beam's coder for Python objects, but tells the size from the arrays without pickling them.

    Nothing is encoded within a stage. Should a runner split it, what is decoded is what a worker of the same job sent.
    """

    _OBJECTS = beam.coders.PickleCoder()

    def encode(self, value: Any) -> bytes:
        encoded: bytes = self._OBJECTS.encode(value)
        return encoded

    def decode(self, encoded: bytes) -> Any:
        return self._OBJECTS.decode(encoded)

    def estimate_size(self, value: Any) -> int:
        return _nbytes(value)

    def is_deterministic(self) -> bool:
        return False


def _nbytes(value: Any) -> int:
    if isinstance(value, TransportPrediction | RestorePrediction):
        return _nbytes(value.inference)
    if isinstance(value, ImageBatch):
        return sum(loaded.image.nbytes for loaded in value)
    if isinstance(value, TransportedImage):
        return value.nbytes
    if isinstance(value, GatheredStatistics):
        return sum(statistics.scatter.nbytes for _, statistics in value.parts)
    return value.image.nbytes if isinstance(value, LoadedImage) else 64


for _row_type in (ImageRef, ImageRecord, ImageQuality, Failure, Part):
    beam.coders.registry.register_coder(_row_type, _RowCoder)
for _element_type in (LoadedImage, ImageBatch, RestorePrediction, TransportedImage, TransportPrediction):
    beam.coders.registry.register_coder(_element_type, _PixelCoder)
