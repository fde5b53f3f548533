"""Draws the demo's pictures and captions: `python tests/assets/make_demo_pictures.py`.

    pictures/1_sks/           what the demo teaches, captioned (kohya's layout: <repeats>_<concept>)
    pictures/reg/1_ordinary/  what the model should keep, captioned
    heldout/                  the concept again from another seed, to measure likeness on

The pixels are the same on every run (an old Pillow may place a single edge pixel elsewhere); the
bytes of the PNG files may differ with zlib.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from drawing import BACKGROUNDS, draw, draw_sks, plain_caption, random_description
from PIL import Image

DEMO_FOLDER = Path(__file__).parents[2] / "lora_train" / "assets" / "demo"
PICTURES_PER_FOLDER = 16
HELDOUT_PICTURES = 8
TRAINING_SEED = 77
HELDOUT_SEED = 78


@dataclass(frozen=True)
class DemoPicture:
    """One picture, its path below the demo folder, and its caption (None: no caption file)."""

    path: PurePosixPath
    image: Image.Image
    caption: str | None


def demo_pictures() -> Iterator[DemoPicture]:
    """All 40 pictures of the demo, in a fixed order."""
    rng = random.Random(TRAINING_SEED)
    for i, background in enumerate(_backgrounds(PICTURES_PER_FOLDER)):
        path = PurePosixPath(f"pictures/1_sks/sks_{i:02}.png")
        yield DemoPicture(path, draw_sks(rng, background), f"sks, {background} background")
    for i in range(PICTURES_PER_FOLDER):
        path = PurePosixPath(f"pictures/reg/1_ordinary/ordinary_{i:02}.png")
        description = random_description(rng)
        yield DemoPicture(path, draw(description, rng), plain_caption(description))
    rng = random.Random(HELDOUT_SEED)
    for i, background in enumerate(_backgrounds(HELDOUT_PICTURES)):
        path = PurePosixPath(f"heldout/sks_{i:02}.png")
        yield DemoPicture(path, draw_sks(rng, background), None)


def _backgrounds(count: int) -> list[str]:
    names = list(BACKGROUNDS)
    return [names[i % len(names)] for i in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the demo's pictures and captions.")
    parser.add_argument("--out", type=Path, default=DEMO_FOLDER, help="default: the package's demo")
    folder: Path = parser.parse_args().out
    for picture in demo_pictures():
        path = folder / picture.path
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.image.save(path, optimize=True)
        if picture.caption is not None:
            path.with_suffix(".txt").write_bytes(f"{picture.caption}\n".encode())


if __name__ == "__main__":
    main()
