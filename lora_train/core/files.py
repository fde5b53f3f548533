"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_REPLACE_ATTEMPTS = 20
_REPLACE_PAUSE_S = 0.05


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to a temporary file beside `path`, flush it to the disk, then rename it over `path`.

    Raises OSError when the disk is full or the folder can't be written; `path` is then as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def write_text(path: Path, content: str) -> None:
    """`write_bytes` for UTF-8 text with `\\n` line ends on every platform."""
    write_bytes(path, content.encode("utf-8"))


def replace(source: Path, target: Path) -> None:
    """`os.replace`, patient with Windows virus scanners and indexers that hold a file for a moment.

    Raises PermissionError when the file stays locked for about a second.
    """
    for attempt in range(_REPLACE_ATTEMPTS):
        try:
            source.replace(target)
        except PermissionError:
            if attempt == _REPLACE_ATTEMPTS - 1:
                raise
            time.sleep(_REPLACE_PAUSE_S)
        else:
            return


def walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """`os.walk` that also goes where links lead, into each folder once. Takes out of its second list what is not to be
    gone into, as there.
    """
    seen: set[str] = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield root, folders, names


def lock(path: Path) -> IO[bytes] | None:
    """Hold the returned file while nobody else may; None when somebody does. It is free again when its holder ends.

    A file system that knows no locks (some network drives) is no reason not to work.
    """
    stream = path.open("ab")
    try:
        if sys.platform == "win32":
            import msvcrt

            stream.seek(0)
            msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            stream.close()
            return None
    return stream


def relative_path(path: Path, start: Path) -> str:
    """`path` as seen from the folder `start`, with forward slashes; as it is where Windows has the two on different
    drives.
    """
    try:
        return Path(os.path.relpath(path, start)).as_posix()
    except ValueError:
        return str(path)
