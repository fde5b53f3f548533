"""The trigger words of LoRA files."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from lora_train.core.errors import ModelError
from lora_train.core.tensorfiles import read_tensor_file


def trigger_of(lora: Path) -> str:
    """The trigger words in a LoRA's file; empty where it has none, or is damaged. Raises OSError where it is gone."""
    return _trigger_of(lora, lora.stat().st_mtime_ns)


@lru_cache(maxsize=10_000)
def _trigger_of(lora: Path, mtime_ns: int) -> str:  # noqa: ARG001  (a new time is a new file)
    try:
        return read_tensor_file(lora).metadata.get("modelspec.trigger_phrase", "")
    except ModelError:  # damaged: the others are shown all the same
        return ""
