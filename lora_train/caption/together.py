"""The captioners of a plan as one: a sentence first, then tags."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Protocol

from PIL import Image

from lora_train.caption.blip import ImageToText
from lora_train.caption.wd14 import Wd14Tagger
from lora_train.core.specs import CaptionPlan
from lora_train.data.captioner import Captioner
from lora_train.data.images import open_picture


class Part(Protocol):
    """One model."""

    fingerprint: str

    def loaded(self) -> AbstractContextManager[Callable[[Image.Image], str]]:
        """What turns an RGB picture into a text on one line, for as long as the model is in memory."""
        ...


class Together:
    """A captioner of one model or several, whose texts are joined by ", ". Each run loads them at its first picture
    and frees them at its end.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        self.fingerprint = "+".join(part.fingerprint for part in parts)

    def captions(self, pictures: Iterable[Path]) -> Iterator[str]:
        with ExitStack() as opened:
            describers: list[Callable[[Image.Image], str]] = []
            for path in pictures:
                describers = describers or [opened.enter_context(part.loaded()) for part in self._parts]
                picture = open_picture(path)
                texts = [describe(picture) for describe in describers]
                yield ", ".join(text for text in texts if text)


def open_captioner(plan: CaptionPlan) -> Captioner | None:
    """The captioner of a plan; None where it names no model. What only a host has is not looked at.

    Raises ModelError for a folder that is missing or holds no such model.
    """
    parts: list[Part] = []
    if plan.blip:
        parts.append(ImageToText(Path(plan.blip), plan.settings))
    if plan.wd14:
        parts.append(Wd14Tagger(Path(plan.wd14), plan.settings))
    return Together(parts) if parts else None
