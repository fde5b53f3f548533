"""Small JSON files that must outlive whatever happens to them: sealed, written atomically, damaged ones set aside.

<name>.before     what was there before the last writing, where the writer keeps it
<name>.damaged    what could not be read
"""

from __future__ import annotations

import logging
import threading
from contextlib import suppress
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from lora_train.core.files import DAMAGED_JSON, copy, replace, write_bytes
from lora_train.core.sealed import CHECK, BrokenSealError, is_broken, sealed_json, unsealed

Struct = TypeVar("Struct", bound=msgspec.Struct)
Damage = Literal["", "changed", "set aside"]

_rescuing = threading.Lock()
"""Several readers may find a file damaged at once."""
_log = logging.getLogger(__name__)


def write_json(path: Path, content: msgspec.Struct, *, keeps_before: bool = False) -> None:
    """Write a struct as indented JSON with a check at its end (see `core.sealed`), atomically.

    Fields of the file that only a newer release knows stay in it. With `keeps_before` the file that is replaced stays
    as `<name>.before`, for `read_json`.
    """
    told = {**msgspec.to_builtins(content), **_unknown_fields(path, type(content))}
    if keeps_before:
        before = _before(path)
        with suppress(OSError):  # there is none yet, or a file system without links
            before.unlink(missing_ok=True)
            before.hardlink_to(path)
    write_bytes(path, sealed_json(told))


def _unknown_fields(path: Path, kind: type[msgspec.Struct]) -> dict[str, object]:
    """Also of a file that was changed by hand; a check that stands elsewhere than at its end is none."""
    try:
        content = path.read_bytes()
        with suppress(BrokenSealError):
            content = unsealed(content)
        found = msgspec.json.decode(content, type=dict[str, object])
    except (OSError, *DAMAGED_JSON):
        return {}
    known = {*kind.__struct_encode_fields__, CHECK}
    return {name: value for name, value in found.items() if name not in known}


def read_json(path: Path, kind: type[Struct], default: Struct, *, is_by_hand: bool = False) -> Struct:
    """The struct in a JSON file, or `default` where there is no file, or a damaged one.

    A damaged file is set aside as `<name>.damaged`: one broken file must not stop all the others, and a person may
    still find something in it. `<name>.before` then takes its place, if there is one; also where somebody deleted the
    file. `is_by_hand`: people may edit it, so a check that does not fit is no damage. Raises OSError when the file
    can't be read.
    """
    try:
        return _decoded(path, kind, is_by_hand=is_by_hand)
    except FileNotFoundError:
        with suppress(OSError, *DAMAGED_JSON):
            return _decoded(_before(path), kind, is_by_hand=is_by_hand)
        return default
    except DAMAGED_JSON:
        with _rescuing:
            return _rescued(path, kind, default, is_by_hand=is_by_hand)


def _rescued(path: Path, kind: type[Struct], default: Struct, *, is_by_hand: bool) -> Struct:
    """Set a damaged file aside, unless that was done meanwhile. At no time is there no file, if there is another one to
    take its place.
    """
    aside, before = _aside(path), _before(path)
    try:
        return _decoded(path, kind, is_by_hand=is_by_hand)
    except FileNotFoundError:
        return default
    except DAMAGED_JSON as error:
        _log.warning("%s can't be read (%s); it is set aside as %s.", path, error, aside.name)
    found: Struct | None = None
    with suppress(OSError, *DAMAGED_JSON):
        found = _decoded(before, kind, is_by_hand=is_by_hand)
    with suppress(OSError):
        if found is None:
            replace(path, aside)
        else:
            copy(path, aside)
            replace(before, path)
    return default if found is None else found


def damage_of(path: Path) -> Damage:
    """What became of a JSON file without us."""
    with suppress(OSError):
        if is_broken(path.read_bytes()):
            return "changed"
    return "set aside" if _aside(path).exists() else ""


def _decoded(path: Path, kind: type[Struct], *, is_by_hand: bool) -> Struct:
    content = path.read_bytes()
    try:
        return msgspec.json.decode(unsealed(content), type=kind)
    except BrokenSealError:
        if not is_by_hand:
            raise
        return msgspec.json.decode(content, type=kind)


def _before(path: Path) -> Path:
    return path.with_name(f"{path.name}.before")


def _aside(path: Path) -> Path:
    return path.with_name(f"{path.name}.damaged")
