"""Disks that fail at a chosen moment, files that are cut off or get a wrong bit, and looks at what is left."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from lora_train.core.errors import TrainToolsError
from lora_train.core.failures import refusal_of
from lora_train.core.sealed import is_broken
from lora_train.core.tensorfiles import read_tensor_file

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
TEMPORARY = re.compile(r"\.tmp$|^\.incoming|^processed\.(new|old)$|\.damaged$")

SHARING_VIOLATION = 32
"""What Windows says of a file that is open in another program."""

_DISK_BYTES = 2**30
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT

# --- disks ---


class Failing:
    """Counts what writes below a folder, and lets the n-th act fail (or all from then on). Python itself tells of
    every act, whichever library does it; a flush to the disk is told of by `os.fsync` in its place.
    """

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._fsync = os.fsync
        self._lock = threading.Lock()
        self._at = 0
        self._stays = False
        self._code = 0
        self.done = 0
        self.is_active = False
        sys.addaudithook(self._hear)

    @contextmanager
    def at(self, number: int, code: int = errno.ENOSPC, *, stays: bool = False) -> Iterator[None]:
        """Within the block act number `number` fails with this code; with `stays` all later ones too."""
        self._at, self._code, self._stays, self.done = number, code, stays, 0
        self.is_active = True
        os.fsync = self._flush
        try:
            yield
        finally:
            self.is_active = False
            os.fsync = self._fsync

    @property
    def has_failed(self) -> bool:
        return self.done >= self._at

    def _act(self, path: object) -> None:
        with self._lock:
            self.done += 1
            fails = self.done == self._at or (self._stays and self.done > self._at)
        if fails:
            raise OSError(
                self._code, os.strerror(self._code), os.fsdecode(path) if isinstance(path, str | bytes) else None
            )

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.is_active:
            return
        if event == "open" and isinstance(arguments[0], str | bytes):
            mode, flags = arguments[1], arguments[2]
            writes = (
                any(letter in mode for letter in "wax+") if mode else flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            )
            if writes and self._is_ours(arguments[0]):
                self._act(arguments[0])
        elif event in ("os.rename", "os.link") and self._is_ours(arguments[1]):
            self._act(arguments[1])
        elif event in ("os.mkdir", "os.utime") and self._is_ours(arguments[0]):
            self._act(arguments[0])

    def _is_ours(self, path: object) -> bool:
        # Not by Path.resolve, which looks at the disk and would be heard itself.
        return isinstance(path, str | bytes | os.PathLike) and os.path.normpath(os.fsdecode(path)).startswith(
            self._root
        )

    def _flush(self, descriptor: int) -> None:
        self._act(None)
        self._fsync(descriptor)


class Vanishing:
    """Deletes the n-th file below a folder that is opened to be read, or renamed, just before that."""

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._at = 0
        self.done = 0
        self.gone: str = ""
        self.is_active = False
        sys.addaudithook(self._hear)

    @contextmanager
    def at(self, number: int) -> Iterator[None]:
        self._at, self.done, self.gone = number, 0, ""
        self.is_active = True
        try:
            yield
        finally:
            self.is_active = False

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.is_active or event not in ("open", "os.rename", "shutil.copyfile"):
            return
        path = arguments[0]
        if event == "open" and (not isinstance(arguments[1], str) or set(arguments[1]) & set("wax+")):
            return
        if not isinstance(path, str | os.PathLike) or not os.fspath(path).startswith(self._root):
            return
        if not os.path.isfile(path) or os.fspath(path).endswith("lock"):  # noqa: PTH113
            return
        self.done += 1
        if self.done == self._at:
            self.is_active = False
            os.unlink(path)  # noqa: PTH108
            self.gone = os.fspath(path)


TAKEN = "A file was taken away."
_PATHS = {"open": 1, "os.rename": 2, "os.link": 2, "os.remove": 1, "os.rmdir": 1, "os.mkdir": 1, "os.utime": 1}
"""What Python tells of, each with the number of its arguments that are paths."""


@contextmanager
def taken_away(root: Path, file: Path, at: int, how: Literal["deleted", "held"]) -> Iterator[None]:
    """In a process of its own, for what hears of its files can't be taken out again: as it turns to another file below
    `root` for the `at`-th time, one is deleted; or from then on open in another program, as on Windows, where nobody
    else may open, rename or delete it then. Writes `TAKEN` into the log if there was such a file at that moment.
    """
    own, looks, last = str(file), 0, ""
    is_held = is_busy = False

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal looks, last, is_held, is_busy
        told = arguments[: _PATHS.get(event, 0)]
        paths = [os.fsdecode(path) for path in told if isinstance(path, str | bytes | os.PathLike)]
        if is_busy or not any(path.startswith(str(root)) for path in paths):
            return
        looks, last = looks + (paths[0] != last), paths[0]
        if looks == at and not is_held and file.exists():
            is_busy = True
            sys.stderr.write(f"{TAKEN}\n")
            file.unlink() if how == "deleted" else None
            is_held, is_busy = how == "held", False
        if is_held and own in paths:
            error = PermissionError(errno.EACCES, "The process cannot access the file", own)
            error.winerror = SHARING_VIOLATION  # type: ignore[attr-defined]
            raise error

    sys.addaudithook(hear)
    yield


def can_mount() -> bool:
    """Whether this process may put a small disk into the file system."""
    return sys.platform == "linux" and os.geteuid() == 0 and _may_mount()


def _may_mount() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        if subprocess.run(["mount", "-t", "tmpfs", "none", folder], capture_output=True, check=False).returncode:
            return False
        subprocess.run(["umount", folder], check=True)
    return True


class SmallDisk:
    """A disk of its own at `path` (a tmpfs), that can become full and read-only. It takes memory for what is on it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "none", str(path)], check=True)

    def fill(self, left_bytes: int = 0) -> None:
        """Make it so small that only this is left."""
        told = os.statvfs(self.path)
        self._remount(f"size={(told.f_blocks - told.f_bfree) * told.f_frsize + left_bytes}")

    def free(self) -> None:
        self._remount(f"size={_DISK_BYTES}")

    def read_only(self, is_so: bool = True) -> None:
        self._remount("ro" if is_so else "rw")

    def close(self) -> None:
        subprocess.run(["umount", "-l", str(self.path)], check=True)

    def _remount(self, option: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{option}", str(self.path)], check=True)


# --- damage ---


def damages(content: bytes, seed: int) -> Iterator[tuple[str, bytes]]:
    """What may become of a file's content: cut off, emptied, zeros, a wrong bit here and there."""
    chance = random.Random(seed)
    size = len(content)
    yield "empty", b""
    yield "cut at the start", content[: min(size - 1, 5)]
    yield "cut in the middle", content[: size // 2]
    yield "cut at the end", content[:-1]
    yield "zeros", bytes(size)
    for name, place in (
        ("start", 0),
        ("header", min(size - 1, 20)),
        ("a quarter", size // 4),
        ("the middle", size // 2),
        ("the end", size - 1),
        *((f"chance {number}", chance.randrange(size)) for number in range(3)),
    ):
        yield f"a bit at {name}", with_wrong_bit(content, place, chance.randrange(8))


def with_wrong_bit(content: bytes, place: int, bit: int) -> bytes:
    changed = bytearray(content)
    changed[place] ^= 1 << bit
    return bytes(changed)


# --- looks ---


def files_in(root: Path) -> dict[str, bytes]:
    """Digest of every file below a folder, by relative path."""
    return {
        path.relative_to(root).as_posix(): hashlib.blake2b(path.read_bytes(), digest_size=16).digest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


def precious(root: Path, *, but: str = "//") -> dict[str, bytes]:
    """What a person can't get back: pictures, captions, LoRAs; without those in whose place `but` stands."""
    kinds = (*PICTURES, ".txt", ".safetensors")
    return {file: digest for file, digest in files_in(root).items() if file.endswith(kinds) and but not in file}


def lost(before: dict[str, bytes], root: Path) -> list[str]:
    """What was precious and is nowhere any more, in its place or in the trash."""
    left = set(files_in(root).values())
    return [file for file, digest in before.items() if digest not in left]


def half_written(root: Path) -> list[str]:
    """Files that are not whole though they have their final name."""
    return [
        path.relative_to(root).as_posix()
        for path in sorted(root.rglob("*"))
        if (path.is_file() and path.stat().st_size == 0 and path.suffix in (*PICTURES, ".json", ".safetensors"))
        or (path.is_file() and not _is_whole(path))
    ]


def _is_whole(path: Path) -> bool:
    try:
        if path.suffix == ".json":
            json.loads(path.read_bytes())
            return not is_broken(path.read_bytes())
        if path.suffix in PICTURES:
            with Image.open(path) as picture:
                picture.load()
        if path.suffix == ".safetensors":
            read_tensor_file(path)
    except (ValueError, OSError, TrainToolsError):
        return False
    return True


def temporary(root: Path) -> list[str]:
    """What should be gone when an action is over, or at the latest after the next start."""
    found = (path.relative_to(root) for path in sorted(root.rglob("*")) if TEMPORARY.search(path.name))
    return [path.as_posix() for path in found if "trash" not in path.parts]


def is_clear(error: BaseException) -> str:
    """What a person reads of an error at the page. Asserts that it is a sentence of this house and no traceback."""
    assert isinstance(error, TrainToolsError | OSError), f"nobody made a sentence of {error!r}"
    told = error if isinstance(error, TrainToolsError) else refusal_of(error)
    return are_sentences(told.message, told.hint)


def are_sentences(message: str, hint: str) -> str:
    text = f"{message} {hint}".strip()
    assert text.endswith("."), text
    for word in ("Traceback", "Errno", "Unexpected", ".tmp", "None"):
        assert word not in text, text
    return text


def refused(act: Callable[[], object]) -> str:
    """What a person is told when `act` fails; empty where it does not."""
    try:
        act()
    except Exception as error:
        return is_clear(error)
    return ""
