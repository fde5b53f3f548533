"""A new trained set takes the place of the old one, also where a process dies in between."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from lora_train.core.errors import WorkspaceError
from lora_train.core.files import lock, replace
from lora_train.core.trash import Trash


def swap(processed: Path, fresh: Path, trash: Trash) -> None:
    """Put the new set in the place of the old one, which goes to the trash. Raises OSError: the old one stays then."""
    old = _old(processed)
    if processed.exists():
        replace(processed, old)
    try:
        replace(fresh, processed)
    except OSError:
        if old.exists():
            replace(old, processed)
        raise
    with suppress(WorkspaceError):  # the new set is in place; the next update tries again
        _put_away(old, trash)


def finish_swap(processed: Path, trash: Trash) -> None:
    """A process may have died within a swap: between its two renames the old set comes back, else it is put away."""
    old = _old(processed)
    if old.exists() and not processed.exists():
        replace(old, processed)
    _put_away(old, trash)


def finish_interrupted(dataset_dir: Path, trash_dir: Path) -> None:
    """Put right what an update left that died: the trained set stands in its place, and nothing half-made beside it.

    Does nothing while an update is at work. Raises OSError for a folder that can't be written.
    """
    held = lock(dataset_dir / ".update-lock")
    if held is None:
        return
    with held:
        with suppress(WorkspaceError):  # the trash can't be written: the next update tries again
            finish_swap(dataset_dir / "processed", Trash(trash_dir, trash_dir.parent))
        shutil.rmtree(dataset_dir / "processed.new", ignore_errors=True)


def _old(processed: Path) -> Path:
    return processed.with_name(f"{processed.name}.old")


def _put_away(old: Path, trash: Trash) -> None:
    if old.exists():
        trash.put("the trained set before the update", [old])
