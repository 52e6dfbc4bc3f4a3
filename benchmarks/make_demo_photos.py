"""Cuts the photograph crops that `dot-demo` ships with, from photographs in a Debian package.

    apt-get download lomiri-wallpapers-16.04 && dpkg-deb -x lomiri-wallpapers-16.04_*.deb wallpapers
    python benchmarks/make_demo_photos.py --photos wallpapers/usr/share/backgrounds --output pipelines/demo_photos

Only the right 40% of each photograph is used: the default autoencoder was trained on the left 60% of these photographs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

#: File name, its author, licence, and how many crops to take.
PHOTOGRAPHS = (
    ("aitzgorri_by_Aitzol_Berasategi", "Aitzol Berasategi", "CC-BY-4.0", 7),
    ("friends_by_Aitzol_Berasategi", "Aitzol Berasategi", "CC-BY-4.0", 3),
    ("life_by_Aitzol_Berasategi", "Aitzol Berasategi", "CC-BY-4.0", 10),
    ("picosdeeuropa_by_Aitzol_Berasategi", "Aitzol Berasategi", "CC-BY-4.0", 8),
    ("sunset_by_Aitzol_Berasategi", "Aitzol Berasategi", "CC-BY-4.0", 3),
    ("Picture_0B_by_freespace", 'Trevor "Freespace"', "CC-BY-4.0", 3),
    ("Picture_1A_by_freespace", 'Trevor "Freespace"', "CC-BY-4.0", 1),
    ("Wine_by_Jakkub_Mede", "Jakub Mede", "CC-BY-4.0", 1),
)
CROP = 256
LONG_SIDE = 1600
HELD_OUT_FROM = 0.6


def detail(crop: Image.Image) -> float:
    """Mean absolute high-frequency content, in grey levels; flat sky says nothing about texture."""
    grey = crop.convert("L")
    blurred = grey.filter(ImageFilter.GaussianBlur(2))
    return float(np.abs(np.asarray(grey, np.float32) - np.asarray(blurred, np.float32)).mean())


def crops(photo: Image.Image, n: int) -> list[Image.Image]:
    """The n most detailed tiles of the held-out part, from disjoint places."""
    photo = photo.convert("RGB")
    scale = LONG_SIDE / max(photo.size)
    photo = photo.resize((round(photo.width * scale), round(photo.height * scale)), Image.Resampling.LANCZOS)
    left = int(np.ceil(HELD_OUT_FROM * photo.width))
    boxes = [
        (x, y, x + CROP, y + CROP)
        for x in range(left, photo.width - CROP + 1, CROP)
        for y in range(0, photo.height - CROP + 1, CROP)
    ]
    tiles = sorted((photo.crop(box) for box in boxes), key=detail, reverse=True)
    return tiles[:n]


def main() -> None:
    """Writes the crops and their attribution."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    lines = [
        "# Attribution of the demo photographs",
        "",
        "Crops of photographs in Debian's package lomiri-wallpapers-16.04 (upstream: UBports lomiri-wallpapers),",
        f"scaled to {LONG_SIDE} pixels on the long side and cut to {CROP}x{CROP} by `benchmarks/make_demo_photos.py`.",
        "",
        "| files | author | licence |",
        "|---|---|---|",
    ]
    for name, author, licence, n in PHOTOGRAPHS:
        stem = name.split("_by_")[0].lower()
        with Image.open(args.photos / f"{name}.jpg") as photo:
            for index, crop in enumerate(crops(photo, n)):
                crop.save(args.output / f"{stem}-{index}.jpg", quality=88)
        lines.append(f"| {stem}-*.jpg, from {name}.jpg | {author}, 2018 | {licence} |")
    lines += ["", "CC-BY-4.0: https://creativecommons.org/licenses/by/4.0/"]
    (args.output / "ATTRIBUTION.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
