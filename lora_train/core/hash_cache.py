"""Hashes of large files, remembered in `hashes.json` with size and time of change: a file nobody touched is read once.

Only a help: where it can't be read or written, hashes are worked out as ever.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from lora_train.core.files import DAMAGED_JSON, write_bytes
from lora_train.core.sealed import sealed_json, unsealed

FILE_NAME = "hashes.json"
_MOST_FILES = 500
_SETTLED_S = 2.0
"""Some file systems tell times to two seconds: what was changed just now may change again without a sign."""
_LOG = logging.getLogger(__name__)


class _Known(msgspec.Struct, frozen=True):
    """A file as it was, and its hashes by what they are of."""

    size_bytes: int
    mtime_ns: int
    hashes: dict[str, str]


class HashCache:
    """Hashes by a file's absolute path, size and time of change. Threads and processes may share the file."""

    def __init__(self, path: Path | None) -> None:
        """`path` is where `hashes.json` lies or will lie; with None nothing is remembered."""
        self._path = path
        self._lock = threading.Lock()

    def get(self, file: Path, what: str, work_out: Callable[[], str]) -> str:
        """The hash of `file` that is called `what`, from before or from `work_out`. Raises OSError as that does."""
        place, before = str(file.absolute()), file.stat()
        known = self._read().get(place)
        if known is not None and (known.size_bytes, known.mtime_ns) == (before.st_size, before.st_mtime_ns):
            found = known.hashes.get(what)
            if found is not None:
                return found
        found, after = work_out(), file.stat()
        is_unchanged = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
        if is_unchanged and abs(time.time() - after.st_mtime) > _SETTLED_S:
            self._remember(place, after.st_size, after.st_mtime_ns, what, found)
        return found

    def _remember(self, place: str, size_bytes: int, mtime_ns: int, what: str, found: str) -> None:
        if self._path is None:
            return
        with self._lock:
            files = self._read()  # again: another worker may have written meanwhile
            known = files.pop(place, None)
            is_same = known is not None and (known.size_bytes, known.mtime_ns) == (size_bytes, mtime_ns)
            others = known.hashes if known is not None and is_same else {}
            files[place] = _Known(size_bytes, mtime_ns, {**others, what: found})
            newest = dict([*files.items()][-_MOST_FILES:])
            try:
                write_bytes(self._path, sealed_json(newest))
            except OSError as error:
                _LOG.warning("Hashes can't be remembered: %s", error)

    def _read(self) -> dict[str, _Known]:
        """Empty where the file is missing, damaged or not ours."""
        if self._path is None:
            return {}
        try:
            return msgspec.json.decode(unsealed(self._path.read_bytes()), type=dict[str, _Known])
        except (OSError, *DAMAGED_JSON):
            return {}
