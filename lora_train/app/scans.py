"""What lies in a version's dataset: read again only when a file of it has changed, for a page asks every second."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from lora_train.app.snapshot import PictureEntry
from lora_train.app.version_settings import train_settings
from lora_train.core.errors import DatasetError
from lora_train.core.files import walk
from lora_train.core.workspace import Version

if TYPE_CHECKING:
    from lora_train.data.dataset import Dataset

_END_OF_TIME = 2**63

_Stamp = tuple[tuple[str, int, int], ...]
"""Path, time of change and size of every file of a folder: another stamp, another content."""


class Scans:
    """Safe to use from several threads."""

    def __init__(self) -> None:
        self._scanning = threading.Lock()
        self._trained: dict[Path, tuple[_Stamp, Dataset | DatasetError]] = {}
        self._waiting: dict[Path, tuple[_Stamp, list[PictureEntry]]] = {}

    def trained(self, version: Version, repeats: int | None = None) -> Dataset:
        """The trained set, read again only when a file of it has changed; with its version's repeats, unless others are
        given. Raises DatasetError as `scan_dataset`.
        """
        from lora_train.data.dataset import scan_dataset, with_repeats

        with self._scanning:  # it may take seconds: who asks meanwhile waits for this one
            stamp = stamp_of(version.dataset_dir) + stamp_of(version.regularisation_dir)
            kept = self._trained.get(version.dataset_dir)
            if kept is None or kept[0] != stamp:
                try:
                    kept = stamp, scan_dataset(version.dataset_dir)
                except DatasetError as error:
                    kept = stamp, error
                self._trained[version.dataset_dir] = kept
        if isinstance(kept[1], DatasetError):
            raise kept[1]
        return with_repeats(kept[1], train_settings(version).repeats if repeats is None else repeats)

    def waiting(self, version: Version) -> list[PictureEntry]:
        """Those that *Update Dataset* will take in; read again only when a file has changed."""
        with self._scanning:
            stamp = stamp_of(version.path / "dataset")
            kept = self._waiting.get(version.path)
            if kept is None or kept[0] != stamp:
                kept = self._waiting[version.path] = stamp, _read_waiting(version)
        return list(kept[1])


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
        for file in files:
            path = os.path.join(root, file)  # noqa: PTH118  (hundreds of files, once a second)
            try:
                told = os.stat(path)  # noqa: PTH116
            except OSError:  # just removed, or a link to itself
                continue
            found.append((path, told.st_mtime_ns, told.st_size))
    return tuple(sorted(found))
