"""Presets are applied, taken back and offered anew; a person's own are kept, shared and never lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from lora_train.core.config import TrainSettings
from lora_train.core.errors import ConfigError, WorkspaceError
from lora_train.core.host import BaseModelChoice
from lora_train.core.preset_files import purpose
from lora_train.core.purposes import PURPOSES

if TYPE_CHECKING:
    from tests.unit.app.conftest import Desk

USUAL = msgspec.structs.asdict(TrainSettings())


def settings(desk: Desk) -> dict[str, Any]:
    return desk.app.settings.train(*desk.version())


def test_the_list(desk: Desk) -> None:
    entries = desk.app.presets.list()
    assert [entry.name for entry in entries] == [*PURPOSES]
    assert all(entry.about and not entry.is_own and not entry.problem for entry in entries)
    details = desk.app.presets.show("Character", "sdxl")
    assert (details.name, details.family_label) == ("character", "SDXL")
    assert {row.name: row.value for row in details.rows} == purpose("character").values("sdxl")
    assert all(row.why for row in details.rows)


@pytest.mark.parametrize("name", ["charakter", "", "../v1", "presets/x"])
def test_an_unknown_one(desk: Desk, name: str) -> None:
    desk.version()
    for ask in (
        desk.app.presets.show,
        desk.app.presets.file_path,
        lambda wrong: desk.app.presets.apply("cat", "v1", wrong),
    ):
        with pytest.raises(ConfigError, match=r"there is none called .*; there are: character, style"):
            ask(name)
    assert settings(desk) == USUAL


def test_applied_and_taken_back(desk: Desk) -> None:
    desk.version()
    desk.app.settings.save("cat", "v1", train={"rank": 4, "trigger_word": "猫", "epochs": 3})
    before = settings(desk)
    applied = desk.app.presets.apply("cat", "v1", "style")
    assert settings(desk) == {**before, **purpose("style").values("sd1")}
    assert {row.name for row in applied.changed} == {
        name for name, value in purpose("style").values("sd1").items() if before[name] != value
    }
    rank = next(row for row in applied.changed if row.name == "rank")
    assert (rank.label, rank.before, rank.value) == ("Net dim (rank)", 4, 32)
    assert rank.why == purpose("style").settings["rank"].why
    state = desk.again().presets.state("cat", "v1")
    assert (state.name, state.family, state.changed) == ("style", "Stable Diffusion 1.x", applied.changed)
    assert (state.offered, state.proposed) == ([], "")

    desk.app.presets.undo("cat", "v1")
    assert settings(desk) == before
    assert desk.app.presets.state("cat", "v1").name == ""
    with pytest.raises(WorkspaceError, match="nothing to take back"):
        desk.app.presets.undo("cat", "v1")


def test_what_was_changed_by_hand_since_stays(desk: Desk) -> None:
    desk.version()
    desk.app.presets.apply("cat", "v1", "style")
    desk.app.settings.save("cat", "v1", train={"rank": 64, "seed": 5})
    desk.app.presets.undo("cat", "v1")
    assert settings(desk) == {**USUAL, "rank": 64, "seed": 5}


def test_one_after_the_other_goes_back_one(desk: Desk) -> None:
    desk.version()
    desk.app.presets.apply("cat", "v1", "character")
    first = settings(desk)
    desk.app.presets.apply("cat", "v1", "style")
    desk.app.presets.undo("cat", "v1")
    assert settings(desk) == first


def test_another_family_is_offered_once_and_taken_back_as_one(desk: Desk) -> None:
    """The small model that ships has rates of its own, and gives them back."""
    desk.version()
    desk.app.presets.apply("cat", "v1", "character")
    desk.app.settings.save("cat", "v1", train={"base_model": "demo"})
    state = desk.app.presets.state("cat", "v1")
    assert (state.family, state.other_family) == ("Stable Diffusion 1.x", "the small demo model")
    assert {row.name: row.value for row in state.offered} == {
        name: choice.value for name, choice in purpose("character").families["small"].items()
    }
    assert {row.name: row.before for row in state.offered}["learning_rate"] == 2e-4

    desk.app.presets.apply("cat", "v1", state.name)
    assert settings(desk) == {**USUAL, "base_model": "demo", **purpose("character").values("small")}
    assert desk.app.presets.state("cat", "v1").offered == []
    desk.app.presets.undo("cat", "v1")
    assert settings(desk) == {**USUAL, "base_model": "demo"}


def test_a_project_proposes_what_it_is_about(desk: Desk) -> None:
    desk.version()
    assert desk.app.presets.state("cat", "v1").proposed == ""
    desk.app.presets.apply("cat", "v1", "outfit")
    desk.version("cat", "v2")
    state = desk.app.presets.state("cat", "v2")
    assert (state.proposed, state.proposed_about) == ("outfit", purpose("outfit").about)
    desk.app.presets.apply("cat", "v2", "style")
    desk.version("cat", "v3")
    assert desk.app.presets.state("cat", "v3").proposed == "outfit", "the first one says what the project is"
    assert desk.app.presets.state(*desk.version("dog")).proposed == ""


def test_a_copy_of_a_version_has_its_preset(desk: Desk) -> None:
    desk.version()
    desk.app.presets.apply("cat", "v1", "pose")
    desk.app.projects.duplicate_version("cat", "v1", "v2")
    assert desk.app.presets.state("cat", "v2") == desk.app.presets.state("cat", "v1")


# --- a person's own ---


def own(desk: Desk, name: str = "自作 Ж", **values: Any) -> Path:
    desk.version()
    desk.app.settings.save("cat", "v1", train={"rank": 24, **values})
    desk.app.presets.save(name, "cat", "v1")
    return desk.app.presets.file_path(name)


def test_saved_and_applied_elsewhere(desk: Desk) -> None:
    path = own(desk, base_model="/home/me/x.safetensors", trigger_word="secret", vae="/home/me/v.pt")
    assert path.parent == desk.workspace.root / "presets"
    assert path.name == "自作 Ж.json"
    text = path.read_text(encoding="utf-8")
    assert "/home/me" not in text
    assert "secret" not in text
    assert [entry.name for entry in desk.again().presets.list()] == [*PURPOSES, "自作 Ж"]
    desk.version("dog")
    desk.app.settings.save("dog", "v1", train={"trigger_word": "wuff"})
    desk.app.presets.apply("dog", "v1", "自作 ж")
    assert desk.app.settings.train("dog", "v1") == {**USUAL, "rank": 24, "trigger_word": "wuff"}
    assert desk.app.presets.state("cat", "v1").proposed == "", "no purpose is told by it"
    assert desk.app.presets.state("dog", "v1").saved_for == ""
    desk.app.settings.save("dog", "v1", train={"base_model": "demo"})
    assert desk.app.presets.state("dog", "v1").saved_for == "Stable Diffusion 1.x"


def test_saved_again_the_old_one_is_in_the_trash(desk: Desk) -> None:
    path = own(desk)
    old = path.read_bytes()
    own(desk, rank=48)
    assert desk.app.presets.show("自作 Ж").rows[0].name
    assert {row.name: row.value for row in desk.app.presets.show("自作 Ж").rows}["rank"] == 48
    assert len(list(path.parent.iterdir())) == 1
    (kept,) = desk.workspace.trash_dir.glob("*/*Ж.json")
    assert kept.read_bytes() == old


@pytest.mark.parametrize("name", ["", "  ", "Style", "CHARACTER ", "///"])
def test_names_that_cannot_be(desk: Desk, name: str) -> None:
    desk.version()
    with pytest.raises(WorkspaceError):
        desk.app.presets.save(name, "cat", "v1")
    own(desk, "mine")
    with pytest.raises(WorkspaceError):
        desk.app.presets.rename("mine", name)
    assert [entry.name for entry in desk.app.presets.list()][-1] == "mine"


def test_renamed(desk: Desk) -> None:
    first, _ = own(desk, "mine"), own(desk, "other")
    desk.app.presets.apply("cat", "v1", "mine")
    desk.app.presets.rename("MINE", "Mine: the 2nd")
    assert not first.exists()
    assert [entry.name for entry in desk.app.presets.list()][-2:] == ["Mine: the 2nd", "other"]
    assert desk.app.presets.state("cat", "v1").is_gone
    with pytest.raises(WorkspaceError, match="already"):
        desk.app.presets.rename("other", "mine: THE 2nd")
    with pytest.raises(WorkspaceError, match="belongs to Train Tools"):
        desk.app.presets.rename("style", "x")
    with pytest.raises(WorkspaceError, match="no preset"):
        desk.app.presets.rename("nothing", "x")


def test_names_for_the_same_file(desk: Desk) -> None:
    assert own(desk, "a:b").name != own(desk, "a?b").name
    assert [entry.name for entry in desk.app.presets.list()][-2:] == ["a:b", "a?b"]


def test_deleted_and_restored(desk: Desk) -> None:
    path = own(desk)
    desk.app.presets.apply("cat", "v1", "自作 Ж")
    undo = desk.app.presets.delete("自作 Ж")
    assert not path.exists()
    state = desk.app.presets.state("cat", "v1")
    assert (state.name, state.is_gone) == ("自作 Ж", True)
    desk.app.projects.restore(undo.entry)
    assert desk.app.presets.find("自作 Ж").name == "自作 Ж"
    assert not desk.app.presets.state("cat", "v1").is_gone
    with pytest.raises(WorkspaceError, match="belongs to Train Tools"):
        desk.app.presets.delete("style")


def test_shared_with_somebody_else(desk: Desk, tmp_path_factory: pytest.TempPathFactory) -> None:
    content = own(desk).read_bytes()
    other = type(desk)(tmp_path_factory.mktemp("other"))
    assert other.app.presets.take_in("whatever.json", content).problems == []
    assert other.app.presets.file_path("自作 Ж").read_bytes() == content
    again = other.app.presets.take_in("whatever.json", content)
    assert again.name == "自作 Ж-2"
    assert other.app.presets.find("自作 Ж-2").settings == other.app.presets.find("自作 Ж").settings


def test_a_foreign_file_is_checked(desk: Desk) -> None:
    told = {
        "kind": "lora-train preset",
        "name": " style\n",
        "settings": {"rank": {"value": 9999}, "alpha": {"value": 3, "why": "x"}, "vae": {"value": "/etc/passwd"}},
    }
    taken = desk.app.presets.take_in("p.json", json.dumps(told).encode())
    assert taken.name == "style-2", "the package's own stays"
    assert len(taken.problems) == 2
    assert "/etc" not in desk.app.presets.file_path("style-2").read_text(encoding="utf-8")
    nameless = json.dumps({**told, "name": ""}).encode()
    assert desk.app.presets.take_in("from a friend.json", nameless).name == "from a friend"
    with pytest.raises(WorkspaceError, match="no preset"):
        desk.app.presets.take_in("p.json", b"{}")


def test_a_damaged_file_stops_no_other(desk: Desk) -> None:
    path = own(desk)
    path.with_name("broken.json").write_text("{", encoding="utf-8")
    entries = {entry.name: entry for entry in desk.app.presets.list()}
    assert "no preset" in entries["broken"].problem
    assert not entries["自作 Ж"].problem
    desk.app.presets.apply("cat", "v1", "自作 Ж")
    with pytest.raises(WorkspaceError, match="no preset"):
        desk.app.presets.apply("cat", "v1", "broken")
    desk.app.presets.delete("broken")


# --- the command line's way ---


def test_a_plan_with_a_preset(desk: Desk) -> None:
    """16 demo pictures and as many regularisation views in fours: 8 batches an epoch and repeat."""
    from lora_train.core.assets import DEMO_PICTURES
    from lora_train.core.specs import TrainSpec

    values = {"base_model": "demo", "epochs": "5", "rank": "4", "hold_out": "0"}
    plan = desk.app.plan_train(name="sks", images=DEMO_PICTURES, values=values, preset="Character")
    spec = plan.job.read_spec()
    assert isinstance(spec, TrainSpec)
    expected = {**purpose("character").values("small"), "epochs": 5, "rank": 4}
    assert {name: getattr(spec.settings, name) for name in expected} == expected
    assert plan.total_steps == 200 == 5 * 5 * 8
    assert set(spec.folder_repeats.values()) == {5}
    state = desk.app.presets.state("sks", "v1")
    assert (state.name, state.family) == ("character", "the small demo model")
    assert desk.app.training.forecast("sks", "v1").total_steps == 200

    again = desk.app.plan_version_train(name="sks", version="v1", values={"rank": "2"}, preset="pose")
    spec = again.job.read_spec()
    assert isinstance(spec, TrainSpec)
    assert (spec.settings.rank, spec.settings.alpha, spec.settings.epochs) == (2, 4.0, 10)
    assert set(spec.folder_repeats.values()) == {2}, "2.5 would be 200 steps; the fewer of 160 and 240"
    desk.app.presets.undo("sks", "v1")
    assert desk.app.settings.train("sks", "v1")["rank"] == 4


def test_a_plan_with_an_unknown_preset_leaves_nothing(desk: Desk) -> None:
    from lora_train.core.assets import DEMO_PICTURES

    with pytest.raises(ConfigError, match="there is none called"):
        desk.app.plan_train(name="sks", images=DEMO_PICTURES, values={"base_model": "demo"}, preset="nobody")
    assert desk.app.projects.list() == []


# --- the sum ---


def test_forecast_and_job_have_the_chosen_repeats(desk: Desk) -> None:
    desk.trained("4_cat/a.png", "4_cat/b.png", "12_dog/c.png")
    desk.app.settings.save(
        "cat", "v1", train={"base_model": "demo", "epochs": 2, "aimed_steps": 100, "generate_previews": False}
    )
    forecast = desk.app.training.forecast("cat", "v1")
    assert (forecast.total_steps, forecast.aimed_steps, forecast.is_over_aim) == (100, 100, False)
    assert {entry.file: entry.repeats for entry in desk.shown().pictures} == {
        "4_cat/a.png": 10,
        "4_cat/b.png": 10,
        "12_dog/c.png": 30,
    }
    spec = desk.job(desk.app.training.begin("cat", "v1")).read_spec()
    assert getattr(spec, "folder_repeats", None) == {"4_cat": 10, "12_dog": 30}

    desk.app.settings.save("cat", "v1", train={"epochs": 100})
    forecast = desk.app.training.forecast("cat", "v1")
    assert (forecast.total_steps, forecast.is_over_aim, forecast.repeats) == (500, True, None)
    desk.app.settings.save("cat", "v1", train={"repeats": 4})
    forecast = desk.app.training.forecast("cat", "v1")
    assert (forecast.total_steps, forecast.aimed_steps, forecast.repeats) == (1200, 0, 4)
    desk.app.settings.save("cat", "v1", train={"repeats": -1, "aimed_steps": 0})
    assert desk.app.training.forecast("cat", "v1").total_steps == 100 * (4 + 4 + 12)


def test_health_counts_tokens_of_what_is_trained(desk: Desk) -> None:
    folder = desk.trained(*(f"4_cat/{name}.png" for name in "abcde"))
    for index, path in enumerate(sorted(folder.rglob("*.txt"))):
        tail = ", ".join(f"extra word number {number}" for number in range(60)) if index else ""
        path.write_text(f"sks, {tail}", encoding="utf-8")
    desk.app.settings.save("cat", "v1", train={"trigger_word": "sks", "base_model": "demo"})
    kinds = {finding.kind for finding in desk.app.health.report("cat", "v1").findings}
    assert "long_captions" in kinds
    desk.app.settings.save("cat", "v1", train={"prune_common_tags": 60})
    findings = {finding.kind: finding for finding in desk.app.health.report("cat", "v1").findings}
    assert "long_captions" not in findings
    assert len(findings["left_out_tags"].counts) == 60
    assert desk.app.captions.trained_text("cat", "v1", "4_cat/b.png").left_out[0] == "extra word number 0"


def test_a_host_that_is_open_to_others_takes_no_paths(desk: Desk) -> None:
    desk.host.is_local = False
    desk.host.checkpoints = [BaseModelChoice("x", "/nowhere/x.safetensors")]
    desk.version()
    desk.app.settings.save("cat", "v1", train={"base_model": "/etc/passwd"})
    desk.app.presets.apply("cat", "v1", "style")
    assert desk.app.presets.state("cat", "v1").family == "Stable Diffusion 1.x"
