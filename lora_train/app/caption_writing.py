"""The one way in which captions of a version are written: with a step in its history, so that it can be undone."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import msgspec

from lora_train.core.errors import DatasetError, WorkspaceError
from lora_train.core.jobs import JobFolder
from lora_train.core.workspace import Version, Workspace
from lora_train.data.caption_files import write_captions
from lora_train.data.caption_history import (
    History,
    read_history,
    with_job,
    with_job_changes,
    with_step,
    write_history,
)

HistoryStamp = tuple[tuple[int, int], ...]


class EditTitle(msgspec.Struct, frozen=True):
    """What an edit did."""

    what: str
    """Fixed words, e.g. "Add tags"."""
    detail: str
    """What the person typed."""


def write_step(version: Version, title: EditTitle, captions: Mapping[str, str], changed: Mapping[str, str]) -> None:
    """Write the captions that `changed` has, by picture, over those in `captions`; nothing where none differs.

    The history is written first: what a crash leaves half done can be undone. Raises DatasetError for what can't be
    written.
    """
    changed = {file: text for file, text in changed.items() if text != captions[file]}
    if not changed:
        return
    write_version_history(version, with_step(version_history(version), title.what, title.detail, captions, changed))
    write_captions(
        version.dataset_dir,
        changed,
        version.project.workspace.trash,
        "Undo takes back those that were written.",
    )


def write_job_step(version: Version, title: EditTitle, job_id: str) -> None:
    """A step for what a captioning job is going to write. Raises DatasetError when the history can't be written."""
    write_version_history(version, with_job(version_history(version), title.what, title.detail, job_id))


def version_history(version: Version) -> History:
    """With what captioning jobs have written so far, also those that were killed. Raises DatasetError when it can't be
    read.
    """
    try:
        history = read_history(history_path(version))
    except OSError as error:
        raise _history_error(version, error) from None
    return with_job_changes(history, partial(_written_by, version.project.workspace))


def history_stamp(version: Version) -> HistoryStamp:
    """Another stamp, another history."""
    from lora_train.data.captioning import record_path

    paths = [history_path(version)]
    with suppress(WorkspaceError):  # no job, or its folder is gone
        paths.append(record_path(JobFolder(version.project.workspace.find_job(version.info().caption_job))))
    return tuple(_changed(path) for path in paths)


def _changed(path: Path) -> tuple[int, int]:
    """Time and size in ns and bytes; zeros where there is no file."""
    try:
        told = path.stat()
    except OSError:
        return 0, 0
    return told.st_mtime_ns, told.st_size


def _written_by(workspace: Workspace, job_id: str) -> Mapping[str, tuple[str, str]]:
    """The captions that a job has changed, before and after; none where its folder is gone."""
    from lora_train.data.captioning import read_changes

    try:
        job = JobFolder(workspace.find_job(job_id))
    except WorkspaceError:
        return {}
    return {file: (change.before, change.after) for file, change in read_changes(job).items()}


def write_version_history(version: Version, history: History) -> None:
    """Raises DatasetError when it can't be written."""
    try:
        write_history(history_path(version), history)
    except OSError as error:
        raise _history_error(version, error) from None


def history_path(version: Version) -> Path:
    return version.path / "dataset" / "caption_history.json"


def unknown_picture(file: str) -> WorkspaceError:
    return WorkspaceError(f"There is no picture {file!r} in this dataset.", "Refresh the page.")


def _history_error(version: Version, error: OSError) -> DatasetError:
    return DatasetError(
        f"The history of the captions, {history_path(version)}, can't be read or written: {error.strerror or error}.",
        "Check the disk and the rights of its folder.",
    )
