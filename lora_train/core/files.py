"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Generator, Iterator
from functools import cache
from itertools import count
from pathlib import Path
from typing import IO

import msgspec

from lora_train.core.sealed import BrokenSealError

DAMAGED_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError, BrokenSealError)
"""For JSON that is cut short, is none, has other types, is nested too deeply, or was changed (see `core.sealed`)."""

_NAME_LIMIT_BYTES = 255
"""Of most file systems."""
_numbers = count(1)
_REPLACE_ATTEMPTS = 20
_REPLACE_PAUSE_S = 0.05
_LOCK_PAUSE_S = 0.01


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to a temporary file beside `path`, flush it to the disk, then rename it over `path`.

    Raises OSError when the disk is full or the folder can't be written; `path` is then as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        replace(temporary, path)
    except OSError as error:  # a full disk names no file, and nobody knows the temporary one
        error.filename, error.filename2 = str(path), None
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def copy(source: Path, target: Path) -> None:
    """Copy a file, with its times, so that `target` is never half of it; the folder around it is there.

    Raises OSError, as `write_bytes` does.
    """
    temporary = temporary_beside(target)
    try:
        shutil.copy2(source, temporary)
        replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def temporary_folder(path: Path) -> Generator[Path, None, None]:
    """A new folder beside `path` with a name like its own, for the block alone. Raises OSError where none can be."""
    folder = temporary_beside(path)
    shutil.rmtree(folder, ignore_errors=True)  # of a process that died, and had this one's number
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def temporary_beside(path: Path) -> Path:
    """Where to write what is to become `path`. The name tells the machine and the process, so that what one left that
    died is known (see `launch.leftovers`); nobody else gives files such names.
    """
    mark = f".train-tools-{this_machine()}-{os.getpid()}-{next(_numbers)}.tmp"
    kept = os.fsencode(path.name)[: _NAME_LIMIT_BYTES - len(mark)]
    return path.with_name(kept.decode("utf-8", "ignore") + mark)


TEMPORARY_NAME = re.compile(r"\.train-tools-([0-9a-f]{6})-(\d+)-\d+\.tmp$")
"""The end of such a name: the machine, and the number of the process there."""


@cache
def this_machine() -> str:
    """Six hexadecimal digits that stand for the machine, or container, whose processes we can see by their numbers."""
    numbering = ""
    with contextlib.suppress(OSError):  # there is none but on Linux
        numbering = os.readlink("/proc/self/ns/pid")  # noqa: PTH115  (it leads nowhere)
    return hashlib.blake2b(f"{platform.node()} {numbering}".encode(), digest_size=3).hexdigest()


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


def wait_for_lock(path: Path, limit_s: float) -> IO[bytes] | None:
    """As `lock`, but whoever holds it is waited for so long."""
    until = time.monotonic() + limit_s
    while (held := lock(path)) is None and time.monotonic() < until:
        time.sleep(_LOCK_PAUSE_S)
    return held


def relative_path(path: Path, start: Path) -> str:
    """`path` as seen from the folder `start`, with forward slashes; as it is where Windows has the two on different
    drives.
    """
    try:
        return Path(os.path.relpath(path, start)).as_posix()
    except ValueError:
        return str(path)
