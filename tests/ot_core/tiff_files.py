"""A writer of TIFF files that puts any tags together, right or wrong; `tifffile` tells that it writes well."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping

import imagecodecs
import numpy as np

WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER = 256, 257, 258, 259, 262, 266
STRIP_OFFSETS, ORIENTATION, SAMPLES, ROWS_PER_STRIP, STRIP_BYTES, PLANAR = 273, 274, 277, 278, 279, 284
PREDICTOR, COLOUR_MAP, TILE_WIDTH, TILE_LENGTH, TILE_OFFSETS, TILE_BYTES = 317, 320, 322, 323, 324, 325
EXTRA_SAMPLES, SAMPLE_FORMAT = 338, 339

UINT, INT, FLOAT = 1, 2, 3
MIN_IS_WHITE, MIN_IS_BLACK, RGB, PALETTE, MASK, CMYK, YCBCR, LAB, ICCLAB, CFA, LINEAR_RAW = (
    *range(7),
    8,
    9,
    32803,
    34892,
)
NONE, LZW, JPEG, DEFLATE, OLD_DEFLATE, PACKBITS, LZMA, ZSTD = 1, 5, 7, 8, 32946, 32773, 34925, 50000

_CODECS: Mapping[int, Callable[[bytes], bytes]] = {
    NONE: bytes,
    LZW: imagecodecs.lzw_encode,
    DEFLATE: zlib.compress,
    OLD_DEFLATE: zlib.compress,
    PACKBITS: imagecodecs.packbits_encode,
    LZMA: imagecodecs.lzma_encode,
    ZSTD: imagecodecs.zstd_encode,
}
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def tiff(
    samples: np.ndarray,
    photometric: int | None,
    bits: int,
    *,
    sample_format: int = UINT,
    planar: int = 1,
    compression: int = NONE,
    byte_order: str = "<",
    fill_order: int = 1,
    predictor: int = 1,
    extra_samples: tuple[int, ...] = (),
    tile: int = 0,
    rows_per_strip: int = 5,
    big: bool = False,
    tags: Mapping[int, tuple[int, ...]] | None = None,
) -> bytes:
    """A file of one page.

    Args:
        samples: (H, W, S), stored as they are: unsigned integers, signed ones or floats of so many bits.
        photometric: PhotometricInterpretation; None leaves it out.
        bits: of each sample.
        sample_format: as the tag says.
        planar: 1, samples of a pixel beside each other; 2, in planes.
        compression: one of the constants above; JPEG takes samples of 8 bits.
        byte_order: "<" or ">".
        fill_order: 2 reverses the bits of each byte.
        predictor: 2, differences; 3, differences of the bytes of floats.
        extra_samples: what samples beyond the photometric ones mean.
        tile: width and length of tiles, a multiple of 16; 0 makes strips.
        rows_per_strip: of each strip.
        big: 64-bit offsets.
        tags: further tags, or other values of the ones written.
    """
    height, width, count = samples.shape
    planes = [samples[..., i : i + 1] for i in range(count)] if planar == 2 else [samples]
    chunks: list[bytes] = []
    for plane in planes:
        if tile:
            padded = np.pad(plane, ((0, -height % tile), (0, -width % tile), (0, 0)), mode="edge")
            parts = [
                padded[top : top + tile, left : left + tile]
                for top in range(0, height, tile)
                for left in range(0, width, tile)
            ]
        else:
            parts = [plane[top : top + rows_per_strip] for top in range(0, height, rows_per_strip)]
        chunks += [_chunk(part, bits, sample_format, compression, byte_order, predictor) for part in parts]
    if fill_order == 2:
        chunks = [chunk.translate(_REVERSED) for chunk in chunks]
    found: dict[int, tuple[int, ...]] = {
        WIDTH: (width,),
        LENGTH: (height,),
        BITS: (bits,) * count,
        COMPRESSION: (compression,),
        SAMPLES: (count,),
        PLANAR: (planar,),
        SAMPLE_FORMAT: (sample_format,) * count,
    }
    if photometric is not None:
        found[PHOTOMETRIC] = (photometric,)
    if fill_order != 1:
        found[FILL_ORDER] = (fill_order,)
    if predictor != 1:
        found[PREDICTOR] = (predictor,)
    if extra_samples:
        found[EXTRA_SAMPLES] = extra_samples
    offsets, sizes = (TILE_OFFSETS, TILE_BYTES) if tile else (STRIP_OFFSETS, STRIP_BYTES)
    found |= {TILE_WIDTH: (tile,), TILE_LENGTH: (tile,)} if tile else {ROWS_PER_STRIP: (rows_per_strip,)}
    found[sizes] = tuple(map(len, chunks))
    found |= tags or {}
    return _file(found, offsets, chunks, byte_order, big)


def _chunk(part: np.ndarray, bits: int, sample_format: int, compression: int, byte_order: str, predictor: int) -> bytes:
    if compression == JPEG:
        colours = {1: "GRAYSCALE", 3: "RGB", 4: "CMYK"}[part.shape[2]]
        encoded = imagecodecs.jpeg8_encode(
            np.ascontiguousarray(part.squeeze()), 95, colorspace=colours, outcolorspace=colours, subsampling="444"
        )
        return bytes(encoded)
    kind = {UINT: "u", INT: "i", FLOAT: "f"}[sample_format]
    if bits in (8, 16, 32, 64):
        values = part.astype(f"{byte_order}{kind}{bits // 8}")
        if predictor == 2:
            whole = values.astype(f"{kind}{bits // 8}")
            if kind == "f":
                whole = whole.view(f"u{bits // 8}")
            whole[:, 1:] -= whole[:, :-1].copy()
            values = whole.astype(whole.dtype.newbyteorder(byte_order))
        if predictor == 3:
            flat = values.astype(f">f{bits // 8}").reshape(part.shape[0], -1)
            planes = flat.view("u1").reshape(part.shape[0], -1, bits // 8).transpose(0, 2, 1)
            rows = planes.reshape(part.shape[0], -1).copy()
            n = part.shape[2]
            rows[:, n:] -= rows[:, :-n].copy()
            values = rows
        data = values.tobytes()
    else:
        stream = (part.reshape(part.shape[0], -1, 1).astype(np.uint64) >> np.arange(bits - 1, -1, -1, np.uint64)) & 1
        data = np.packbits(stream.reshape(part.shape[0], -1).astype(np.uint8), axis=1).tobytes()
    return bytes(_CODECS[compression](data))


def _file(found: Mapping[int, tuple[int, ...]], offsets: int, chunks: list[bytes], order: str, big: bool) -> bytes:
    mark = b"II" if order == "<" else b"MM"
    word, header = ("Q", 16) if big else ("I", 8)
    size = struct.calcsize(f"{order}{word}")
    starts = header + np.cumsum([0, *(len(chunk) + len(chunk) % 2 for chunk in chunks)])
    body = b"".join(chunk + b"\0" * (len(chunk) % 2) for chunk in chunks)
    entries = {**found, offsets: tuple(int(start) for start in starts[:-1])}
    at = header + len(body)
    count = "Q" if big else "H"
    longer_at = at + struct.calcsize(f"{order}{count}") + len(entries) * (4 + 2 * size) + size
    table, longer = struct.pack(f"{order}{count}", len(entries)), b""
    for tag, values in sorted(entries.items()):
        kind, code = (4, "I") if tag in (offsets, STRIP_BYTES, TILE_BYTES, WIDTH, LENGTH) else (3, "H")
        data = struct.pack(f"{order}{len(values)}{code}", *values)
        if len(data) > size:
            place, longer = (
                struct.pack(f"{order}{word}", longer_at + len(longer)),
                longer + data + b"\0" * (len(data) % 2),
            )
        else:
            place = data.ljust(size, b"\0")
        table += struct.pack(f"{order}HH{word}", tag, kind, len(values)) + place
    table += struct.pack(f"{order}{word}", 0)
    head = mark + (struct.pack(f"{order}HHHQ", 43, 8, 0, at) if big else struct.pack(f"{order}HI", 42, at))
    return head + body + table + longer
