"""The files that are made of one original: its pieces and their flipped copies, and a debug picture."""

from __future__ import annotations

import hashlib
import io
import os
import threading
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from lora_train.core.dataset_settings import DatasetSettings
from lora_train.core.errors import DatasetError
from lora_train.core.files import write_bytes
from lora_train.core.names import fold
from lora_train.data.images import open_picture, picture_size
from lora_train.data.masks import mask_path, open_mask
from lora_train.data.preprocess import (
    Box,
    Size,
    debug_picture,
    flipped,
    least_px,
    mask_pieces,
    pieces,
    plan,
    planned_cuts,
)

_FLIP = "-flip"

_MOST_MEGAPIXELS = 400
"""Of all pictures that are decoded at the same time: about 3 GB, however many cores there are."""


class Task(NamedTuple):
    """An original and where its pieces go."""

    origin: Path
    origin_px: Size | None
    """None where it can't be used: `write_pieces` then says why."""
    targets: list[Path]
    """One for each piece, without suffix."""
    caption: str
    """That came with the original."""
    mask: Path | None = None
    """The original's mask file."""


class Written(NamedTuple):
    """A picture that was made."""

    path: Path
    piece: int
    """From 1 on."""
    is_flipped: bool
    origin_px: Size
    box_px: Box
    digest: str
    """Of the file's content."""


class Room:
    """Lets threads work on as many megapixels as fit at the same time, and on a larger picture alone."""

    def __init__(self, megapixels: float = _MOST_MEGAPIXELS) -> None:
        self._limit = megapixels
        self._used = 0.0
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, megapixels: float) -> Generator[None, None, None]:
        """Wait until there is room; it is free again behind the block."""
        with self._changed:
            self._changed.wait_for(lambda: self._used == 0 or self._used + megapixels <= self._limit)
            self._used += megapixels
        try:
            yield
        finally:
            with self._changed:
                self._used -= megapixels
                self._changed.notify_all()


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def upright_size(path: Path) -> Size | None:
    """From the header; None for what can't be used."""
    try:
        return picture_size(path)
    except DatasetError:
        return None


def piece_count(origin_px: Size | None, settings: DatasetSettings) -> int:
    """Without the flipped copies. What can't be used counts as one."""
    return 1 if origin_px is None else len(planned_cuts(origin_px, settings))


def free_targets(folder: Path, stem: str, count: int, taken: set[str]) -> list[Path]:
    """STEM for one piece, STEM-1, STEM-2 ... for several; with a number more where any of them is `taken`.

    `taken` holds the folded paths without suffix, and gets these, and those of flipped copies: names don't change
    when these are asked for.
    """
    number = 1
    while True:
        base = stem if number == 1 else f"{stem}-{number}"
        names = [base] if count == 1 else [f"{base}-{piece}" for piece in range(1, count + 1)]
        wanted = {fold(str(folder / f"{name}{mark}")) for name in names for mark in ("", _FLIP)}
        if not taken & wanted:
            taken |= wanted
            return [folder / name for name in names]
        number += 1


def write_pieces(task: Task, settings: DatasetSettings, room: Room, debug_path: Path | None) -> list[Written]:
    """Write the pieces, each followed by its flipped copy if wanted, and the debug picture if there is one.

    Where the original has a mask or is transparent in places, every picture gets its part of that as a mask. Raises
    DatasetError for an original or a mask that can't be used, OSError when a file can't be written.
    """
    origin_px = task.origin_px or picture_size(task.origin)
    with room.taken(origin_px[0] * origin_px[1] / 1e6):
        least = None if settings.as_is else least_px(origin_px, planned_cuts(origin_px, settings))
        picture = open_picture(task.origin, least)
        mask = open_mask(task.origin, task.mask)
        its_plan = plan(picture, settings, origin_px)
        if debug_path is not None and its_plan.found:
            write_bytes(debug_path, _png(debug_picture(picture, its_plan)))
        written: list[Written] = []
        for number, (target, piece) in enumerate(zip(task.targets, pieces(picture, its_plan), strict=True), 1):
            for path, content in _files_of(target, piece.picture, task.origin, settings):
                is_flipped = bool(written) and written[-1].piece == number
                write_bytes(path, content)
                digest = hashlib.blake2b(content, digest_size=16).hexdigest()
                written.append(Written(path, number, is_flipped, origin_px, piece.box_px, digest))
        if mask is not None:
            _write_masks(written, list(mask_pieces(mask, its_plan)))
    return written


def _write_masks(written: list[Written], masks: list[Image.Image]) -> None:
    for its in written:
        mask = masks[its.piece - 1]
        write_bytes(mask_path(its.path), _png(flipped(mask) if its.is_flipped else mask))


def _files_of(
    target: Path, picture: Image.Image, origin: Path, settings: DatasetSettings
) -> Iterable[tuple[Path, bytes]]:
    """A piece and its flipped copy, as they go to the disk."""
    if settings.as_is:
        yield target.with_name(f"{target.name}{origin.suffix}"), origin.read_bytes()
    else:
        yield target.with_name(f"{target.name}.png"), _png(picture)
    if settings.flip:
        yield target.with_name(f"{target.name}{_FLIP}.png"), _png(flipped(picture))


def _png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()
