"""What processes that died in the middle of a write left in a workspace, cleared up when the page starts."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path

from lora_train.core.errors import WorkspaceError
from lora_train.core.workspace import Workspace
from lora_train.data.swapping import finish_interrupted
from lora_train.launch.leftovers import is_left_over, remove_leftovers

_log = logging.getLogger(__name__)


def start_clearing_up(workspace: Workspace, others: Sequence[Path]) -> threading.Thread:
    """Clear up the workspace and the folders `others`, where LoRAs go, in a thread: a workspace may be large."""
    thread = threading.Thread(target=_clear_up, args=(workspace, others), name="train-tools-clearing-up", daemon=True)
    thread.start()
    return thread


def _clear_up(workspace: Workspace, others: Sequence[Path]) -> None:
    for mark in workspace.trash.half_done():
        if is_left_over(mark):
            try:
                places = workspace.trash.places_of(mark.parent.name)
                if not all(_is_in(place, (workspace.root, *others)) for place in places):
                    continue  # a workspace may come from somebody else: a person decides
                workspace.trash.restore(mark.parent.name)
            except WorkspaceError as error:  # it stays in the trash
                _log.warning("%s can't be put back: %s", mark.parent, error)
    remove_leftovers(workspace.root)
    for folder in others:
        remove_leftovers(folder, is_ours=False)
    for project in workspace.projects():
        for version in project.versions():
            try:
                _finish_update(version.path / "dataset", workspace.trash_dir)
            except OSError as error:  # one folder without rights must not keep the others from it
                _log.warning("%s can't be cleared up: %s", version.path, error)


def _is_in(place: Path, folders: Sequence[Path]) -> bool:
    return any(place.is_relative_to(folder) for folder in folders)


def _finish_update(dataset_dir: Path, trash_dir: Path) -> None:
    if any((dataset_dir / name).exists() for name in ("processed.new", "processed.old")):
        finish_interrupted(dataset_dir, trash_dir)
