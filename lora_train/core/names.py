"""Names as people type them, and the file names that are made of them: in any script, legal on every system."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable

from lora_train.core.errors import WorkspaceError

_STEERING = {*map(chr, (0x61C, 0x200E, 0x200F, *range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)))}
"""C1 controls, and what turns the direction of text around: a name must not show as another."""

_INVISIBLE = ("Cc", "Cf", "Zs")

NAME_LIMIT_BYTES = 96
"""UTF-8 bytes of a folder name: project, version, run and step together must fit into 255."""

_LONGEST_NAME = 500
"""Characters of a name as typed."""

_FORBIDDEN = re.compile(r"[<>:\"/\\|?*,='`{}\[\]()\x00-\x1f\x7f]")
"""What Windows forbids in a file name, and what ends or bends a name inside `<lora:NAME:1>` in a prompt."""

_RESERVED = {"con", "prn", "aux", "nul", "conin$", "conout$", "none", "addams"} | {
    f"{port}{digit}" for port in ("com", "lpt") for digit in "0123456789¹²³"
}
"""Device names on Windows, and the two names that Automatic1111 never resolves as a LoRA."""


def typed(name: str) -> str:
    """A name as its person typed it; macOS hands over decomposed letters. Halves of surrogate pairs are no letters.

    Raises WorkspaceError for a name that is too long.
    """
    if len(name) > _LONGEST_NAME:
        raise WorkspaceError(f"A name of {len(name):,} characters is too long.", f"The limit is {_LONGEST_NAME}.")
    text = name.encode("utf-8", errors="ignore").decode("utf-8")
    return unicodedata.normalize("NFC", text.strip())


def folder_name(name: str) -> str:
    """A folder name in the person's own script: NFC, without what Windows or the prompt syntax forbids.

    Raises WorkspaceError when nothing is left of it.
    """
    if not name.strip():
        raise WorkspaceError("Type a name first.")
    text = "".join(" " if unicodedata.category(char) in ("Zl", "Zp", "Zs") else char for char in name)
    text = "".join(char for char in text if unicodedata.category(char) != "Cs" and char not in _STEERING)
    text = unicodedata.normalize("NFC", text)  # at last: what was between a letter and its accent is gone
    text = _FORBIDDEN.sub("_", text).strip(" .")
    if all(char == "_" or unicodedata.category(char) in _INVISIBLE for char in text):
        raise WorkspaceError(
            f"{name!r} can't be a name: no letter, digit or sign that a file name may have is left of it.",
            "Type at least one letter or digit, in any script.",
        )
    head, dot, tail = text.partition(".")
    if is_reserved(text):
        text = f"{head.rstrip()}_{dot}{tail}"
    return _shorten(text)


def is_reserved(name: str) -> bool:
    """Whether Windows, which looks at what stands before the first dot, or a host takes the name for something else."""
    return name.partition(".")[0].strip().lower() in _RESERVED


def _shorten(text: str) -> str:
    """Cut at NAME_LIMIT_BYTES between characters; a hash keeps long names with equal beginnings apart."""
    raw = text.encode("utf-8")
    if len(raw) <= NAME_LIMIT_BYTES:
        return text
    mark = "~" + hashlib.blake2b(raw, digest_size=3).hexdigest()
    head = raw[: NAME_LIMIT_BYTES - len(mark)].decode("utf-8", errors="ignore")
    return head.rstrip(" .") + mark


def fold(name: str) -> str:
    """The form in which two names are the same file on some system."""
    return unicodedata.normalize("NFC", name).casefold()


def free_name(wanted: str, taken: Iterable[str]) -> str:
    """`wanted`, or `wanted-2`, `-3` ...: a name that is the same file as none of `taken` on any system."""
    folded = {fold(name) for name in taken}
    number, name = 1, wanted
    while fold(name) in folded:
        number += 1
        name = f"{wanted}-{number}"
    return name
