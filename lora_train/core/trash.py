"""What was deleted, until the trash is emptied by hand, and how it comes back.

An entry is a folder `<trash>/<when> <what>/` with the deleted things and `from.json`, which tells where each was.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from lora_train.core.errors import WorkspaceError
from lora_train.core.files import write_bytes

_RECORD = "from.json"


class Trashed(msgspec.Struct):
    """`from.json`: what was deleted, for a person, and the place of each thing (relative to the workspace if in it)."""

    what: str
    places: dict[str, str]


class Trash:
    """The trash of one workspace."""

    def __init__(self, trash_dir: Path, root: Path) -> None:
        self._trash_dir = trash_dir
        self._root = root

    def put(self, what: str, paths: Sequence[Path]) -> str:
        """Move files or folders here and return the entry's name, for `restore`.

        Nothing is half deleted: when one can't be moved, those before it go back, and WorkspaceError says which.
        """
        entry_dir = self._new_entry(paths[0].name)
        moved: list[tuple[Path, Path]] = []
        places: dict[str, str] = {}
        try:
            for number, path in enumerate(paths):
                target = entry_dir / (path.name if path.name not in (*places, _RECORD) else f"{number}-{path.name}")
                shutil.move(path, target)  # a WebUI's LoRA folder may be on another drive
                moved.append((target, path))
                places[target.name] = self._told(path)
            write_bytes(entry_dir / _RECORD, msgspec.json.encode(Trashed(what, places)))
        except OSError as error:
            for target, path in reversed(moved):
                shutil.move(target, path)
            shutil.rmtree(entry_dir, ignore_errors=True)
            reason = error.strerror or str(error)
            raise WorkspaceError(f"{what} can't be deleted: {reason}.", "Close what uses it, and try again.") from None
        return entry_dir.name

    def restore(self, entry: str) -> list[Path]:
        """Move everything of an entry back to its place, and return the places.

        Raises WorkspaceError where there is no such entry, or something else stands in a place by now.
        """
        entry_dir = self._find(entry)
        try:
            record = msgspec.json.decode((entry_dir / _RECORD).read_bytes(), type=Trashed)
        except (OSError, msgspec.DecodeError):
            raise WorkspaceError(f"{entry_dir} does not tell where its files were.", "Move them by hand.") from None
        places = {entry_dir / name: self._root / place for name, place in record.places.items()}
        for place in places.values():
            if place.exists():
                raise WorkspaceError(f"{place} exists again, so it can't be restored.", "Rename that one first.")
        for kept, place in places.items():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(kept, place)
        shutil.rmtree(entry_dir)
        return list(places.values())

    def _new_entry(self, name: str) -> Path:
        self._trash_dir.mkdir(parents=True, exist_ok=True)
        stamp, number = time.strftime("%Y%m%d-%H%M%S"), 1
        while True:
            suffix = "" if number == 1 else f"-{number}"
            entry_dir = self._trash_dir / f"{stamp}{suffix} {name}"
            try:
                entry_dir.mkdir()
            except FileExistsError:
                number += 1
            else:
                return entry_dir

    def _find(self, entry: str) -> Path:
        if self._trash_dir.is_dir():
            for path in self._trash_dir.iterdir():
                if path.name == entry and path.is_dir():
                    return path
        raise WorkspaceError(f"There is no {entry!r} in the trash any more.")

    def _told(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix() if path.is_relative_to(self._root) else str(path)
