"""A process that has imported what workers import, and forks one for each call: it starts in milliseconds.

    python forks.py MODULES PADDING

MODULES are imported ahead; PADDING makes room for a command line.

Reads calls from stdin, a line of JSON each, and answers with the process's number, then with how it ended. A call may
say at which of its changes to files it is to die as by kill -9: `dies_at` counts, from 1, every opening for writing,
flush to the disk, rename, removal and new folder below a root. A flush it dies at leaves half of what was written.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate")
_WRITES = os.O_WRONLY | os.O_RDWR


class _Changes:
    """Counts the changes that this process makes to files below a root, and dies at one of them."""

    def __init__(self, root: str, dies_at: int) -> None:
        self.count = 0
        self._root = root
        self._dies_at = dies_at
        self._fsync = os.fsync
        os.fsync = self._flush
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in _CHANGES or (event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES):
            self._change(arguments[0])

    def _flush(self, descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        self._change(path, lambda: os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2))
        self._fsync(descriptor)

    def _change(self, path: Any, last_act: Callable[[], object] = lambda: None) -> None:
        if isinstance(path, int):
            return
        text = os.fsdecode(path)
        if text.startswith("/") and not text.startswith(self._root):
            return
        self.count += 1
        if self.count == self._dies_at:
            self._dies_at = 0
            last_act()
            os.kill(os.getpid(), signal.SIGKILL)
            signal.pause()  # another thread may have to leave the kernel first


def _pass_for(command: list[str]) -> None:
    """Be listed under this command line: a worker is known by it."""
    told_of_it = Path("/proc/self/stat").read_text(encoding="ascii")
    start, end = (int(field) for field in told_of_it.rpartition(")")[2].split()[45:47])
    told = b"".join(os.fsencode(word) + b"\0" for word in command)
    assert len(told) <= end - start, "the padding is too short"
    ctypes.memset(start, 0, end - start)
    ctypes.memmove(start, told, len(told))


def _child(call: dict[str, Any], answer: int) -> None:
    os.setsid()
    log = os.open(call["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, source in ((0, nothing), (1, log), (2, log)):
        os.dup2(source, descriptor)
    _pass_for(["python", "-m", *call["command"]])
    changes = _Changes(call["root"], call["dies_at"])
    module, _, name = call["function"].partition(":")
    code = getattr(importlib.import_module(module), name)(*call["arguments"])
    os.write(answer, b"%d" % changes.count)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def _fork(call: dict[str, Any], tell: Callable[[object], None]) -> None:
    readable, writable = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(readable)
        try:
            _child(call, writable)
        finally:
            sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
            os._exit(1)
    os.close(writable)
    tell(pid)
    with os.fdopen(readable) as pipe:
        counted = pipe.read()
    tell([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), int(counted or 0)])


def import_ahead(modules: str) -> None:
    """So that forks have it: a comma list of `module` or `module:name`."""
    for told in modules.split(","):
        module, _, name = told.partition(":")
        getattr(importlib.import_module(module), name or "__name__")


def main(modules: str) -> None:
    sys.modules["peft"] = None  # type: ignore[assignment]  # as in every worker
    import_ahead(modules)

    def tell(what: object) -> None:
        print(json.dumps(what), flush=True)

    tell("ready")
    for line in sys.stdin:
        _fork(json.loads(line), tell)


if __name__ == "__main__":
    main(sys.argv[1])
