"""LoRAs published into a host's folder, taken back, and never a file touched that we did not write."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from lora_train.core import events as ev
from lora_train.core.errors import JobError, ModelError, TrainToolsError, WorkspaceError
from lora_train.core.jobs import JobFolder

if TYPE_CHECKING:
    from tests.unit.app.conftest import Desk

LORA = "cat-v1.safetensors"


def tree(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def metadata(path: Path) -> dict[str, str]:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length])["__metadata__"]


def published_name(desk: Desk, job: str, file: str = LORA) -> str:
    (train,) = [train for train in desk.app.training.list("cat", "v1") if train.job == job]
    return next(lora.published for lora in train.loras if lora.file == file)


# --- the list ---


def test_entries(desk: Desk) -> None:
    job = desk.finished(loras=["cat-v1-000001.safetensors", LORA], trigger_word="sks, 猫")
    names = ["cat-v1-grid.png", "cat-v1-p1-w0.6.png", "cat-v1-p1-w1.png", "cat-v1-p2-w-0.5.png"]
    desk.previews(job, *names, "cat-v1-000001-p1-w1e-05.png", "other.png", "cat-v1-p1-w1-2.png", "cat-v1-p1-w.png")
    last, first = desk.app.training.list("cat", "v1")[0].loras
    assert (last.file, last.stem, last.step, last.epoch) == (LORA, "cat-v1", 20, 2)
    assert last.previews == [f"samples/{names[number]}" for number in (2, 0, 1, 3)], "the card's, the grid, the others"
    assert (last.prompt, last.published) == ("<lora:cat-v1:1> sks, 猫", "")
    assert last.size_bytes == (desk.job(job).path / LORA).stat().st_size
    assert first.previews == ["samples/cat-v1-000001-p1-w1e-05.png"]


def test_one_damaged_file_hides_no_other(desk: Desk) -> None:
    job = desk.finished(loras=["a.safetensors", "b.safetensors", "c.safetensors"])
    (desk.job(job).path / "a.safetensors").write_bytes(b"damaged")
    (desk.job(job).path / "b.safetensors").unlink()
    (desk.job(job).path / "published.json").write_bytes(b"{")
    (train,) = desk.app.training.list("cat", "v1")
    assert [(lora.file, lora.prompt) for lora in train.loras] == [
        ("c.safetensors", "<lora:c:1> cat"),
        ("a.safetensors", "<lora:a:1>"),
    ]
    with pytest.raises(ModelError):
        desk.app.loras.publish(job, "a.safetensors")
    assert not list(desk.host.root.rglob("*.*"))


# --- publishing ---


def test_publish_is_a_finished_card(desk: Desk) -> None:
    job = desk.finished(trigger_word="sks")
    desk.previews(job, "cat-v1-grid.png", "cat-v1-p1-w0.6.png", "cat-v1-p1-w1.png", "cat-v1-p2-w2.png")
    assert desk.app.loras.publish(job, LORA) == "cat-v1"
    assert set(tree(desk.host.root)) == {"cat-v1.safetensors", "cat-v1.json", "cat-v1.png"}
    card = json.loads((desk.host.root / "cat-v1.json").read_text(encoding="utf-8"))
    assert card["activation text"] == "sks"
    assert card["description"] == "cat v1, 10 steps, base model tiny_sd.safetensors"
    assert card["notes"] == "Base model: tiny_sd.safetensors"
    assert card["preferred weight"] == 1
    with Image.open(desk.host.root / "cat-v1.png") as thumbnail:
        assert thumbnail.size == (512, 768)
        assert thumbnail.getpixel((256, 384)) == (2, 0, 0), "the first prompt, the strongest weight"
    assert (desk.host.refreshed, desk.app.loras.revision) == (1, 1)
    assert desk.app.snapshot("cat", "v1").loras_revision == 1
    assert published_name(desk, job) == "cat-v1"
    assert desk.again().training.list("cat", "v1")[0].loras[0].published == "cat-v1"


def test_published_by_itself_is_the_last_one(desk: Desk) -> None:
    job = desk.train(loras=["cat-v1-000001.safetensors", LORA], events=[ev.Finished(step=20)])
    folder = desk.job(job)
    assert desk.app.loras.publish_result(folder) is None, "its person did not want it"
    desk.publishes_to(job, desk.host.root / "mine")
    app = desk.again()
    for _ in range(2):
        assert app.loras.publish_result(folder) == desk.host.root / "mine" / LORA
    assert set(tree(desk.host.root)) == {"mine/cat-v1.safetensors", "mine/cat-v1.json"}
    assert published_name(desk, job) == "cat-v1"
    app.loras.unpublish(job, LORA)
    assert tree(desk.host.root) == {}, "found to be there the second time, it is still ours"


@pytest.mark.parametrize(
    ("last", "is_published"),
    [
        (ev.Finished(step=9), True),
        (ev.Stopped(step=9), True),
        (ev.Paused(step=9), False),
        (ev.Failed("JobError", "why"), False),
    ],
)
def test_only_what_came_to_an_end_is_published_by_itself(desk: Desk, last: ev.Event, is_published: bool) -> None:
    job = desk.train(loras=[LORA], events=[last])
    folder = desk.job(job)
    desk.publishes_to(job, desk.host.root)
    assert (desk.app.loras.publish_result(folder) is not None) == is_published


def test_two_saves(desk: Desk) -> None:
    job = desk.finished(loras=["cat-v1-000001.safetensors", LORA])
    assert desk.app.loras.publish(job, "cat-v1-000001.safetensors") == "cat-v1-000001"
    assert desk.app.loras.publish(job, LORA) == "cat-v1"
    desk.app.loras.unpublish(job, "cat-v1-000001.safetensors")
    assert {path.stem for path in desk.host.root.iterdir()} == {"cat-v1"}


def test_again_writes_nothing_new(desk: Desk) -> None:
    job = desk.finished()
    desk.app.loras.publish(job, LORA)
    (desk.host.root / "cat-v1.json").write_text("edited by the host", encoding="utf-8")
    before = tree(desk.host.root)
    assert desk.app.loras.publish(job, LORA) == "cat-v1"
    assert tree(desk.host.root) == before
    desk.app.loras.unpublish(job, LORA)
    assert tree(desk.host.root) == {}


def test_no_folder_to_publish_to(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    job = desk.finished()
    monkeypatch.setattr(desk.host, "lora_dir", lambda: None)
    with pytest.raises(TrainToolsError, match="no LoRA folder") as error:
        desk.app.loras.publish(job, LORA)
    assert "--lora-dir" in error.value.hint


def test_a_folder_that_can_not_be_written(desk: Desk) -> None:
    job = desk.finished()
    desk.host.root.parent.mkdir(parents=True)
    desk.host.root.write_bytes(b"a file")
    with pytest.raises(TrainToolsError, match="can't be written"):
        desk.app.loras.publish(job, LORA)
    assert published_name(desk, job) == ""


@pytest.mark.parametrize("file", ["", "..", "job.json", "samples/x.png", "../x.safetensors", "other.safetensors"])
def test_files_that_are_none_of_the_trains(desk: Desk, file: str) -> None:
    job = desk.finished()
    desk.write_lora(desk.job(job).path / "other.safetensors")
    for call in (desk.app.loras.publish, desk.app.loras.unpublish, desk.app.loras.delete):
        with pytest.raises(WorkspaceError, match="There is no LoRA"):
            call(job, file)


def test_other_jobs(desk: Desk) -> None:
    drawing = desk.app.training.draw_previews(desk.finished())
    with pytest.raises(JobError, match="no training"):
        desk.app.loras.publish(drawing, LORA)


# --- names ---


def test_a_name_is_used_once_below_the_hosts_folder(desk: Desk) -> None:
    """Hosts find a LoRA by its bare name, over all sub-folders."""
    job = desk.finished()
    desk.host.sub_folder = "mine"
    other = desk.host.root / "theirs" / "CAT-v1.safetensors"
    desk.write_lora(other, 7)
    before = other.read_bytes()
    assert desk.app.loras.publish(job, LORA) == "cat-v1-2"
    copy = desk.host.root / "mine" / "cat-v1-2.safetensors"
    assert metadata(copy)["ss_output_name"] == "cat-v1-2"
    assert copy.read_bytes()[-4:] == (desk.job(job).path / LORA).read_bytes()[-4:]
    assert other.read_bytes() == before
    (train,) = desk.app.training.list("cat", "v1")
    assert (train.loras[0].published, train.loras[0].prompt) == ("cat-v1-2", "<lora:cat-v1-2:1> cat")


def test_unpublish_takes_exactly_what_was_written(desk: Desk) -> None:
    """The card that the host edited goes with it; what others put beside it stays."""
    job = desk.finished()
    desk.previews(job, "cat-v1-p1-w1.png")
    desk.host.root.mkdir(parents=True)
    (desk.host.root / "cat-v1.png").write_bytes(b"a thumbnail that was there before")
    desk.app.loras.publish(job, LORA)
    (desk.host.root / "cat-v1.json").write_text('{"notes": "of the person"}', encoding="utf-8")
    (desk.host.root / "cat-v1.civitai.info").write_bytes(b"of another extension")
    before = tree(desk.host.root)
    undo = desk.app.loras.unpublish(job, LORA)
    assert undo.what == "cat-v1 in the LoRA folder"
    assert set(tree(desk.host.root)) == {"cat-v1.png", "cat-v1.civitai.info"}
    assert (desk.host.refreshed, published_name(desk, job)) == (2, "")
    assert (desk.job(job).path / LORA).is_file()
    with pytest.raises(WorkspaceError, match="is not published"):
        desk.app.loras.unpublish(job, LORA)

    desk.again().projects.restore(undo.entry)
    assert tree(desk.host.root) == before
    assert desk.host.refreshed == 3, "the host's cards show it again"
    assert published_name(desk, job) == "cat-v1"
    desk.app.loras.unpublish(job, LORA)
    assert desk.app.loras.publish(job, LORA) == "cat-v1"
    with pytest.raises(WorkspaceError, match="exists again"):
        desk.app.projects.restore(undo.entry)


def test_a_file_that_was_there_before_is_never_touched(desk: Desk) -> None:
    """Also the very same LoRA, copied by hand; a card beside it is filled where it says nothing."""
    job = desk.finished()
    desk.host.root.mkdir(parents=True)
    (desk.host.root / LORA).write_bytes((desk.job(job).path / LORA).read_bytes())
    (desk.host.root / "cat-v1.json").write_bytes(b"{}")
    before = tree(desk.host.root)
    assert desk.app.loras.publish(job, LORA) == "cat-v1"
    with pytest.raises(WorkspaceError, match="not the file that was published") as error:
        desk.app.loras.unpublish(job, LORA)
    assert "by hand" in error.value.hint
    after = tree(desk.host.root)
    assert after.keys() == before.keys()
    assert after[LORA] == before[LORA]
    assert json.loads(after["cat-v1.json"])["activation text"] == "cat"


def test_a_file_that_took_the_place_is_never_touched(desk: Desk) -> None:
    job = desk.finished()
    desk.app.loras.publish(job, LORA)
    desk.write_lora(desk.host.root / LORA, 99)
    before = tree(desk.host.root)
    for _ in range(2):
        with pytest.raises(WorkspaceError, match="not the file that was published"):
            desk.app.loras.unpublish(job, LORA)
    assert tree(desk.host.root) == before
    assert desk.app.loras.publish(job, LORA) == "cat-v1-2"
    desk.app.loras.unpublish(job, LORA)
    assert tree(desk.host.root) == before


def test_a_copy_that_was_deleted_by_hand(desk: Desk) -> None:
    job = desk.finished()
    desk.app.loras.publish(job, LORA)
    (desk.host.root / LORA).unlink()
    assert published_name(desk, job) == ""
    with pytest.raises(WorkspaceError, match="is not published"):
        desk.app.loras.unpublish(job, LORA)
    assert desk.app.loras.publish(job, LORA) == "cat-v1"


# --- deleting ---


def test_delete_and_restore(desk: Desk) -> None:
    job = desk.finished(loras=["cat-v1-000001.safetensors", LORA])
    desk.previews(job, "cat-v1-grid.png", "cat-v1-p1-w1.png", "cat-v1-000001-grid.png")
    desk.app.loras.publish(job, LORA)
    published, before = tree(desk.host.root), tree(desk.job(job).path)
    undo = desk.app.loras.delete(job, LORA)
    (train,) = desk.app.training.list("cat", "v1")
    assert [lora.file for lora in train.loras] == ["cat-v1-000001.safetensors"]
    assert set(before) - set(tree(desk.job(job).path)) == {
        *(LORA, "samples/cat-v1-grid.png", "samples/cat-v1-p1-w1.png"),
    }
    assert tree(desk.host.root) == published, "what is published stays"
    for call in (desk.app.loras.publish, desk.app.loras.unpublish, desk.app.loras.delete):
        with pytest.raises(WorkspaceError, match="There is no LoRA"):
            call(job, LORA)
    desk.app.projects.restore(undo.entry)
    assert tree(desk.job(job).path) == before
    assert published_name(desk, job) == "cat-v1"


def test_a_train_that_is_deleted_leaves_its_published_copies(desk: Desk) -> None:
    job = desk.finished()
    desk.app.loras.publish(job, LORA)
    before = tree(desk.host.root)
    undo = desk.app.training.delete(job)
    assert tree(desk.host.root) == before
    desk.app.projects.restore(undo.entry)
    assert isinstance(JobFolder(desk.job(job).path), JobFolder)
    assert published_name(desk, job) == "cat-v1"
    desk.app.loras.unpublish(job, LORA)
    assert tree(desk.host.root) == {}
