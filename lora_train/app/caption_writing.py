"""The one way in which captions of a version are written: with a step in its history, so that it can be undone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from lora_train.core.errors import DatasetError, WorkspaceError
from lora_train.core.workspace import Version
from lora_train.data.caption_files import write_captions
from lora_train.data.caption_history import History, read_history, with_step, write_history


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
    write_captions(version.dataset_dir, changed, version.project.workspace.trash)


def version_history(version: Version) -> History:
    """Raises DatasetError when it can't be read."""
    try:
        return read_history(history_path(version))
    except OSError as error:
        raise _history_error(version, error) from None


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
