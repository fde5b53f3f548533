"""Several captioners as one: a sentence, then tags; loaded when needed, freed at the end, known by a fingerprint."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lora_train.caption.together import Together, open_captioner
from lora_train.core.caption_settings import CaptionSettings
from lora_train.core.errors import DatasetError
from lora_train.core.specs import CaptionPlan


class Part:
    """Says the same of every picture, and remembers what was done with it."""

    def __init__(self, text: str) -> None:
        self.fingerprint = f"says {text}"
        self.told: list[str] = []
        self._text = text

    @contextmanager
    def loaded(self) -> Iterator[Callable[[Image.Image], str]]:
        self.told.append("loaded")
        try:
            yield self._describe
        finally:
            self.told.append("freed")

    def _describe(self, picture: Image.Image) -> str:
        self.told.append(f"{picture.mode} {picture.size}")
        return self._text


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path in paths:
        Image.new("L", (8, 9)).save(path)
    return paths


def test_a_sentence_then_tags(pictures: list[Path]) -> None:
    assert list(Together([Part("a cat"), Part("red, solo")]).captions(pictures)) == ["a cat, red, solo"] * 3
    assert list(Together([Part("a cat"), Part("")]).captions(pictures[:1])) == ["a cat"]
    assert list(Together([Part(""), Part("")]).captions(pictures[:1])) == [""]


def test_models_are_loaded_at_the_first_picture_once_and_freed_at_the_end(pictures: list[Path]) -> None:
    part = Part("a cat")
    assert list(Together([part]).captions([])) == []
    assert part.told == []
    running = Together([part]).captions(pictures)
    assert part.told == []
    next(running)
    assert part.told == ["loaded", "RGB (8, 9)"]
    assert list(running) == ["a cat"] * 2
    assert part.told == ["loaded", *["RGB (8, 9)"] * 3, "freed"]


def test_models_are_freed_when_nobody_asks_on_and_after_an_error(pictures: list[Path]) -> None:
    left, failed = Part("a cat"), Part("a cat")
    running = Together([left]).captions(pictures)
    next(running)
    del running
    assert left.told[-1] == "freed"
    pictures[1].write_bytes(b"a text")
    running = Together([failed]).captions(pictures)
    next(running)
    with pytest.raises(DatasetError, match=r"1\.png"):
        next(running)
    assert failed.told[-1] == "freed"


def test_no_model_no_captioner() -> None:
    assert open_captioner(CaptionPlan(host=("blip", "deepbooru"))) is None


@pytest.fixture
def tagger(tmp_path: Path) -> Path:
    folder = tmp_path / "tagger"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"weights")
    (folder / "selected_tags.csv").write_bytes(b"tags")
    return folder


def fingerprint(tagger: Path, **values: Any) -> str:
    captioner = open_captioner(CaptionPlan(wd14=str(tagger), settings=CaptionSettings(**values)))
    assert captioner is not None
    return captioner.fingerprint


def test_the_fingerprint_tells_settings_that_matter(tagger: Path) -> None:
    same = fingerprint(tagger)
    for values in ({"policy": "append"}, {"device": "cpu"}, {"blip_prompt": "a photo of"}, {"use_wd14": True}):
        assert fingerprint(tagger, **values) == same
    others = [
        *({"wd14_threshold": 0.5}, {"wd14_character_threshold": 0.5}, {"wd14_rating": True}, {"max_tags": 9}),
        *({"underscores_to_blanks": False}, {"excluded_tags": "solo"}, {"sort_by_score": False}),
    ]
    assert len({same, *(fingerprint(tagger, **values) for values in others)}) == 1 + len(others)


def test_the_fingerprint_tells_the_model(tagger: Path) -> None:
    found = {fingerprint(tagger)}
    model = tagger / "model.onnx"
    os.utime(model, (1, 1))
    found.add(fingerprint(tagger))
    model.write_bytes(b"other weights")
    os.utime(model, (1, 1))
    found.add(fingerprint(tagger))
    assert len(found) == 3
    (tagger / ".hidden").touch()
    assert fingerprint(tagger) in found
