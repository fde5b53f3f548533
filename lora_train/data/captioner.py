"""What writes captions is to everybody who uses it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol


class Captioner(Protocol):
    """A model, or several whose captions are joined: a sentence first, then tags."""

    @property
    def fingerprint(self) -> str:
        """Another text, another caption of the same picture: it tells model and settings."""
        ...

    def captions(self, pictures: Iterable[Path]) -> Iterator[str]:
        """The caption of each picture, in order, as soon as it is there; on one line.

        Raises DatasetError for a picture that can't be read, ModelError when the model can't be used.
        """
        ...
