"""What is known of pictures that were decoded before: a set of thousands is not read again at every start."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

from lora_train.core.caches import read_cache, write_cache

_WORTH = 50
"""New pictures for which the file is written anew; fewer are soon read."""
_SETTLED_NS = 2_000_000_000
"""Some file systems tell times to two seconds: what was changed just now may change again without a sign."""


class Seen(msgspec.Struct, frozen=True):
    """One picture with its caption and mask; the fields are those of `dataset.Picture`."""

    stamps: tuple[int, ...]
    """Time in ns and size of the picture, its caption and its mask: other stamps, another picture."""
    width_px: int
    height_px: int
    caption: str
    digest: str
    content: str


class SeenPictures:
    """Those of one folder, kept in a file. Safe to use from the threads of one scan."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._before = read_cache(path, dict[str, Seen]) or {}
        self._now: dict[str, Seen] = {}

    def of(self, file: str, stamps: tuple[int, ...]) -> Seen | None:
        """What is known of a file; None where that is nothing, or it has changed."""
        seen = self._before.get(file)
        if seen is None or seen.stamps != stamps:
            return None
        self._now[file] = seen
        return seen

    def size_px(self, file: str, stamps: tuple[int, ...]) -> tuple[int, int] | None:
        """Width and height of a picture that is the same, though its caption or mask may have changed; None where that
        is not known.
        """
        seen = self._before.get(file)
        return (seen.width_px, seen.height_px) if seen is not None and seen.stamps[:2] == stamps[:2] else None

    def add(self, file: str, seen: Seen) -> None:
        self._now[file] = seen

    def keep(self) -> None:
        """Write what this scan has seen, and nothing else, if much of it is new."""
        before_ns = time.time_ns() - _SETTLED_NS
        settled = {file: seen for file, seen in self._now.items() if max(seen.stamps[::2]) < before_ns}
        if sum(self._before.get(file) is not seen for file, seen in settled.items()) >= _WORTH:
            write_cache(self._path, settled)
