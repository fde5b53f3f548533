"""Settings as controls: every kind there and back, and nothing left out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio")

from lora_train.app import App
from lora_train.core.config import TrainSettings
from lora_train.core.dataset_settings import DatasetSettings
from lora_train.core.host import BaseModelChoice, NoHost
from lora_train.core.settings import check_settings, setting_fields
from lora_train.core.workspace import Workspace
from lora_train.ui.form import SettingControl, label_of, labels, setting_control
from lora_train.ui.panels.train import FIRST, GROUPS, BaseModelControl

pytestmark = pytest.mark.compat

TRAIN = {field.name: field for field in setting_fields(TrainSettings)}
OTHERS = [
    ("learning_rate", 3e-05, "0.00003"),
    ("learning_rate", 0.0, "0"),
    ("upscale_limit", 2.0, "2"),
    ("rank", 128, 128),
    ("train_text_encoder", False, False),
    ("optimizer", "Lion", "Lion"),
    ("max_tokens", 225, "225"),
    ("trigger_word", "sks 猫", "sks 猫"),
    ("preview_prompts", ("a cat, sitting", "日本の猫"), "a cat, sitting\n日本の猫"),
    ("preview_weights", (0.6, 0.8, 1.0), "0.6, 0.8, 1"),
]


@pytest.mark.parametrize(("name", "value", "shown"), OTHERS)
def test_what_is_shown_means_the_same(name: str, value: Any, shown: Any) -> None:
    control = SettingControl("train", TRAIN[name], None)
    assert control.shown(value) == shown
    settings, problems = check_settings({name: control.meant(control.shown(value))}, TrainSettings())
    assert (getattr(settings, name), problems) == (value, [])


@pytest.mark.parametrize("schema", [TrainSettings, DatasetSettings])
def test_every_default_survives_its_control(schema: Any) -> None:
    for field in setting_fields(schema):
        control = SettingControl("train", field, None)
        settings, problems = check_settings({field.name: control.meant(control.shown(field.default))}, schema())
        assert (getattr(settings, field.name), problems) == (field.default, [])


def test_numbers_of_gradio_3_are_whole_again() -> None:
    assert SettingControl("train", TRAIN["rank"], None).meant(16.0) == 16


@pytest.mark.parametrize(("name", "given"), [("rank", None), ("rank", 2.5), ("learning_rate", "0.00o1")])
def test_nonsense_is_told_with_the_range(name: str, given: Any) -> None:
    control = SettingControl("train", TRAIN[name], None)
    settings, problems = check_settings({name: control.meant(given)}, TrainSettings())
    assert settings == TrainSettings()
    assert len(problems) == 1
    assert TRAIN[name].limits in problems[0]


def test_every_setting_stands_on_the_page_once() -> None:
    placed = [name for row in FIRST for name in row] + [name for *_, rows in GROUPS for row in rows for name in row]
    assert Counter([*placed, "base_model", "repeats", "aimed_steps"]) == Counter(list(TRAIN))


def test_a_control_has_label_help_and_id() -> None:
    component = setting_control(TRAIN["learning_rate"], "train", panel="train").component
    assert component.label == "Learning rate"
    assert component.info == TRAIN["learning_rate"].help
    assert component.elem_id == "train_tools_train_learning_rate"
    assert component.value == "0.0001"
    assert component.do_not_save_to_config


def test_two_of_a_name_are_told_apart() -> None:
    found = labels([("Cat", "Cat"), ("Cat", "Cat-2"), ("Dog", "Dog")])
    assert found == {"Cat": "Cat", "Cat (Cat-2)": "Cat-2", "Dog": "Dog"}
    assert label_of(found, "Cat-2") == "Cat (Cat-2)"
    assert label_of(found, "gone") is None


class ModelHost(NoHost):
    def __init__(self, *, takes_paths: bool) -> None:
        self._takes_paths = takes_paths

    def base_models(self) -> list[BaseModelChoice]:
        return [BaseModelChoice("anime/日本.safetensors", "/models/anime/日本.safetensors")]

    def takes_paths(self) -> bool:
        return self._takes_paths


def base_model_control(tmp_path: Path, *, takes_paths: bool) -> BaseModelControl:
    app = App(Workspace(tmp_path), ModelHost(takes_paths=takes_paths))
    return BaseModelControl("train", TRAIN["base_model"], None, app)


def test_a_base_model_is_shown_by_name_and_saved_by_path(tmp_path: Path) -> None:
    control = base_model_control(tmp_path, takes_paths=True)
    assert control.shown("/models/anime/日本.safetensors") == "anime/日本.safetensors"
    assert control.meant("anime/日本.safetensors") == "/models/anime/日本.safetensors"
    assert control.meant("demo") == "demo"
    assert control.meant(None) == ""
    assert control.meant(" /elsewhere/x.ckpt ") == "/elsewhere/x.ckpt"


def test_a_base_model_that_is_gone_stays_chosen(tmp_path: Path) -> None:
    update = base_model_control(tmp_path, takes_paths=True).update("/models/gone.ckpt")
    assert update["value"] == "/models/gone.ckpt"
    assert "/models/gone.ckpt" in update["choices"]


def test_a_page_that_is_open_to_others_takes_no_paths(tmp_path: Path) -> None:
    assert base_model_control(tmp_path, takes_paths=False).meant("/etc/passwd") == ""
