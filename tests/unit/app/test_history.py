"""Trainings compared and repeated, and their settings taken again; no worker runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lora_train.core import events as ev
from lora_train.core.errors import DatasetError, JobError, ModelError, WorkspaceError
from lora_train.core.history import Versions, package_versions, read_made_from, write_record
from lora_train.core.memory import MemoryFacts, MemoryPlan, Trial, read_memory, write_memory
from lora_train.core.specs import JudgeSpec, TrainSpec

if TYPE_CHECKING:
    from tests.unit.app.conftest import Desk


def begun(desk: Desk, **settings: object) -> str:
    """A training that was planned, not done."""
    given = {"base_model": "demo", "resolution": 64, "epochs": 1, "repeats": 2, "cpu_threads": 1, **settings}
    assert desk.app.settings.save("cat", "v1", train=given) == []
    return desk.app.training.begin("cat", "v1")


def test_planning_notes_every_picture(desk: Desk) -> None:
    root = desk.trained("2_cat/a.png", "2_cat/b.png")
    (root / "2_cat" / "mask").mkdir()
    (root / "2_cat" / "mask" / "b.png").write_bytes((root / "2_cat" / "b.png").read_bytes())
    made = read_made_from(desk.job(begun(desk)).path)
    assert made is not None
    assert [(p.path, p.caption, p.repeats, bool(p.mask)) for p in made.pictures] == [
        ("2_cat/a.png", "caption of a.png", 2, False),
        ("2_cat/b.png", "caption of b.png", 2, True),
    ]
    assert made.pictures[1].mask == made.pictures[1].content
    assert made.base_model.name


def test_repeated_with_the_same_spec(desk: Desk) -> None:
    desk.trained("2_cat/a.png", "2_cat/b.png")
    first = begun(desk)
    desk.app.settings.save("cat", "v1", train={"epochs": 5})
    again = desk.app.history.repeat(first)
    specs = [desk.job(job).read_spec() for job in (first, again)]
    assert isinstance(specs[0], TrainSpec)
    assert isinstance(specs[1], TrainSpec)
    assert specs[0].settings == specs[1].settings
    assert specs[0].name != specs[1].name
    assert read_made_from(desk.job(first).path) == read_made_from(desk.job(again).path)
    assert [entry.job for entry in desk.app.queue.entries()] == [first, again]
    assert desk.app.history.compare(first, again).is_same


def test_pictures_that_are_known_are_not_looked_through_again(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands take long: once is enough for Begin Train, Repeat exactly and the judge, as long as nothing changes."""
    desk.trained("2_cat/a.png", "2_cat/b.png")
    first = begun(desk)
    folder = desk.job(first)
    (folder.path / "cat-v1.safetensors").write_bytes(b"")
    writer = ev.EventWriter(folder.events_path)
    writer.write(ev.Saved(path="cat-v1.safetensors", step=1, epoch=1))
    writer.close()
    with monkeypatch.context() as unread:
        unread.setattr("lora_train.data.dataset.scan_trained_set", None)
        assert desk.app.history.repeat(first) != first
        judge = desk.app.judging.plan(folder).read_spec()
    assert isinstance(judge, JudgeSpec)
    assert judge.prompts[0] == "caption of a.png"


def test_what_changed_is_told_and_refused(desk: Desk) -> None:
    root = desk.trained("2_cat/a.png", "2_cat/b.png")
    first = begun(desk)
    (root / "2_cat" / "a.txt").write_text("other words", encoding="utf-8")
    (root / "2_cat" / "b.png").unlink()
    (root / "2_cat" / "b.txt").unlink()
    with pytest.raises(DatasetError) as caught:
        desk.app.history.repeat(first, anyway=True)
    assert "2_cat/a.png has another caption ('caption of a.png' → 'other words')" in caught.value.message
    assert "2_cat/b.png is gone" in caught.value.message
    assert len(list(desk.job(first).path.parent.iterdir())) == 1


def test_other_versions_only_anyway(desk: Desk) -> None:
    desk.trained("2_cat/a.png")
    first = begun(desk)
    write_record(desk.job(first).path, Versions(packages={**package_versions(), "torch": "1.0"}))
    with pytest.raises(JobError, match=r"torch 1\.0 → "):
        desk.app.history.repeat(first)
    assert [row.name for row in desk.app.history.note(first, []).versions] == ["torch"]
    assert desk.app.history.repeat(first, anyway=True) != first


def test_another_vae_is_refused(desk: Desk) -> None:
    desk.trained("2_cat/a.png")
    vae = desk.root / "vae.safetensors"
    vae.write_bytes(b"one")
    first = begun(desk, vae=str(vae))
    vae.write_bytes(b"another")
    with pytest.raises(ModelError, match=r"VAE, vae.safetensors, is another file"):
        desk.app.history.repeat(first, anyway=True)


def test_earlier_releases_are_told_apart(desk: Desk) -> None:
    old, new = desk.train("cat-v1", epochs=2), desk.train("cat-v1-2", epochs=3)
    with pytest.raises(JobError, match="did not note what it was made from"):
        desk.app.history.repeat(old)
    comparison = desk.app.history.compare(old, new)
    assert [(row.name, row.before, row.after) for row in comparison.settings] == [("epochs", "2", "3")]
    assert comparison.unknown[0] == "cat-v1 did not note its pictures and captions: an earlier release trained it."
    assert len(comparison.unknown) == 4
    assert not desk.app.history.note(old, []).is_noted


def test_settings_are_taken_over_and_had_back(desk: Desk) -> None:
    job = desk.train(epochs=7, learning_rate=3e-4)
    desk.app.settings.save("cat", "v1", train={"base_model": "demo", "epochs": 2})
    desk.app.presets.apply("cat", "v1", "character")
    before = desk.app.settings.train("cat", "v1")
    desk.app.history.use_settings(job)
    assert desk.app.settings.train("cat", "v1")["epochs"] == 7
    assert desk.app.presets.state("cat", "v1").name == ""
    assert desk.app.history.note(job, []).can_undo
    desk.app.history.undo_settings(job)
    assert desk.app.settings.train("cat", "v1") == before
    assert desk.app.presets.state("cat", "v1").name == "character"
    with pytest.raises(WorkspaceError, match="no settings from before"):
        desk.app.history.undo_settings(job)


def test_what_saved_memory_is_compared(desk: Desk) -> None:
    desk.trained("2_cat/a.png")
    first = begun(desk)
    again = desk.app.history.repeat(first)
    write_memory(desk.job(first).path, MemoryFacts(plan=MemoryPlan()))
    assert desk.app.history.compare(first, again).versions == []  # it has not begun
    write_memory(desk.job(again).path, MemoryFacts(plan=MemoryPlan(checkpointing="all")))
    (row,) = desk.app.history.compare(first, again).versions
    assert (row.label, row.before, row.after) == ("memory", "–", "gradient checkpointing of all blocks")


def test_a_repetition_saves_memory_as_the_first_did(desk: Desk) -> None:
    desk.trained("2_cat/a.png")
    first = begun(desk)
    plan = MemoryPlan(views_at_once=1)
    write_memory(desk.job(first).path, MemoryFacts(plan=plan, trials=(Trial(plan=plan, peak_bytes=9),)))
    assert read_memory(desk.job(desk.app.history.repeat(first)).path) == MemoryFacts(plan=plan)
