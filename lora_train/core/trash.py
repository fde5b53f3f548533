"""What was deleted, until the trash is emptied by hand, and how it comes back.

An entry is a folder `<trash>/<when> <what>/` with the deleted things and `from.json`, which tells where each was. While
they are moved there is a mark in it that tells by whom: what a process leaves half done that dies is put back by
`restore` at the next start.
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
from lora_train.core.files import DAMAGED_JSON, replace, temporary_beside, write_bytes
from lora_train.core.sealed import sealed, unsealed

_RECORD = "from.json"
_MARK = "moving"

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

        `replaced_by` are the places of what the caller puts instead: it goes to the trash when these come back. Until
        the caller says `keep`, the entry counts as half done.
        Nothing is half deleted: when one can't be moved, those before it go back, and WorkspaceError says why. Where
        they can't even go back, it tells the entry, from which they can be restored.
        """
        moved: list[tuple[Path, Path]] = []
        entry_dir = self._new_entry(paths[0].name)
        targets = _targets(paths, entry_dir)
        places = {target.name: self._told(path) for target, path in targets}
        record = Trashed(what, places, [*map(self._told, replaced_by)])
        mark = temporary_beside(entry_dir / _MARK)
        try:
            # First: who dies here leaves a way back.
            write_bytes(entry_dir / _RECORD, sealed(msgspec.json.encode(record)))
            mark.touch()
            for target, path in targets:
                _move(path, target)
                moved.append((target, path))
        except OSError as error:
            if not _move_back(moved):
                raise WorkspaceError(
                    f"{what} is only partly deleted: {_reason(error)}. What was moved is in {entry_dir}.",
                    "Restore it from the trash, or move it back by hand.",
                ) from None
            shutil.rmtree(entry_dir, ignore_errors=True)
            raise WorkspaceError(
                f"{what} can't be deleted: {_reason(error)}.", "Close what uses it, and try again."
            ) from None
        if not replaced_by:
            mark.unlink(missing_ok=True)
        return entry_dir.name

    def keep(self, entry: str) -> None:
        """What takes the place of an entry's things is there."""
        for mark in self._find(entry).glob(f"{_MARK}.*"):
            mark.unlink(missing_ok=True)

    def half_done(self) -> list[Path]:
        """The marks of the entries whose things are being moved, or were when a process died."""
        return [*self._trash_dir.glob(f"*/{_MARK}.*.tmp")]

    def places_of(self, entry: str) -> list[Path]:
        """Where `restore` would put an entry's things. Raises WorkspaceError as it does."""
        return [self._root / place for place in _record_of(self._find(entry)).places.values()]

    def restore(self, entry: str) -> list[Path]:
        """Move everything of an entry back to its place, and return the places.

        Things that never came here, because a process died while it put them, are in their places still.
        Raises WorkspaceError where there is no such entry, something else stands in a place by now, or the folder
        around it is gone; everything then stays in the trash.
        """
        entry_dir = self._find(entry)
        record = _record_of(entry_dir)
        all_places = {entry_dir / name: self._root / place for name, place in record.places.items()}
        places = {kept: place for kept, place in all_places.items() if kept.exists() or not place.exists()}
        never_moved = {*all_places.values()}.difference(places.values())
        instead = [
            place for told in record.replaced_by if (place := self._root / told).exists() and place not in never_moved
        ]
        for place in places.values():
            if place.exists() and place not in instead:
                raise WorkspaceError(f"{place} exists again, so it can't be restored.", "Rename that one first.")
            if not place.parent.parent.is_dir():
                raise WorkspaceError(
                    f"{record.what} can't be restored: {place.parent.parent} is gone too.", "Restore that one first."
                )
        moved: list[tuple[Path, Path]] = []
        made_room = ""
        mark = temporary_beside(entry_dir / _MARK)
        try:
            mark.touch()  # first: who dies with neither of the two in its place leaves a way back
            made_room = self.put(record.what, instead) if instead else ""
            for kept, place in places.items():
                place.parent.mkdir(exist_ok=True)
                _move(kept, place)
                moved.append((place, kept))
        except WorkspaceError:
            mark.unlink(missing_ok=True)
            raise
        except OSError as error:
            _move_back(moved)
            with suppress(OSError):
                mark.unlink(missing_ok=True)
            if made_room:
                self.restore(made_room)
            raise WorkspaceError(
                f"{record.what} can't be restored: {_reason(error)}. It stays in {entry_dir}.",
                "Close what uses its place, and restore it again.",
            ) from None
        shutil.rmtree(entry_dir, ignore_errors=True)
        return list(all_places.values())

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


def _record_of(entry_dir: Path) -> Trashed:
    try:
        record = msgspec.json.decode(unsealed((entry_dir / _RECORD).read_bytes()), type=Trashed)
    except (OSError, *DAMAGED_JSON):
        record = None
    if record is None or not all(_is_sound(name, place) for name, place in record.places.items()):
        raise WorkspaceError(f"{entry_dir} does not tell where its files were.", "Move them by hand.")
    return record


def _is_sound(name: str, place: str) -> bool:
    """Whether we may have written it: a workspace may come from somebody else, and nothing may be moved anywhere."""
    return "\0" not in name + place and Path(name).name == name and ".." not in Path(place).parts


def _targets(paths: Sequence[Path], entry_dir: Path) -> list[tuple[Path, Path]]:
    """Where each path goes in the entry; names that meet on some system get a number."""
    targets: list[tuple[Path, Path]] = []
    taken = {_RECORD}
    for number, path in enumerate(paths):
        name = path.name if path.name.casefold() not in taken else f"{number}-{path.name}"
        taken.add(name.casefold())
        targets.append((entry_dir / name, path))
    return targets


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


def _move_back(moved: list[tuple[Path, Path]]) -> bool:
    """Undo some moves; whether all could be. What can't go back stays where it is: nothing is ever lost."""
    is_all_back = True
    for target, source in reversed(moved):
        try:
            _move(target, source)
        except OSError:
            is_all_back = False
    return is_all_back


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
