"""What is right of a person's settings is taken, and everything that is wrong is told in words."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from lora_train.core.config import TrainSettings
from lora_train.core.dataset_settings import DatasetSettings
from lora_train.core.settings import SettingField, check_settings, setting_fields

FIELDS = {**{f.name: f for f in setting_fields()}, **{f.name: f for f in setting_fields(DatasetSettings)}}


@pytest.mark.parametrize("field", setting_fields(DatasetSettings), ids=lambda field: field.name)
def test_dataset_settings_are_described(field: SettingField) -> None:
    assert field.label[0].isupper()
    assert field.help.endswith(".")
    assert field.default == getattr(DatasetSettings(), field.name)
    assert bool(field.choices) == (field.kind == "choice")


def test_labels_of_the_page_are_unique() -> None:
    """All of them stand on one page; hosts tell widgets by label."""
    labels = [field.label for field in (*setting_fields(), *setting_fields(DatasetSettings))]
    assert len(set(labels)) == len(labels)


def test_labels_of_the_tutorial() -> None:
    """A reader of the original's tutorial finds them."""
    labels = {
        "base_model": "Train base model",
        "clip_skip": "Clip skip",
        "save_every_epochs": "Save every n epochs",
        "batch_size": "Batch size",
        "epochs": "Number of epochs",
        "learning_rate": "Learning rate",
        "optimizer": "Optimizer type",
        "generate_previews": "Generate all checkpoint preview after train finished",
        "width_px": "Width",
        "height_px": "Height",
        "flip": "Create flipped copies",
        "caption_action": "Existing Caption txt Action",
    }
    assert {name: FIELDS[name].label for name in labels} == labels


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"rank": 3.0}, {"rank": 3}),  # a number field of gradio
        ({"rank": "3", "learning_rate": "4e-3"}, {"rank": 3, "learning_rate": 4e-3}),
        ({"alpha": 3}, {"alpha": 3.0}),
        ({"flip": "true", "train_text_encoder": False}, {"flip": True, "train_text_encoder": False}),
        ({"preview_weights": "0, 0.6,1"}, {"preview_weights": (0.0, 0.6, 1.0)}),
        ({"preview_weights": [0, 1]}, {"preview_weights": (0.0, 1.0)}),
        ({"preview_prompts": "猫\n\n  a dog \n"}, {"preview_prompts": ("猫", "a dog")}),
        ({"max_tokens": 225}, {"max_tokens": 225}),
        ({"trigger_word": "か゛"}, {"trigger_word": "か゛"}),
    ],
)
def test_as_typed_or_as_a_widget_gives_it(values: dict[str, Any], expected: dict[str, Any]) -> None:
    settings, problems = check_settings(values, TrainSettings())
    assert problems == []
    assert settings == msgspec.structs.replace(TrainSettings(), **expected)
    assert all(type(getattr(settings, name)) is type(value) for name, value in expected.items())


@pytest.mark.parametrize(
    ("name", "value", "limits"),
    [
        ("rank", 3.5, "a whole number from 1 to 1024"),
        ("rank", 0, "a whole number from 1 to 1024"),
        ("rank", "", "a whole number from 1 to 1024"),
        ("rank", None, "a whole number from 1 to 1024"),
        ("rank", True, "a whole number from 1 to 1024"),
        ("learning_rate", "0,1", "a number from 0 to 10"),
        ("learning_rate", float("nan"), "a number from 0 to 10"),
        ("learning_rate", "inf", "a number from 0 to 10"),
        ("alpha", 0, "a number more than 0 up to 1024"),
        ("optimizer", "Magic", "one of " + ", ".join(FIELDS["optimizer"].choices)),
        ("train_text_encoder", "perhaps", "true or false"),
        ("trigger_word", 3, "text"),
        ("preview_weights", "", "a comma list of numbers from -10 to 10, at least one"),
        ("preview_weights", "1, one", "a comma list of numbers from -10 to 10, at least one"),
        ("preview_weights", "nan", "a comma list of numbers from -10 to 10, at least one"),
    ],
)
def test_wrong_values_are_told_and_not_taken(name: str, value: Any, limits: str) -> None:
    base = TrainSettings(rank=7, learning_rate=0.5, alpha=3, preview_weights=(0.5,))
    settings, problems = check_settings({name: value, "epochs": 3}, base)
    assert settings == msgspec.structs.replace(base, epochs=3), "what is right is taken all the same"
    several = "; for several, use Sweep" if value == "0,1" else ""
    wrong = f"{name} ({FIELDS[name].label}): {value!r} is not {limits}{several}"
    assert problems == [f"{FIELDS[name].label}: type {limits}." if value == "" else wrong]


def test_everything_that_is_wrong_at_once() -> None:
    _, problems = check_settings({"rank": 0, "epochs": "x", "colour": "red", "resolution": 500}, TrainSettings())
    assert [problem.split(" ")[0].rstrip(":") for problem in problems] == ["rank", "epochs", "colour", "resolution"]


@pytest.mark.parametrize("name", ["width_px", "height_px"])
@pytest.mark.parametrize(
    ("size", "word"),
    [(63, "is not a whole"), (2049, "is not a whole"), (500, "multiple of 8"), (64, ""), (2048, "")],
)
def test_sizes_of_pictures(name: str, size: int, word: str) -> None:
    settings, problems = check_settings({name: size}, DatasetSettings())
    assert [word in problem and str(size) in problem for problem in problems] == ([True] if word else [])
    is_taken = word != "is not a whole"  # a wrong combination is what the person wants to go on from
    assert getattr(settings, name) == (size if is_taken else 512)
