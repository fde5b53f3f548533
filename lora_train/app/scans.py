"""What lies in a version's dataset: read again only when a file of it has changed, for a page asks every second."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Union

from lora_train.app.remembered import RememberedByKey
from lora_train.app.snapshot import PictureEntry
from lora_train.app.version_settings import train_settings
from lora_train.core.errors import DatasetError
from lora_train.core.files import walk
from lora_train.core.workspace import Version

if TYPE_CHECKING:
    from lora_train.data.dataset import Dataset

_END_OF_TIME = 2**63
_REST = 12
"""A glance at a folder holds for so many times as long as it took: pages take a thirteenth of a core for it at most."""
_OLDEST_S = 1.0

_Read = Union["dict[int, Dataset]", DatasetError]
"""A set by its repeats, or why it can't be read."""
_Stamp = tuple[tuple[str, int, int], ...]
"""Path, time of change and size of every file of a folder: another stamp, another content."""


class Scans:
    """Safe to use from several threads. Knows the versions that were asked for last."""

    def __init__(self) -> None:
        self._scanning = threading.Lock()
        self._glance = threading.local()
        self._stamps: dict[Path, tuple[float, _Stamp]] = {}
        """Of folders, each with the monotonic time until which glances may take it."""
        self._trained: RememberedByKey[Path, tuple[_Stamp, _Read]] = RememberedByKey()
        """The set as it was read is that of 0 repeats."""
        self._waiting: RememberedByKey[Path, tuple[_Stamp, list[PictureEntry]]] = RememberedByKey()

    def trained(self, version: Version, repeats: int | None = None) -> Dataset:
        """The trained set, read again only when a file of it has changed, and outside of glances where something could
        not be read; with its version's repeats, unless others are given. Raises DatasetError as `scan_dataset`.
        """
        from lora_train.data.dataset import with_repeats

        with self._scanning:  # it may take seconds: who asks meanwhile waits for this one
            stamp = self._stamp(version.dataset_dir) + self._stamp(version.regularisation_dir)
            kept = self._trained.of(version.dataset_dir)
            if kept is None or kept[0] != stamp:
                kept = stamp, _read_trained(version)
                self._trained.put(version.dataset_dir, kept)
            elif self._seen() is None and _may_have_passed(kept[1]):
                again = _read_trained(version)
                if not _is_same(kept[1], again):
                    kept = stamp, again
                    self._trained.put(version.dataset_dir, kept)
        if isinstance(kept[1], DatasetError):
            raise kept[1]
        repeats = max(0, train_settings(version).repeats if repeats is None else repeats)
        if repeats not in kept[1]:
            kept[1][repeats] = with_repeats(kept[1][0], repeats)
        return kept[1][repeats]

    @contextmanager
    def glancing(self) -> Generator[None, None, None]:
        """In here this thread takes a folder with very many files for what it was a moment ago: for what pages show,
        never for what is done.
        """
        before = self._seen()
        self._glance.seen = {} if before is None else before
        try:
            yield
        finally:
            self._glance.seen = before

    def _seen(self) -> dict[Path, _Stamp] | None:
        """What this thread has seen in the glance that it is in; None outside of glances."""
        return getattr(self._glance, "seen", None)

    def forget_glances(self) -> None:
        """Files were just changed by us: who looks now is to see that."""
        with self._scanning:
            self._stamps.clear()

    def _stamp(self, folder: Path) -> _Stamp:
        """Taken anew, and forgotten, outside of glances: whoever looks so closely is about to change something."""
        seen = self._seen()
        if seen is None:
            self._stamps.clear()
            return stamp_of(folder)
        if folder not in seen:
            seen[folder] = self._glanced(folder)
        return seen[folder]

    def _glanced(self, folder: Path) -> _Stamp:
        began = time.monotonic()
        valid_until, stamp = self._stamps.get(folder, (0.0, ()))
        if began >= valid_until:
            stamp = stamp_of(folder)
            took_s = time.monotonic() - began
            self._stamps[folder] = began + took_s + min(_OLDEST_S, _REST * took_s), stamp
        return stamp

    def waiting(self, version: Version) -> list[PictureEntry]:
        """Those that *Update Dataset* will take in; read again only when a file has changed."""
        with self._scanning:
            stamp = self._stamp(version.origin_dir) + self._stamp(version.dataset_dir)
            kept = self._waiting.of(version.path)
            if kept is None or kept[0] != stamp:
                kept = stamp, _read_waiting(version)
                self._waiting.put(version.path, kept)
        return list(kept[1])


