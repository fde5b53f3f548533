"""What the trained set remembers of its pictures: which original each came from, and what was written for it."""

from __future__ import annotations

from pathlib import Path

import msgspec


class Made(msgspec.Struct, frozen=True):
    """A picture of the trained set: the original it came from, and the caption that was written with it."""

    origin: str
    caption: str
    is_flipped: bool = False
    origin_px: tuple[int, int] = (0, 0)
    """Width and height of the upright original; zeros where it is not known."""
    box_px: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Left, top, right, bottom of what was taken, in the upright original; zeros where it is not known."""
    generated: str = ""
    """What a captioner wrote for it, and who: the same one need not write it again."""
    generated_by: str = ""
    piece: int = 1
    """Of the original, from 1 on."""
    digest: str = ""
    """Of the file's content when it was made; empty where it is not known."""


class Manifest(msgspec.Struct):
    """`.made.json` in the trained set: the pictures that *Update Dataset* made, relative to the set."""

    files: dict[str, Made] = {}
    concept: str = ""
    """The project's name at that time, as a folder."""


def read_manifest(dataset_dir: Path) -> Manifest:
    """An empty one where there is none, or one that can't be read: every caption then counts as edited."""
    try:
        return msgspec.json.decode((dataset_dir / "processed" / ".made.json").read_bytes(), type=Manifest)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return Manifest()
