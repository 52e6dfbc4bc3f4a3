"""Transporting images: read, restore, transport and write in one fused stage; pixels never cross a shuffle."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.typehints.decorators import no_annotations

from ot_core import Cause, GaussianStatistics, ImageError, storage
from ot_core.encoding import DEFAULT_COMPRESS_LEVEL
from ot_core.images import DEFAULT_MAX_BYTES, DEFAULT_MAX_PIXELS
from ot_core.layout import OutputLayout
from ot_core.parts import Part
from ot_core.places import Place
from transforms.elements import Failure, ImageRecord, ImageRef
from transforms.grouped_images import having_map
from transforms.read_images import ReadImages
from transforms.restore_images import RestoreImages
from transforms.transport_handler import TransportOptions
from transforms.transport_loaded import TransportLoaded
from transforms.windows import check_windows
from transforms.write_images import WriteImages


class TransportOutcome(NamedTuple):
    """Result of `TransportImages`: a row for each image written, and for each that could not be."""

    records: beam.PCollection[ImageRecord]
    failures: beam.PCollection[Failure]


class TransportOutcomeWithStatistics(NamedTuple):
    """The same, and (Part, GaussianStatistics) of the latents: see `transforms.write_drift`."""

    records: beam.PCollection[ImageRecord]
    failures: beam.PCollection[Failure]
    statistics: beam.PCollection[tuple[Part, GaussianStatistics]]


@beam.typehints.with_input_types(ImageRef)
class TransportImages(beam.PTransform):
    """Transports images with a fitted map and writes them: ImageRef -> ImageRecord, Failure.

    Files are named `images/<key>.<extension>` below the output, or `images/alpha=0.50/<key>.<extension>` with several
    alphas. For shards, give a layout of that kind as the output, and apply `PackShards` to the records.

    Args:
        map: URL of the transport map; or of several by group, of which "" is for images of any other. Without that
            one, these are failures. Or a side input, as in `TransportLoaded`.
        output: URL of the output's root; or its layout, which then tells alphas and format, too.
        alphas: weights of the restored image in the result: 0 is full transport, 1 the restored image.
        format: png, jpeg, webp, tiff, avif or jxl.
        quality: of jpeg, webp and avif, 1 to 100.
        compress_level: of png and tiff, 0 to 9.
        vae: the autoencoder; default the one that the map names.
        max_pixels: larger images are failures.
        max_batch_pixels: see `BatchByPixels`; larger images are done in overlapping tiles of so many pixels.
        statistics: whether to give statistics of the latents too, as a third result: on the side "source", of patches
            of the latents that were encoded, and on the side "results", of the same ones fully transported; each in the
            group whose map they were transported with.
        restorer: what restores the images first (`RestoreImages`); default nothing, for images that are restored.
        precision: of the autoencoder and the restorer, as in `TransportModelHandler` and `RestoreImages`.
        max_bytes: larger files are failures.
        device: of the models, as in `ot_core.hardware.chosen_device`.
        options: as in `TransportModelHandler`.

    Raises:
        UserError: if the format isn't known, there is no alpha, or two alphas are the same to two decimals.
    """

    def __init__(
        self,
        map: str | Mapping[str, str] | beam.pvalue.AsSingleton,
        output: str | OutputLayout,
        alphas: Sequence[float] = (0.0,),
        format: str = "png",
        quality: int = 95,
        compress_level: int = DEFAULT_COMPRESS_LEVEL,
        vae: str | None = None,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        max_batch_pixels: int | None = None,
        statistics: bool = False,
        restorer: str | None = None,
        precision: str | None = None,
        max_bytes: int = DEFAULT_MAX_BYTES,
        device: str | None = None,
        options: TransportOptions | None = None,
    ) -> None:
        super().__init__()
        layout = output if isinstance(output, OutputLayout) else OutputLayout.of(output, alphas, format)
        self._transport = TransportLoaded(
            map, layout.alphas, vae, max_batch_pixels, statistics, precision, device, options
        )
        self._write = WriteImages(layout, quality=quality, compress_level=compress_level)
        self._read = ReadImages(max_pixels, max_bytes)
        self._restore = (
            RestoreImages(restorer, None, max_pixels, max_batch_pixels, precision, device) if restorer else None
        )
        self._layout = layout

    def display_data(self) -> dict[str, Any]:
        """Shown by runners' user interfaces."""
        maps, alphas = ", ".join(self._transport.maps.values()), ", ".join(map(str, self._layout.alphas))
        return {"map": maps, "output": self._layout.root, "alphas": alphas}

    @no_annotations
    def expand(self, refs: beam.PCollection[ImageRef]) -> TransportOutcome | TransportOutcomeWithStatistics:
        """All of it fuses into one stage: reads run ahead of the model, and writes behind it."""
        check_windows(self, refs)
        outside = beam.ParDo(_OutsideOutputDoFn(self._layout.places())).with_output_types(ImageRef)
        refs, inside = refs | "OutsideOutput" >> outside.with_outputs("failures", main="images")
        failures: list[beam.PCollection[Failure]] = [inside]
        if self._transport.maps and "" not in self._transport.maps:
            refs, unmapped = refs | "HasMap" >> having_map(self._transport.maps)
            failures.append(unmapped)
        images, unread = refs | "ReadImages" >> self._read
        failures.append(unread)
        if self._restore is not None:
            images, unrestored = images | "RestoreImages" >> self._restore
            failures.append(unrestored)
        transported, untransported, *statistics = images | "TransportLoaded" >> self._transport
        records, unwritten = transported | "WriteImages" >> self._write
        all_failures = (*failures, untransported, unwritten) | "FlattenFailures" >> beam.Flatten()
        if not statistics:
            return TransportOutcome(records, all_failures)
        return TransportOutcomeWithStatistics(records, all_failures, *statistics)


class _OutsideOutputDoFn(beam.DoFn):
    """Gives the images that aren't results of the output itself, by whatever link or list they came in."""

    def __init__(self, places: Sequence[str]) -> None:
        self._places = list(places)

    def setup(self) -> None:
        places = [Place.of(place) for place in self._places]

        @functools.lru_cache(1 << 12)
        def is_inside(folder: str) -> bool:
            try:
                found = Place.of(folder)
            except OSError:  # reading it will tell
                return False
            return any(map(found.lies_below, places))

        self._is_inside = is_inside

    def process(self, element: ImageRef) -> Iterator[Any]:
        if self._is_inside(storage.parent(element.uri)):
            error = ImageError(Cause.BAD_LIST, "is a result of the output that it would be written to")
            yield beam.pvalue.TaggedOutput("failures", Failure.of(element, "list", error))
        else:
            yield element
