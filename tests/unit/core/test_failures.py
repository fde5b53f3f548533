"""What a disk refused, in words."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from lora_train.core.failures import failure_of, refusal_of
from lora_train.core.files import temporary_beside


def sharing_violation() -> OSError:
    error = PermissionError(errno.EACCES, "The process cannot access the file", "C:\\a.png")
    error.winerror = 32  # type: ignore[attr-defined]  (only Windows has it)
    return error


@pytest.mark.parametrize(
    ("error", "message", "hint"),
    [
        (OSError(errno.ENOSPC, "No space", "/a"), "/a can't be written: the disk is full.", "Free some space"),
        (OSError(errno.ENOSPC, "No space"), "A file can't be written: the disk is full.", "Free some space"),
        (
            OSError(errno.ENOSPC, "No space", str(temporary_beside(Path("/猫.safetensors")))),
            f"{Path('/猫.safetensors')} can't be written: the disk is full.",
            "Free some space",
        ),
        (FileNotFoundError(errno.ENOENT, "No such file", "/a"), "/a does not exist.", "moved or deleted"),
        (OSError(errno.EROFS, "Read-only", "/a"), "/a can't be written: its folder is read-only.", "writable"),
        (sharing_violation(), "C:\\a.png is open in another program.", "Close it there"),
        (PermissionError(errno.EACCES, "Denied", "/a"), "/a can't be read or written: Denied.", "Check the disk"),
        (OSError("what"), "A file can't be read or written: what.", "Check the disk"),
    ],
)
def test_what_a_disk_refused(error: OSError, message: str, hint: str) -> None:
    told = refusal_of(error)
    assert told.message == message
    assert hint in told.hint
    failed = failure_of(error)
    assert (failed.error, failed.message, failed.hint) == ("OSError", message, told.hint)
