"""Decodes damaged files of every format: `python tests/fuzz_images.py CASES [SEED]`.

Every case must give an image or an ImageError, within ten seconds of the processor, and within the memory that the
pixel limit allows.
Exits with 0 and prints how often what came out, or with 1 and the case that broke a promise.
"""

from __future__ import annotations

import collections
import faulthandler
import io
import random
import resource
import signal
import sys
import warnings
from types import FrameType

import numpy as np
import pillow_jxl  # noqa: F401 - to write such files
from PIL import Image

from ot_core.errors import ImageError
from ot_core.images import decode_image

MAX_PIXELS = 1_000_000
#: What decoding may take on top of what the process has: 1 Mpixel is 3 MB, as floats 12, and libraries copy.
HEADROOM = 400 << 20
SECONDS = 10


class _TooSlowError(BaseException):
    """Not an Exception, so that nothing on the way turns it into an ImageError."""


def _seeds() -> list[bytes]:
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 255, (24, 20, 3), np.uint8)).resize((40, 32))
    modes = {
        "PNG": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"],
        "JPEG": ["L", "RGB", "CMYK"],
        "WEBP": ["RGB", "RGBA"],
        "TIFF": ["1", "L", "P", "RGB", "RGBA", "CMYK", "LAB", "F", "I;16"],
        "BMP": ["1", "L", "P", "RGB"],
        "AVIF": ["RGB", "RGBA"],
        "JXL": ["L", "RGB", "RGBA"],
    }
    variants = {
        "PNG": [{}],
        "JPEG": [{}, {"progressive": True}],
        "WEBP": [{}, {"lossless": True}],
        "TIFF": [{}, {"compression": "tiff_lzw"}, {"compression": "tiff_adobe_deflate"}, {"compression": "packbits"}],
        "BMP": [{}],
        "AVIF": [{"speed": 10}],
        "JXL": [{"lossless": True, "effort": 1}],
    }
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Maker", 6
    block = exif.tobytes()
    seeds = []
    for image_format, names in modes.items():
        for mode in names:
            image = rgb.convert("L").convert(mode) if mode in ("F", "I;16") else rgb.convert(mode)
            image = image.point(lambda value: value * (1 / 255) + 0) if mode == "F" else image
            for options in variants[image_format]:
                for more in ({}, {"exif": block}) if image_format != "BMP" else ({},):
                    buffer = io.BytesIO()
                    try:
                        image.save(buffer, image_format, **options, **more)
                    except (OSError, ValueError):
                        continue  # not every compression holds every mode
                    seeds.append(buffer.getvalue())
    return seeds


def mutated(seeds: list[bytes], rng: random.Random) -> bytes:
    """One of the files, damaged in one to four ways."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.randint(1, 4)):
        at, length = rng.randrange(len(data) or 1), rng.choice((1, 2, 4, 16, 64))
        if rng.random() < 0.5:
            at = rng.randrange(min(len(data), 96) or 1)  # headers matter most
        match rng.randrange(8):
            case 0:
                data[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del data[at:]
            case 2:
                del data[at : at + length]
            case 3:
                data[at:at] = data[at : at + length]
            case 4:
                data[at : at + 4] = rng.choice((b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\0\1\0\0"))
            case 5:
                data[at:] = rng.choice(seeds)[at:]
            case 6:
                data[at : at + length] = rng.randbytes(length)
            case _:
                data[at : at + 1] = bytes([data[at] ^ (1 << rng.randrange(8))]) if data else b""
    return bytes(data)


def _ring(signum: int, frame: FrameType | None) -> None:
    raise _TooSlowError


def main(cases: int, seed: int = 0) -> int:
    """Runs the cases; gives the exit code."""
    warnings.simplefilter("ignore")
    seeds = _seeds()
    for data in seeds:
        decode_image(data, MAX_PIXELS)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + HEADROOM, resource.RLIM_INFINITY))
    signal.signal(signal.SIGPROF, _ring)
    rng, outcomes = random.Random(seed), collections.Counter[str]()
    for case in range(cases):
        data = mutated(seeds, rng)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        faulthandler.dump_traceback_later(60 * SECONDS, exit=True)  # for code that never comes back to Python
        try:
            pixels = decode_image(data, MAX_PIXELS).pixels
            assert pixels.ndim == 3
            assert pixels.shape[2] == 3
            assert 0 < pixels.shape[0] * pixels.shape[1] <= MAX_PIXELS
            outcomes["image"] += 1
        except ImageError as error:
            outcomes[str(error.cause)] += 1
        except BaseException as error:
            print(f"case {case} of seed {seed}: {type(error).__name__}: {error}\n{data.hex()}")
            return 1
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            faulthandler.cancel_dump_traceback_later()
    print(dict(outcomes))
    return 0


if __name__ == "__main__":
    faulthandler.enable()
    sys.exit(main(*map(int, sys.argv[1:])))
