"""What is left of a write whose process died: the temporary file or folder beside what it was to become."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

from lora_train.core.errors import JobError
from lora_train.core.files import TEMPORARY_NAME, this_machine
from lora_train.core.jobs import JobFolder

_WRITTEN = ("cache", "dataset", "folder", "train")
"""Fields of specs: folders, relative to the job's own."""
_SLACK_S = 2.0
"""Some file systems tell times to two seconds, and some machines the beginning of a process to one."""
_STRANGE_S = 86400.0
"""What another machine, or a container, writes into a shared folder is left over when it is older than this."""


def remove_leftovers(folder: Path, *, is_ours: bool = True) -> None:
    """Remove the temporary files and folders below `folder` whose process is gone. What can't be removed stays.

    In a folder that is not of the workspace (not `is_ours`) only files, and none of the folders in it.
    """
    for root, folders, files in os.walk(folder):
        if not is_ours:
            folders.clear()
        for name in filter(TEMPORARY_NAME.search, [*folders, *files]):  # there may be a million others
            path = Path(root, name)
            if not is_left_over(path):
                continue
            if name in folders:
                folders.remove(name)
                shutil.rmtree(path, ignore_errors=True)
            else:
                with suppress(OSError):
                    path.unlink()


def folders_of(job: JobFolder) -> list[Path]:
    """Where the job's worker writes: its own folder, and those that its spec names."""
    folders = [job.path]
    with suppress(JobError):
        spec = job.read_spec()
        told = [getattr(spec, name) for name in _WRITTEN if getattr(spec, name, "")]
        folders += [(job.path / folder).resolve() for folder in told]
    return folders


def is_left_over(path: Path) -> bool:
    """Whether a file or folder has the name of a temporary one, and its process is gone."""
    found = TEMPORARY_NAME.search(path.name)
    if found is None:
        return False
    try:
        state = path.stat()
    except OSError:  # it has just got its name
        return False
    written_at = max(state.st_mtime, state.st_ctime)  # a copy has the times of what it is a copy of
    if found[1] != this_machine():
        return written_at < time.time() - _STRANGE_S
    return not _is_at_work(int(found[2]), written_at)


def _is_at_work(pid: int, written_at: float) -> bool:
    """Whether a process of this number may have written it: one that began later has taken over the number. (In a
    container each start has the same.)
    """
    import psutil

    try:
        return psutil.Process(pid).create_time() <= written_at + _SLACK_S
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:  # nobody can tell
        return True
