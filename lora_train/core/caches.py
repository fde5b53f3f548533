"""Files that only save time: they may be missing, damaged or of another release, and are then made anew."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from lora_train import __version__
from lora_train.core.files import write_bytes

Kept = TypeVar("Kept")

_DIGEST_BYTES = 16


def write_cache(path: Path, content: object) -> None:
    """Write it as JSON behind a digest. Where that is impossible (a full disk, no rights) it is left; also where the
    folder is gone: what was deleted must not come back.
    """
    if not path.parent.is_dir():
        return
    encoded = msgspec.json.encode(content)
    with suppress(OSError):
        write_bytes(path, digest_of(encoded).encode("ascii") + b"\n" + encoded)


def read_cache(path: Path, kind: type[Kept]) -> Kept | None:
    """What was written; None where there is nothing, or not exactly that, or another release wrote it."""
    try:
        digest, _, encoded = path.read_bytes().partition(b"\n")
        if digest.decode("ascii") != digest_of(encoded):
            return None
        return msgspec.json.decode(encoded, type=kind)
    except (OSError, ValueError):  # those of msgspec and of texts are ValueErrors
        return None


def digest_of(content: bytes) -> str:
    """Of the content and our release."""
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES, key=__version__.encode("ascii")).hexdigest()
