"""What the command line needs beside the page: projects and pictures by name, settings without their panel."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

import pytest

from lora_train.app.captions import AllPictures, FilteredPictures
from lora_train.core.errors import ConfigError, ModelError, WorkspaceError

if TYPE_CHECKING:
    from tests.unit.app.conftest import Desk


def test_a_project_is_found_by_the_name_as_typed(desk: Desk) -> None:
    projects = desk.app.projects
    with pytest.raises(WorkspaceError) as told:
        projects.find("a/ボ", "v1")
    assert told.value.hint == "There is none yet."
    made = projects.open("a/ボ", "v?")
    assert (made.project, made.version) == ("a_ボ", "v_")
    decomposed = unicodedata.normalize("NFD", " a/ボ ")
    assert projects.find(decomposed, "v?") == projects.open(decomposed, "v?") == made
    with pytest.raises(WorkspaceError, match="has no version 'v_'"):
        projects.find("a/ボ", "v_")
    with pytest.raises(WorkspaceError, match="can't be a name"):
        projects.open("new", "???")
    assert [project.name for project in projects.list()] == ["a/ボ"], "nothing half-made"


def test_settings_are_changed_by_name_all_or_none(desk: Desk) -> None:
    ids = desk.version()
    desk.app.settings.change(*ids, {"width_px": "640", "wd14_threshold": "0.5"})
    assert desk.app.settings.dataset(*ids)["width_px"] == 640
    assert desk.app.settings.caption(*ids)["wd14_threshold"] == 0.5
    with pytest.raises(ConfigError) as told:
        desk.app.settings.change(*ids, {"flip": "true", "epochs": "3", "blip_min_length": "60", "height_px": "100"})
    assert told.value.problems == [
        "epochs: there is no setting of this name",
        "height_px (Height): 100 is not a multiple of 8",
        "blip_min_length (Caption min length): 60 is more than Caption max length, 48",
    ]
    assert desk.app.settings.dataset(*ids)["flip"] is False


def test_pictures_are_named_by_path_or_file_name(desk: Desk) -> None:
    desk.trained("1_cat/ボ.png", "1_cat/b.png", "2_dog/b.png")
    ids = desk.version()
    named = desk.app.datasets.named
    decomposed = unicodedata.normalize("NFD", "ボ.png")
    assert named(*ids, [decomposed, "./1_cat/b.png", "2_dog\\b.png"]) == ["1_cat/ボ.png", "1_cat/b.png", "2_dog/b.png"]
    with pytest.raises(WorkspaceError) as several:
        named(*ids, ["b.png"])
    assert several.value.hint == "Give the folder too: 1_cat/b.png, 2_dog/b.png."
    with pytest.raises(WorkspaceError, match="There is no picture"):
        named(*ids, ["../b.png"])
    assert len(desk.app.captions.in_scope(*ids, AllPictures())) == 3
    assert desk.app.captions.in_scope(*ids, FilteredPictures("nothing")) == []


def test_models_that_are_ticked_and_absent(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(desk.root))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    ids = desk.version()

    def absent(*ids: str) -> list[str]:
        return [model.name for model in desk.app.captioning.absent_models(*ids)]

    monkeypatch.setattr("lora_train.app.captioning.missing_packages", lambda _kind: ())
    assert absent(*ids) == []
    desk.app.settings.change(*ids, {"use_wd14": True, "use_blip": True})
    assert absent(*ids) == ["wd-vit-tagger-v3", "blip-image-captioning-base"]
    desk.app.settings.change(*ids, {"blip_model": "own"})
    assert absent(*ids) == ["wd-vit-tagger-v3"]
    desk.app.settings.change(*ids, {"blip_model": "microsoft/git-base"})
    assert absent(*ids) == ["wd-vit-tagger-v3", "microsoft/git-base"]
    monkeypatch.setattr("lora_train.app.captioning.missing_packages", lambda _kind: ("onnxruntime",))
    with pytest.raises(ModelError, match="needs onnxruntime") as told:
        absent(*ids)
    assert "pip install onnxruntime" in told.value.hint
