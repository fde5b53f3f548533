"""What went wrong, in the words of the person who reads it: what a disk refused, and the last event of a job."""

from __future__ import annotations

import errno
import traceback

from lora_train.core.errors import TrainToolsError, WorkspaceError
from lora_train.core.events import Failed
from lora_train.core.files import TEMPORARY_NAME


def failure_of(error: Exception) -> Failed:
    """To be called where the error was caught: the traceback goes into the log of the job."""
    trace = traceback.format_exc()
    kind = type(error).__name__
    if isinstance(error, TrainToolsError):
        return Failed(error=kind, message=error.message, hint=error.hint, traceback=trace)
    if isinstance(error, OSError):
        refused = refusal_of(error)
        return Failed(error="OSError", message=refused.message, hint=refused.hint, traceback=trace)
    return Failed(
        error=kind,
        message=f"Unexpected: {error}",
        hint="This is a fault of ours; worker.log in the job's folder has the details.",
        traceback=trace,
    )


def file_of(error: OSError) -> str:
    """The file that an error is about, by the name that it was to have; "" where the system names none."""
    return TEMPORARY_NAME.sub("", str(error.filename)) if error.filename else ""


_FULL = (errno.ENOSPC, errno.EDQUOT)
_OPEN_ELSEWHERE = (32, 33)
"""Windows: ERROR_SHARING_VIOLATION and ERROR_LOCK_VIOLATION."""


def refusal_of(error: OSError) -> WorkspaceError:
    """What the system refused: which file, why, and what to do about it."""
    file = file_of(error) or "A file"
    if error.errno in _FULL:
        return WorkspaceError(f"{file} can't be written: the disk is full.", "Free some space, then try again.")
    if error.errno == errno.EFBIG:  # 4 GB where a disk has FAT32
        return WorkspaceError(f"{file} can't be written: its disk takes no file so large.", "Choose another disk.")
    if isinstance(error, FileNotFoundError):
        return WorkspaceError(f"{file} does not exist.", "It may have been moved or deleted.")
    if error.errno == errno.EROFS:
        return WorkspaceError(
            f"{file} can't be written: its folder is read-only.", "Make the folder writable, or choose another one."
        )
    if getattr(error, "winerror", None) in _OPEN_ELSEWHERE:
        return WorkspaceError(f"{file} is open in another program.", "Close it there, then try again.")
    return WorkspaceError(
        f"{file} can't be read or written: {error.strerror or error}.", "Check the disk and the rights of its folder."
    )
