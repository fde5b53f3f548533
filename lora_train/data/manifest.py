"""What the trained set remembers of its pictures: which original each came from, and what was written for it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from lora_train.core.files import DAMAGED_JSON
from lora_train.core.sealed import unsealed


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


class Aside(msgspec.Struct, frozen=True):
    """A caption that a person gave to a picture that the settings do not make at present."""

    origin: str
    piece: int
    is_flipped: bool
    caption: str


class Manifest(msgspec.Struct):
    """`.made.json` in the trained set: the pictures that *Update Dataset* made, relative to the set."""

    files: dict[str, Made] = {}
    concept: str = ""
    """The project's name at that time, as a folder."""
    fallback: str = ""
    """The caption of pictures that had no other."""
    gone: dict[str, Made] = {}
    """Pictures of earlier sets that were removed by a person, who may bring them back."""
    aside: list[Aside] = []


def read_manifest(dataset_dir: Path) -> Manifest:
    """An empty one where there is none, or one that can't be read: every caption then counts as edited.

    A picture that was gone and is back, known by its content, is among the `files` again.
    """
    processed = dataset_dir / "processed"
    try:
        manifest = msgspec.json.decode(unsealed((processed / ".made.json").read_bytes()), type=Manifest)
    except (OSError, *DAMAGED_JSON):
        return Manifest()
    for file, made in manifest.gone.items():
        if file not in manifest.files and _digest(processed / file) == made.digest:
            manifest.files[file] = made
    return manifest


def gone_from(manifest: Manifest, dataset_dir: Path) -> dict[str, Made]:
    """The pictures of a manifest that are not there any more."""
    processed = dataset_dir / "processed"
    return {file: its for file, its in (manifest.gone | manifest.files).items() if not (processed / file).exists()}


def _digest(path: Path) -> str | None:
    """As in `Made`; None for a file that is not there."""
    try:
        return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    except OSError:
        return None
