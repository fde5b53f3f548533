"""Settings of a version come back exactly as they were saved; what is wrong is told and not saved."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from lora_train.core.config import TrainSettings
from lora_train.core.dataset_settings import DatasetSettings
from lora_train.core.errors import WorkspaceError

if TYPE_CHECKING:
    from tests.unit.app.conftest import Desk

EVERYTHING: dict[str, Any] = {
    "base_model": "C:\\models\\ü 自作.safetensors",
    "epochs": 3,
    "learning_rate": 4e-3,
    "optimizer": "Lion",
    "generate_previews": False,
    "preview_prompts": ("猫, 'quoted'", "a dog"),
    "preview_weights": (0.0, 0.6, 1.0),
    "trigger_word": "自作",
    "min_snr_gamma": 0.0,
    "seed": 2**32 - 1,
    "max_tokens": 225,
}


def saved(desk: Desk) -> dict[str, Any]:
    path = desk.workspace.find_version("cat", "v1").path / "version.json"
    return json.loads(path.read_text(encoding="utf-8"))


def test_defaults_at_first(desk: Desk) -> None:
    desk.version()
    assert desk.app.settings.train("cat", "v1") == msgspec.structs.asdict(TrainSettings())
    assert desk.app.settings.dataset("cat", "v1") == msgspec.structs.asdict(DatasetSettings())
    assert desk.app.settings.save("cat", "v1") == []


def test_they_come_back_as_they_were(desk: Desk) -> None:
    desk.version()
    desk.version("cat", "v2")
    sizes: dict[str, Any] = {"width_px": 768, "height_px": 640, "flip": True, "caption_action": "append"}
    assert desk.app.settings.save("cat", "v1", train=EVERYTHING) == []
    assert desk.app.settings.save("cat", "v1", dataset=sizes) == []
    for app in (desk.app, desk.again()):
        assert app.settings.train("cat", "v1") == {**msgspec.structs.asdict(TrainSettings()), **EVERYTHING}
        assert app.settings.dataset("cat", "v1") == {**msgspec.structs.asdict(DatasetSettings()), **sizes}
    assert desk.app.settings.train("cat", "v2") == msgspec.structs.asdict(TrainSettings())


def test_as_they_are_changed(desk: Desk) -> None:
    desk.version()
    desk.app.settings.save("cat", "v1", train={"epochs": "7", "rank": 32.0})
    desk.app.settings.save("cat", "v1", train={"learning_rate": "1e-5", "preview_prompts": "a\nb"})
    changed = saved(desk)["train"]
    assert (changed["epochs"], changed["rank"], changed["learning_rate"]) == (7, 32, 1e-5)
    assert desk.app.settings.train("cat", "v1")["preview_prompts"] == ("a", "b")


def test_wrong_ones_are_told_and_not_saved(desk: Desk) -> None:
    desk.version()
    desk.app.settings.save("cat", "v1", train={"epochs": 5})
    problems = desk.app.settings.save(
        "cat", "v1", train={"epochs": 0, "rank": 8, "learning_rate": "fast"}, dataset={"width_px": 10, "flip": True}
    )
    assert problems == [
        "epochs (Number of epochs): 0 is not a whole number from 1 to 10000",
        "learning_rate (Learning rate): 'fast' is not a number from 0 to 10",
        "width_px (Width): 10 is not a whole number from 64 to 2048",
    ]
    train, dataset = desk.app.settings.train("cat", "v1"), desk.app.settings.dataset("cat", "v1")
    assert (train["epochs"], train["rank"], train["learning_rate"]) == (5, 8, 1e-4)
    assert (dataset["width_px"], dataset["flip"]) == (512, True)


def test_what_only_another_release_knows_is_left_out(desk: Desk) -> None:
    desk.version()
    with desk.workspace.find_version("cat", "v1").changing() as info:
        info.train = {"epochs": 3, "telepathy": True, "rank": "many", "optimizer": "Sophia"}
        info.dataset = {"flip": True, "zoom": 2}
    train = desk.app.settings.train("cat", "v1")
    assert (train["epochs"], train["rank"], train["optimizer"]) == (3, 16, "AdamW")
    assert "telepathy" not in train
    assert desk.app.settings.dataset("cat", "v1")["flip"] is True
    problems = desk.app.training.forecast("cat", "v1").problems
    assert not [problem for problem in problems if "telepathy" in problem]
    assert [problem.split(" ")[0] for problem in problems if "is not" in problem] == ["rank", "optimizer"]
    assert desk.app.settings.save("cat", "v1", train={"epochs": 4}) == []


def test_saving_at_the_same_time_loses_nothing(desk: Desk) -> None:
    """A page saves each field by itself, from several threads."""
    desk.version()
    values = {"epochs": 3, "rank": 4, "alpha": 5.0, "seed": 6, "batch_size": 7, "clip_skip": 2, "repeats": 9}
    with ThreadPoolExecutor(len(values)) as pool:
        list(pool.map(lambda item: desk.app.settings.save("cat", "v1", train=dict([item])), values.items()))
    train = desk.app.settings.train("cat", "v1")
    assert {name: train[name] for name in values} == values


def test_unknown_version(desk: Desk) -> None:
    for call in (
        lambda: desk.app.settings.train("cat", "v1"),
        lambda: desk.app.settings.dataset("", ""),
        lambda: desk.app.settings.save("../cat", "v1", train={"epochs": 1}),
    ):
        with pytest.raises(WorkspaceError, match="does not exist"):
            call()