def _read_trained(version: Version) -> _Read:
    from lora_train.data.dataset import scan_trained_set

    try:
        return {0: scan_trained_set(version.dataset_dir)}
    except DatasetError as error:
        return error


def _may_have_passed(read: _Read) -> bool:
    """Whether there was a problem: perhaps another program held a file for a moment."""
    return isinstance(read, DatasetError) or bool(read[0].problems)


def _is_same(read: _Read, again: _Read) -> bool:
    return not isinstance(read, DatasetError) and not isinstance(again, DatasetError) and read[0] == again[0]


def _read_waiting(version: Version) -> list[PictureEntry]:
    from lora_train.data.captions import caption_stem
    from lora_train.data.existing import existing_captions
    from lora_train.data.images import picture_size
    from lora_train.data.manifest import read_manifest
    from lora_train.data.masks import masks_by_stem
    from lora_train.data.trained_set import origin_names, origins

    dataset_dir = version.path / "dataset"
    made_ns: dict[str, int] = {}
    for file, name in origin_names(dataset_dir, read_manifest(dataset_dir)).items():
        made_ns[name] = min(made_ns.get(name, _END_OF_TIME), _changed_ns(version.dataset_dir / file))
    masks = masks_by_stem(version.origin_dir)

    def changed_ns(path: Path) -> int:
        mask = masks.get(caption_stem(path))
        return max(_changed_ns(path), 0 if mask is None else _changed_ns(mask))

    # A newer original, or mask, has replaced the one that its trained picture was made from.
    waiting = [path for path in origins(dataset_dir) if changed_ns(path) > made_ns.get(path.name, 0)]
    captions = existing_captions(version.origin_dir) if waiting else {}
    entries: list[PictureEntry] = []
    for path in waiting:
        with suppress(OSError):  # just removed
            stamp = f"{path.stat().st_mtime_ns:x}"
            try:
                width_px, height_px = picture_size(path)
            except DatasetError:
                width_px, height_px = 0, 0  # it was checked when it came; the update will tell
            caption = captions.get(caption_stem(path), "")
            entries.append(PictureEntry(path.name, width_px, height_px, caption, is_waiting=True, stamp=stamp))
    return entries


def _changed_ns(path: Path) -> int:
    """When a file was written, in ns since 1970; 0 for one that was just removed."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def belongings_of(pictures: Sequence[Path]) -> list[Path]:
    """Their caption files and masks, but those that belong to another picture of the same stem too."""
    from lora_train.data.captions import CAPTION_SUFFIXES, caption_stem
    from lora_train.data.images import PICTURE_SUFFIXES
    from lora_train.data.masks import masks_by_stem

    found: list[Path] = []
    for folder in {path.parent for path in pictures}:
        files = sorted(folder.iterdir())
        stems = {caption_stem(path) for path in pictures if path.parent == folder}
        others = (path for path in files if path.suffix.lower() in PICTURE_SUFFIXES and path not in pictures)
        stems -= {caption_stem(path) for path in others}
        found += [path for path in files if path.suffix.lower() in CAPTION_SUFFIXES and caption_stem(path) in stems]
        found += [path for stem, path in masks_by_stem(folder).items() if stem in stems]
    return found


def stamp_of(folder: Path) -> _Stamp:
    found: list[tuple[str, int, int]] = []
    for root, _, files in walk(folder):
        start = root + os.sep
        for file in files:
            path = start + file
            try:
                told = os.stat(path)  # noqa: PTH116
            except OSError:  # just removed, or a link to itself
                continue
            found.append((path, told.st_mtime_ns, told.st_size))
    return tuple(sorted(found))
