"""Batches bounded by pixels, of images that pad to the same shape."""

from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam.typehints.decorators import no_annotations

from ot_core.hardware import chosen_device, default_batch_pixels
from transforms.elements import ImageBatch, LoadedImage
from transforms.windows import check_windows, in_global_window

_Shape = tuple[int, int]
#: Shapes are compared in units of this many pixels; the model handler splits what it must tell apart further.
_GRID = 8
_ANY_SHAPE: _Shape = (0, 0)


@beam.typehints.with_input_types(LoadedImage)
@beam.typehints.with_output_types(ImageBatch)
class BatchByPixels(beam.PTransform):
    """Groups the images of a bundle into batches of one padded shape.

    What is waiting never exceeds four batches' worth of pixels, however long the bundle is.

    Args:
        max_batch_pixels: most pixels in a batch of more than one image. 0 makes every image its own batch. Default:
            4 Mi on a GPU; on a CPU 2 Mi of images of any shape, which the model works on one by one,
            several side by side.
        device: of the model, as in `ot_core.hardware.chosen_device`.
    """

    def __init__(self, max_batch_pixels: int | None = None, device: str | None = None) -> None:
        super().__init__()
        self._most, self._device = max_batch_pixels, device

    @no_annotations
    def expand(self, images: beam.PCollection[LoadedImage]) -> beam.PCollection[ImageBatch]:
        """One fused step."""
        check_windows(self, images)
        batcher = _BatchByPixelsDoFn(self._most, self._device)
        return images | "BatchByPixels" >> beam.ParDo(batcher).with_output_types(ImageBatch)


class _BatchByPixelsDoFn(beam.DoFn):
    def __init__(self, max_batch_pixels: int | None, device: str | None = None) -> None:
        self._requested, self._device = max_batch_pixels, device

    def setup(self) -> None:
        device = chosen_device(self._device)
        self._any_shape = self._requested is None and device == "cpu"
        self._most = default_batch_pixels(device) if self._requested is None else self._requested

    def start_bundle(self) -> None:
        self._waiting: dict[_Shape, list[LoadedImage]] = {}
        self._waiting_pixels = 0

    def process(self, element: LoadedImage) -> Iterator[Any]:
        shape = _shape(element)
        pixels = _pixels(shape)
        if pixels * 2 > self._most:
            yield ImageBatch((element,))
        elif self._any_shape:
            if self._waiting_pixels + pixels > self._most:
                yield self._take(_ANY_SHAPE)
            self._hold(element, _ANY_SHAPE, pixels)
        else:
            batch = self._hold(element, shape, pixels)
            if (len(batch) + 1) * pixels > self._most:
                yield self._take(shape)
            elif self._waiting_pixels > 4 * self._most:
                yield self._take(max(self._waiting, key=lambda s: len(self._waiting[s]) * _pixels(s)))

    def finish_bundle(self) -> Iterator[Any]:
        for shape in list(self._waiting):
            yield in_global_window(self._take(shape))

    def _hold(self, element: LoadedImage, shape: _Shape, pixels: int) -> list[LoadedImage]:
        self._waiting_pixels += pixels
        batch = self._waiting.setdefault(shape, [])
        batch.append(element)
        return batch

    def _take(self, shape: _Shape) -> ImageBatch:
        batch = self._waiting.pop(shape)
        self._waiting_pixels -= sum(_pixels(_shape(element)) for element in batch)
        return ImageBatch(tuple(batch))


def _shape(loaded: LoadedImage) -> _Shape:
    height, width = loaded.image.pixels.shape[:2]
    return -(-height // _GRID) * _GRID, -(-width // _GRID) * _GRID


def _pixels(shape: _Shape) -> int:
    return shape[0] * shape[1]
