"""What *Begin Train* writes, and what keeps it from beginning; no worker is started."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lora_train.core.errors import JobError, WorkspaceError
from lora_train.core.specs import TrainSpec
from tests.unit.app.conftest import PICTURES

if TYPE_CHECKING:
    from tests.unit.app.conftest import Desk


def test_begin_writes_the_job_and_puts_it_into_the_queue(desk: Desk) -> None:
    desk.trained(*PICTURES)
    desk.save(epochs=3, trigger_word="sks")
    job = desk.app.training.begin("cat", "v1")
    again = desk.app.training.begin("cat", "v1")
    assert [Path(each).name for each in (job, again)] == ["cat-v1", "cat-v1-r2"]
    assert [entry.job for entry in desk.app.queue.entries()] == [job, again]
    spec = desk.job(job).read_spec()
    assert isinstance(spec, TrainSpec)
    assert (spec.name, spec.concept, spec.version) == ("cat-v1", "cat", "v1")
    assert Path(spec.publish_to) == desk.host.root
    assert (spec.settings.epochs, spec.settings.cpu_threads, spec.settings.base_model) == (3, 1, "demo")
    trains = desk.app.training.list("cat", "v1")
    assert [(train.name, train.place, train.status.state) for train in trains] == [
        ("cat-v1-r2", 2, "waiting"),
        ("cat-v1", 1, "waiting"),
    ]
    assert trains[0].summary == "AdamW 0.0001 · rank 16 · batch 1 · epochs 3"


def test_a_command_line_changes_no_pictures_that_a_train_waits_for(desk: Desk) -> None:
    pictures = desk.trained("4_cat/a.png")
    desk.save()
    desk.app.training.begin("cat", "v1")
    before = {path: path.read_bytes() for path in pictures.rglob("*") if path.is_file()}
    with pytest.raises(JobError, match="cat-v1 waits or begins"):
        desk.again().plan_train(name="cat", images=pictures / "4_cat", values={"base_model": "demo"})
    assert {path: path.read_bytes() for path in pictures.rglob("*") if path.is_file()} == before


def test_names_in_the_hosts_folder_are_left_alone(desk: Desk) -> None:
    desk.trained("4_cat/a.png")
    desk.save()
    (desk.host.root / "sub").mkdir(parents=True)
    (desk.host.root / "sub" / "Cat-v1-000002.safetensors").write_bytes(b"somebody's")
    assert desk.app.training.begin("cat", "v1").endswith("/cat-v1-r2")


@pytest.mark.parametrize("publishes", [True, False])
def test_auto_publish_is_the_hosts_choice(desk: Desk, publishes: bool) -> None:
    desk.trained("4_cat/a.png")
    desk.save()
    desk.host.publishes = publishes
    desk.host.sub_folder = "mine"
    spec = desk.job(desk.app.training.begin("cat", "v1")).read_spec()
    assert isinstance(spec, TrainSpec)
    assert spec.publish_to == (str(desk.host.root / "mine") if publishes else "")


@pytest.mark.parametrize(
    ("settings", "prompts"),
    [
        ({}, ("caption of a.png",)),
        ({"trigger_word": "sks"}, ("sks",)),
        ({"preview_prompts": ("a dog",), "trigger_word": "sks"}, ("a dog",)),
        ({"generate_previews": False}, ()),
        ({"generate_previews": False, "preview_prompts": ("a dog",)}, ("a dog",)),
    ],
)
def test_previews_have_a_prompt(desk: Desk, settings: dict[str, Any], prompts: tuple[str, ...]) -> None:
    desk.trained("4_cat/a.png", project="自作 猫")
    desk.app.settings.save("自作 猫", "v1", train={"base_model": "demo", "hold_out": 0, **settings})
    spec = desk.job(desk.app.training.begin("自作 猫", "v1")).read_spec()
    assert isinstance(spec, TrainSpec)
    assert spec.settings.preview_prompts == prompts


def test_previews_of_pictures_without_captions_are_called_by_the_project(desk: Desk) -> None:
    processed = desk.trained("4_cat/a.png", project="自作 猫")
    (processed / "4_cat" / "a.txt").unlink()
    desk.app.settings.save("自作 猫", "v1", train={"base_model": "demo"})
    spec = desk.job(desk.app.training.begin("自作 猫", "v1")).read_spec()
    assert isinstance(spec, TrainSpec)
    assert spec.settings.preview_prompts == ("自作 猫",)


def test_a_disk_that_is_too_full(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.trained("4_cat/a.png")
    desk.save(rank=1024, save_every_epochs=1, epochs=10_000)
    with pytest.raises(WorkspaceError, match="MB free"):
        desk.app.training.begin("cat", "v1")
    assert desk.app.training.list("cat", "v1") == []
