"""The before/after sheet of a trial: a few images, each as degraded, restored, transported, and as it was."""

import io
from collections.abc import Mapping, Sequence

import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont

from ot_core import decode_image, storage
from ot_core.images import eight_bits
from ot_core.layout import QUALITY, find_numbered

#: Images shown, and pixels of each side: the middle of an image, at its own size.
_SHOWN, _SIDE = 4, 256
_MARGIN, _TITLE = 6, 30


def draw_sheet(folders: Mapping[str, str], report: str, candidate: str, url: str) -> None:
    """Draws one row for each image, and one titled column for each folder of PNG files.

    Args:
        folders: URLs by title; the last has the originals.
        report: of dot-evaluate, which tells how much each image was changed.
        candidate: whose changes.
        url: the PNG file to write.
    """
    keys = shown(_changes(report, candidate))
    width, height = _SIDE + _MARGIN, _SIDE + _MARGIN
    sheet = Image.new("RGB", (len(folders) * width + _MARGIN, len(keys) * height + _TITLE + _MARGIN), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=18)
    for x, (title, folder) in enumerate(folders.items()):
        draw.text((_MARGIN + x * width, _MARGIN), title, fill="black", font=font)
        for y, key in enumerate(keys):
            full = _picture(storage.join(list(folders.values())[-1], f"{key}.png")).size
            picture = _picture(storage.join(folder, f"{key}.png"))
            sheet.paste(_middle(picture, full), (_MARGIN + x * width, _TITLE + y * height))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    storage.write_bytes(url, buffer.getvalue())


def shown(changes: Mapping[str, float]) -> Sequence[str]:
    """Keys of the images to show, evenly from the least to the most changed, so that none is picked for its looks."""
    keys = sorted(changes, key=lambda key: (changes[key], key))
    count = min(_SHOWN, len(keys))
    return [keys[(2 * i + 1) * len(keys) // (2 * count)] for i in range(count)]


def _changes(report: str, candidate: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for file in find_numbered(report, QUALITY):
        with storage.open_file(file.url) as opened:
            rows = pq.ParquetFile(opened).read(columns=["key", "candidate", "change"]).to_pylist()
        found |= {
            row["key"]: row["change"] for row in rows if row["candidate"] == candidate and row["change"] is not None
        }
    return found


def _picture(url: str) -> Image.Image:
    return Image.fromarray(eight_bits(decode_image(storage.read_bytes(url)).pixels))


def _middle(picture: Image.Image, full: tuple[int, int]) -> Image.Image:
    """The middle of an image, enlarged pixel by pixel where it is smaller than the original."""
    picture = picture if picture.size == full else picture.resize(full, Image.Resampling.NEAREST)
    left, top = (max(0, (length - _SIDE) // 2) for length in full)
    return picture.crop((left, top, min(left + _SIDE, full[0]), min(top + _SIDE, full[1])))
