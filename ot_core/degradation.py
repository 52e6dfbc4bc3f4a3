"""Known degradations, to make pairs from natural images alone: noise, JPEG, blur and reduction, one after the other.

A spec is a chain of steps by commas, such as `blur:1.2,bicubic:4,jpeg:60`:

| step | what it does |
|---|---|
| `noise:S` | adds Gaussian noise of standard deviation S, in grey levels of 255 |
| `jpeg:Q` | compresses at quality Q, 1 to 100 |
| `blur:S` | blurs with a Gaussian of standard deviation S, in pixels |
| `bicubic:F` | reduces both sides F times, F an integer; what is left over on the right and bottom is cropped first |
| `package.module:function` | (H, W, 3) uint8 to the same, the user's own |

A range such as `jpeg:10-40` draws a value for each image. What is drawn
depends on the key of the image alone, so runs repeat.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from ot_core.errors import Cause, ImageError, UserError, one_line, type_and_line
from ot_core.images import DecodedImage, eight_bits

Pixels = NDArray[np.uint8]
_NUMBER: Final = r"\d+(?:\.\d+)?"
_STEP = re.compile(rf"(?P<name>[a-z]+):(?P<low>{_NUMBER})(?:-(?P<high>{_NUMBER}))?")
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
#: Bounds of each step's value, and whether it is a whole number.
_BOUNDS: Final = {"noise": (0, 255, False), "jpeg": (1, 100, True), "blur": (0, 100, False), "bicubic": (1, 16, True)}


@dataclass(frozen=True)
class _Step:
    """A step by name, with the bounds of its value; or a user's function."""

    name: str
    low: float = 0.0
    high: float = 0.0
    function: Callable[[Pixels], Any] | None = None


class Degradation:
    """A chain of degradations.

    Attributes:
        spec: what it was made from.
        scale: by how much it reduces the sides of an image.

    Args:
        spec: see the module.

    Raises:
        UserError: if a step isn't known, or its value is out of bounds.
    """

    def __init__(self, spec: str) -> None:
        self.spec = spec
        self._steps = [_step(text.strip(), spec) for text in spec.split(",")]
        ranges = [step for step in self._steps if step.name == "bicubic" and step.low != step.high]
        if ranges:
            raise UserError(f"degradation {spec}: expected one number in bicubic, since a restorer has one scale")
        self.scale = math.prod(int(step.low) for step in self._steps if step.name == "bicubic")

    def __reduce__(self) -> tuple[Any, ...]:
        return Degradation, (self.spec,)

    def cropped(self, image: DecodedImage) -> DecodedImage:
        """The part of an image that is degraded, of 8 bits: its sides are multiples of the scale.

        Raises:
            ImageError: TOO_SMALL, if there is no such part.
        """
        height, width = (side // self.scale * self.scale for side in image.pixels.shape[:2])
        if not (height and width):
            size = f"{image.pixels.shape[1]}x{image.pixels.shape[0]}"
            raise ImageError(Cause.TOO_SMALL, f"{size} pixels can't be reduced {self.scale} times")
        transparency = None if image.transparency is None else image.transparency[:height, :width]
        return replace(image, pixels=eight_bits(image.pixels[:height, :width]), transparency=transparency)

    def __call__(self, image: DecodedImage, key: str) -> DecodedImage:
        """Degrades what `cropped` gives; the same for the same key.

        Raises:
            ImageError: as `cropped`; DEGRADATION_ERROR where a user's function fails, or gives something else than an
                image.
        """
        pixels = eight_bits(self.cropped(image).pixels)
        for index, step in enumerate(self._steps):
            seed = hashlib.sha256(f"{index}:{step.name}:{key}".encode("utf-8", "surrogatepass")).digest()
            pixels = _degraded(pixels, step, np.random.default_rng(int.from_bytes(seed[:8], "big")), image.grey)
        return image.with_pixels(np.ascontiguousarray(pixels), transparency=None)


def _step(text: str, spec: str) -> _Step:
    match = _STEP.fullmatch(text)
    if match and match["name"] in _BOUNDS:
        low = float(match["low"])
        high = float(match["high"] or low)
        least, most, whole = _BOUNDS[match["name"]]
        if not least <= low <= high <= most or (whole and (low % 1 or high % 1)):
            kind = "whole number" if whole else "number"
            raise UserError(f"degradation {spec}: {text}: expected a {kind} from {least} to {most}, or a range A-B")
        return _Step(match["name"], low, high)
    if _FUNCTION.fullmatch(text) and text.partition(":")[0] not in _BOUNDS:
        return _Step(text, function=_imported(text, spec))
    names = ", ".join(f"{name}:VALUE" for name in _BOUNDS)
    raise UserError(f"degradation {spec}: {text or 'nothing'}: expected {names} or package.module:function")


def _imported(text: str, spec: str) -> Callable[[Pixels], Any]:
    module_name, _, name = text.partition(":")
    try:
        function: Any = getattr(importlib.import_module(module_name), name, None)
    except Exception as error:  # a user's module may raise anything
        raise UserError(f"degradation {spec}: {module_name} can't be imported ({one_line(error, most=200)})") from None
    if not callable(function):
        raise UserError(f"degradation {spec}: {module_name} has no function {name}")
    called: Callable[[Pixels], Any] = function
    return called


def _degraded(pixels: Pixels, step: _Step, rng: np.random.Generator, grey: bool) -> Pixels:
    if step.function is not None:
        return _by_function(step.function, pixels, step.name)
    value = rng.uniform(step.low, step.high) if step.high > step.low else step.low
    if step.name == "noise":
        height, width = pixels.shape[:2]
        noise = rng.normal(0, value, (height, width, 1 if grey else 3)) if value else 0.0
        return np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8)
    image = Image.fromarray(pixels, "RGB")
    if step.name == "jpeg":
        quality = int(rng.integers(int(step.low), int(step.high) + 1)) if step.high > step.low else int(value)
        buffer = io.BytesIO()
        (image.convert("L") if grey else image).save(buffer, "JPEG", quality=quality)
        image = Image.open(buffer).convert("RGB")
    elif step.name == "blur":
        image = image.filter(ImageFilter.GaussianBlur(value))
    else:
        factor = int(value)
        image = image.resize((image.width // factor, image.height // factor), Image.Resampling.BICUBIC)
    return np.asarray(image)


def _by_function(function: Callable[[Pixels], Any], pixels: Pixels, name: str) -> Pixels:
    try:
        result = function(pixels.copy())  # somebody's own code may write to what it is given
    except Exception as error:  # and raise anything
        raise ImageError(Cause.DEGRADATION_ERROR, f"{name}: {type_and_line(error)}") from error
    if not isinstance(result, np.ndarray) or result.dtype != np.uint8 or result.shape != pixels.shape:
        found = f"{result.dtype} {result.shape}" if isinstance(result, np.ndarray) else type(result).__name__
        raise ImageError(Cause.DEGRADATION_ERROR, f"{name} gave {found}; expected uint8 {pixels.shape}")
    return result
