"""The files of a captioner's folder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from lora_train.core.errors import ModelError


def require_files(folder: Path, names: Sequence[str], what: str) -> None:
    """Raises ModelError where the folder or one of the files that make it `what` is missing."""
    if not folder.is_dir():
        raise ModelError(f"{folder} does not exist, or is no folder.", "Choose the folder of the captioning model.")
    for name in names:
        if not (folder / name).is_file():
            raise ModelError(f"{folder} is not {what}: it has no {name}.", "Choose the folder of the captioning model.")


def fingerprint_of(folder: Path, values: Sequence[object]) -> str:
    """Another text where a file of the model (name, size, time of change) or one of the values is another."""
    told = [(path.name, path.stat()) for path in sorted(folder.iterdir()) if path.is_file()]
    files = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in told if not name.startswith(".")]
    return hashlib.blake2b(repr((files, values)).encode(), digest_size=16).hexdigest()
