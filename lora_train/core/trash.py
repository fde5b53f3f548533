"""What was deleted, until the trash is emptied by hand, and how it comes back.

An entry is a folder `<trash>/<when> <what>/` with the deleted things and `from.json`, which tells where each was.
"""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from lora_train.core.errors import WorkspaceError
from lora_train.core.files import replace, write_bytes

_RECORD = "from.json"

_NAME_LIMIT = 50
"""Characters of a deleted thing's name in the name of its entry, which must stay below 255 bytes."""


class Trashed(msgspec.Struct):
    """`from.json`: what was deleted, for a person, and the place of each thing (relative to the workspace if in it)."""

    what: str
    places: dict[str, str]
    replaced_by: list[str] = []
    """Places of what was put instead, which makes room when this comes back."""


class Trash:
    """The trash of one workspace."""

    def __init__(self, trash_dir: Path, root: Path) -> None:
        self._trash_dir = trash_dir
        self._root = root

    def put(self, what: str, paths: Sequence[Path], replaced_by: Sequence[Path] = ()) -> str:
        """Move files or folders here and return the entry's name, for `restore`.

        `replaced_by` are the places of what the caller puts instead: it goes to the trash when these come back.
        Nothing is half deleted: when one can't be moved, those before it go back, and WorkspaceError says why.
        """
        moved: list[tuple[Path, Path]] = []
        entry_dir = self._new_entry(paths[0].name)
        try:
            taken = {_RECORD}
            for number, path in enumerate(paths):
                name = path.name if path.name.casefold() not in taken else f"{number}-{path.name}"
                taken.add(name.casefold())
                _move(path, entry_dir / name)
                moved.append((entry_dir / name, path))
            places = {target.name: self._told(path) for target, path in moved}
            write_bytes(
                entry_dir / _RECORD, msgspec.json.encode(Trashed(what, places, [*map(self._told, replaced_by)]))
            )
        except OSError as error:
            _move_back(moved)
            with suppress(OSError):  # what could not go back is still in it
                entry_dir.rmdir()
            raise WorkspaceError(
                f"{what} can't be deleted: {_reason(error)}.", "Close what uses it, and try again."
            ) from None
        return entry_dir.name

    def restore(self, entry: str) -> list[Path]:
        """Move everything of an entry back to its place, and return the places.

        Raises WorkspaceError where there is no such entry, something else stands in a place by now, or the folder
        around it is gone; everything then stays in the trash.
        """
        entry_dir = self._find(entry)
        try:
            record = msgspec.json.decode((entry_dir / _RECORD).read_bytes(), type=Trashed)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            raise WorkspaceError(f"{entry_dir} does not tell where its files were.", "Move them by hand.") from None
        places = {entry_dir / name: self._root / place for name, place in record.places.items()}
        instead = [place for place in (self._root / told for told in record.replaced_by) if place.exists()]
        for place in places.values():
            if place.exists() and place not in instead:
                raise WorkspaceError(f"{place} exists again, so it can't be restored.", "Rename that one first.")
            if not place.parent.parent.is_dir():
                raise WorkspaceError(
                    f"{record.what} can't be restored: {place.parent.parent} is gone too.", "Restore that one first."
                )
        made_room = self.put(record.what, instead) if instead else ""
        moved: list[tuple[Path, Path]] = []
        try:
            for kept, place in places.items():
                place.parent.mkdir(exist_ok=True)
                _move(kept, place)
                moved.append((place, kept))
        except OSError as error:
            _move_back(moved)
            if made_room:
                self.restore(made_room)
            raise WorkspaceError(f"{record.what} can't be restored: {_reason(error)}.") from None
        shutil.rmtree(entry_dir, ignore_errors=True)
        return list(places.values())

    def _new_entry(self, name: str) -> Path:
        stamp, number = time.strftime("%Y%m%d-%H%M%S"), 1
        try:
            self._trash_dir.mkdir(parents=True, exist_ok=True)
            while True:
                suffix = "" if number == 1 else f"-{number}"
                entry_dir = self._trash_dir / f"{stamp}{suffix} {name[:_NAME_LIMIT]}".rstrip(" .")
                with suppress(FileExistsError):
                    entry_dir.mkdir()
                    return entry_dir
                number += 1
        except OSError as error:
            raise WorkspaceError(f"The trash {self._trash_dir} can't be written: {_reason(error)}.") from None

    def _find(self, entry: str) -> Path:
        if self._trash_dir.is_dir():
            for path in self._trash_dir.iterdir():
                if path.name == entry and path.is_dir():
                    return path
        raise WorkspaceError(f"There is no {entry!r} in the trash any more.")

    def _told(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix() if path.is_relative_to(self._root) else str(path)


def _move(source: Path, target: Path) -> None:
    """Rename, or copy and delete where the target is on another drive (a WebUI's LoRA folder may be).

    When OSError is raised, the source is whole and there is no target.
    """
    try:
        replace(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _copy_over(source, target)


def _copy_over(source: Path, target: Path) -> None:
    try:
        if source.is_dir():
            shutil.copytree(source, target)
            shutil.rmtree(source, ignore_errors=True)  # what can't be deleted is left; the copy is whole
        else:
            shutil.copy2(source, target)
            source.unlink()
    except OSError:
        shutil.rmtree(target, ignore_errors=True)
        target.unlink(missing_ok=True)
        raise


def _move_back(moved: list[tuple[Path, Path]]) -> None:
    """Undo some moves. What can't go back stays where it is: nothing is ever lost."""
    for target, source in reversed(moved):
        with suppress(OSError):
            _move(target, source)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
