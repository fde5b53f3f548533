"""Reads the files of a folder as model files, in a process of its own that notes whatever it does beside reading.

    python watched_reader.py FOLDER     (-> one line of JSON: what was noted, by file, and how many were refused)

The hook of PEP 578 hears of every file that is opened for writing, every process, connection and evaluation; it can't
be taken off again.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from lora_train.core.errors import TrainToolsError
from lora_train.core.inspection import describe, inspect_file

HARMLESS = frozenset(
    {
        *("open", "os.listdir", "os.scandir", "object.__getattr__", "object.__setattr__", "object.__delattr__"),
        *("code.__new__", "sys._getframe", "marshal.loads", "gc.get_objects", "cpython._PySys_ClearAuditHooks"),
        *("builtins.id", "sys.unraisablehook", "glob.glob", "glob.glob/2", "pathlib.Path.glob"),
    }
)
"""What reading needs. `import`, `compile` and `exec` are not among them: everything was imported before."""

noted: list[str] = []
is_watching = False


def note(event: str, arguments: tuple[Any, ...]) -> None:
    if not is_watching:
        return
    if event == "open":
        flags = arguments[2] if isinstance(arguments[2], int) else 0
        is_written = isinstance(arguments[1], str) and any(sign in arguments[1] for sign in "wax+")
        if is_written or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
            noted.append(f"open for writing: {arguments[0]!r}")
    elif event not in HARMLESS:
        noted.append(f"{event} {arguments!r}"[:200])


def main(folder: Path) -> None:
    global is_watching
    paths = sorted(folder.iterdir())
    warm_up = [path for path in paths if path.name.startswith("warm-up")]
    for path in warm_up:
        look_at(path)
    sys.addaudithook(note)
    found: dict[str, list[str]] = {}
    refused = 0
    modules = set(sys.modules)
    for path in paths:
        noted.clear()
        is_watching = True
        is_refused = look_at(path)
        is_watching = False
        refused += is_refused
        if noted:
            found[path.name] = list(noted)
    print(
        json.dumps({"found": found, "refused": refused, "files": len(paths), "new": sorted(set(sys.modules) - modules)})
    )


def look_at(path: Path) -> bool:
    try:
        describe(inspect_file(path, verify_hash=True))
    except TrainToolsError:
        return True
    return False


if __name__ == "__main__":
    main(Path(sys.argv[1]))
