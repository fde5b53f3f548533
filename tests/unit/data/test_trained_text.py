"""What a picture is trained with, held against the plan that the loop feeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tokenizers")

from lora_train.core.config import TrainSettings
from lora_train.data.dataset import Dataset, Picture
from lora_train.data.epochs import EpochPlanner
from lora_train.data.plan import make_planner, place_in_buckets
from lora_train.data.tokens import chunks, token_count
from lora_train.data.trained_text import plain_texts, trained_text

CAPTIONS = ["a, b, c, d", "", "x, sks, y", "a photo of sks dog, sitting", ", ".join(["a very big red cat"] * 30)]


def dataset(captions: list[str] = CAPTIONS, regularisation: int = 2, repeats: int = 3) -> Dataset:
    """Pictures of several sizes, the last ones for regularisation."""
    pictures = [
        Picture(
            path=f"3_cat/{number}.png",
            folder="3_cat",
            concept="",
            repeats=repeats,
            is_regularisation=False,
            caption=caption,
            width_px=512 + 128 * (number % 3),
            height_px=512,
            digest="",
        )
        for number, caption in enumerate(captions)
    ]
    pictures += [
        Picture(f"reg/1_dog/{number}.png", "reg/1_dog", "dog", 1, True, "" if number else "a, b", 512, 512, "")
        for number in range(regularisation)
    ]
    return Dataset(Path("processed"), tuple(pictures), ())


def planned(found: Dataset, **values: Any) -> tuple[TrainSettings, EpochPlanner]:
    settings = TrainSettings(**values)
    buckets = place_in_buckets(found, settings, resolution_px=512, step_px=64)
    return settings, make_planner(found, buckets, settings, "My Cat")


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"trigger_word": "sks", "shuffle_captions": True, "keep_tags": 1, "caption_dropout": 0.4, "flip": True},
        {"trigger_word": "sks", "shuffle_captions": True, "batch_size": 3, "seed": 7, "max_tokens": 75},
    ],
)
def test_it_is_the_text_of_the_plan(values: dict[str, Any]) -> None:
    found = dataset()
    settings, planner = planned(found, **values)
    for epoch in (1, 2, 5):
        fed = [view for batch in planner.batches(epoch - 1) for view in batch.views]
        told = {picture.path: trained_text(found, planner, settings, picture.path, epoch) for picture in found.pictures}
        views = sorted(
            (view.position, file, view.text, view.is_flipped) for file, text in told.items() for view in text.views
        )
        assert views == [(view.position, found.pictures[view.source].path, view.caption, view.flip) for view in fed]
        for text in told.values():
            assert text.view_count == len(text.views)
            assert text.without_caption == sum(not view.text for view in text.views)
            for view in text.views:
                assert view.chunks == chunks(view.text, settings.max_tokens)
                if view.text:
                    head = f"{text.fixed}, " if text.fixed and text.shuffled else text.fixed
                    assert view.text.startswith(head)
                    rest = view.text[len(head) :]
                    assert sorted(rest.split(", ") if rest else []) == sorted(text.shuffled)


def test_fixed_and_shuffled() -> None:
    found = dataset()
    settings, planner = planned(found, trigger_word="sks", shuffle_captions=True, keep_tags=1)

    def parts(file: str) -> tuple[str, list[str]]:
        told = trained_text(found, planner, settings, file, 1)
        return told.fixed, told.shuffled

    assert parts("3_cat/0.png") == ("sks, a", ["b", "c", "d"])
    assert parts("3_cat/1.png") == ("sks, My Cat", [])
    assert parts("3_cat/2.png") == ("sks, x", ["y"])
    assert parts("3_cat/3.png") == ("a photo of sks dog", ["sitting"])
    assert parts("reg/1_dog/0.png") == ("a", ["b"])
    assert parts("reg/1_dog/1.png") == ("dog", [])
    settings, planner = planned(found)
    assert parts("3_cat/0.png") == ("a, b, c, d", [])


def test_plain_texts_are_what_is_trained_without_chance() -> None:
    found = dataset()
    settings, planner = planned(found, trigger_word="sks")
    fed = {view.source: view.caption for batch in planner.batches(0) for view in batch.views}
    assert plain_texts(found, settings, "My Cat") == [fed[index] for index in range(len(found.pictures))]


def test_a_long_caption_is_cut() -> None:
    found = dataset()
    settings, planner = planned(found, max_tokens=150)
    told = trained_text(found, planner, settings, "3_cat/4.png", 1)
    assert told.plain.token_count == token_count(CAPTIONS[4]) == 179
    assert [len(chunk.tokens) for chunk in told.plain.chunks] == [72, 72]
    assert told.plain.cut.text.startswith("a very big")
    assert len(told.plain.cut.tokens) == 35


def test_many_views_are_counted_and_some_are_shown() -> None:
    found = dataset(["a"], regularisation=0, repeats=250)
    settings, planner = planned(found, caption_dropout=1)
    told = trained_text(found, planner, settings, "3_cat/0.png", 1)
    assert (told.view_count, told.without_caption, len(told.views), told.dropout) == (250, 250, 100, 1)
    with pytest.raises(KeyError):
        trained_text(found, planner, settings, "3_cat/9.png", 1)
