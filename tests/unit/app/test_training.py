"""What is told of trains, and what can be done with them; no worker is started."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest

from lora_train.app.snapshot import Forecast
from lora_train.core import events as ev
from lora_train.core.assets import DEMO_MODEL
from lora_train.core.errors import ConfigError, JobError, ModelError, WorkspaceError
from lora_train.core.jobs import JobFolder
from lora_train.core.specs import SamplesSpec
from lora_train.launch import launcher
from lora_train.launch.queue import JobQueue

if TYPE_CHECKING:
    from tests.unit.app.conftest import Desk


# --- listing ---


def test_newest_first_and_what_each_tells(desk: Desk) -> None:
    desk.finished("cat-v1", created=1.0)
    desk.train("cat-v1-r3", created=3.0, events=[ev.Started(pid=2**22 + 1, step=0)])
    desk.train("cat-v1-r2", created=2.0, loras=["cat-v1-r2-step000010.safetensors"], events=[ev.Stopped(step=10)])
    trains = desk.app.training.list("cat", "v1")
    assert [train.name for train in trains] == ["cat-v1-r3", "cat-v1-r2", "cat-v1"]
    assert [train.status.state for train in trains] == ["failed", "stopped", "finished"]
    assert [len(train.loras) for train in trains] == [0, 1, 1]
    assert "ended without a word" in trains[0].status.message
    assert trains[0].base_model == DEMO_MODEL.name


@pytest.mark.parametrize("content", [b"", b"{", b'{"kind":"dance"}', b'{"kind":"train"}', b"\xff\xfe", None])
def test_one_damaged_train_hides_no_other(desk: Desk, content: bytes | None) -> None:
    desk.finished("cat-v1")
    damaged = desk.job(desk.train("cat-v1-r2", created=2.0))
    if content is None:
        damaged.spec_path.unlink()
    else:
        damaged.spec_path.write_bytes(content)
    (damaged.path.parent / "a file").write_bytes(b"")
    assert [train.name for train in desk.app.training.list("cat", "v1")] == ["cat-v1"]
    assert desk.app.snapshot("cat", "v1").shown is not None
    with pytest.raises(JobError, match=r"can't be used|not a job"):
        desk.app.training.log("projects/cat/versions/v1/trains/cat-v1-r2")


def test_which_one_is_shown(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    old, middle, new = (desk.finished(f"t{number}", created=float(number)) for number in range(3))

    def shown(wanted: str) -> str:
        train = desk.app.snapshot("cat", "v1", wanted).shown
        assert train is not None
        return train.job

    assert (shown(""), shown("projects/x"), shown(old)) == (new, new, old)
    queue = JobQueue(desk.workspace.root)
    queue.add(middle)
    queue.take_next()
    assert (shown(""), shown(old)) == (middle, old)


# --- what can be done ---


def test_a_train_that_waits(desk: Desk) -> None:
    desk.trained("4_cat/a.png")
    desk.save()
    jobs = [desk.app.training.begin("cat", "v1") for _ in range(4)]
    training = desk.app.training
    with pytest.raises(JobError, match="waits or runs"):
        training.resume(jobs[0])
    with pytest.raises(JobError, match="waits or runs"):
        training.delete(jobs[0])
    for end, job in zip((training.stop, training.pause, training.kill), jobs, strict=False):
        end(job)
        with pytest.raises(JobError, match="is not running"):
            end(job)
    assert [entry.job for entry in desk.app.queue.entries()] == [jobs[3]]
    states = {train.job: (train.status.state, train.place) for train in training.list("cat", "v1")}
    assert states[jobs[0]] == ("waiting", None)
    training.resume(jobs[0])
    assert [entry.job for entry in desk.app.queue.entries()] == [jobs[3], jobs[0]]
    training.delete(jobs[1])


@pytest.mark.parametrize("ask", ["stop", "pause", "kill"])
def test_a_train_that_starts(desk: Desk, ask: str) -> None:
    """Its turn has begun, but its worker has not told anything: it gets the request as soon as it looks."""
    job = desk.train(events=[ev.Started(pid=1, step=0), ev.Paused(step=4)])
    desk.job(job).request("pause")  # of the earlier time
    desk.app.training.resume(job)
    assert desk.job(job).requested() is None
    JobQueue(desk.workspace.root).take_next()
    (train,) = desk.app.training.list("cat", "v1")
    assert (train.place, train.status.state) == (0, "waiting")
    getattr(desk.app.training, ask)(job)
    assert desk.job(job).requested() == ("pause" if ask == "pause" else "stop")


def test_settings_that_change_while_begin_looks(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is trained was looked at, also where the page takes no paths."""
    desk.trained("4_cat/a.png")
    desk.save()
    look, looked = desk.app.training.forecast, list[Forecast]()

    def slow(project: str, version: str) -> Forecast:
        looked.append(look(project, version))
        if len(looked) == 1:
            desk.app.settings.save(project, version, train={"base_model": str(DEMO_MODEL)})
        return looked[-1]

    monkeypatch.setattr(desk.app.training, "forecast", slow)
    desk.host.is_local = False
    with pytest.raises(ConfigError, match="model"):
        desk.app.training.begin("cat", "v1")
    assert [bool(forecast.problems) for forecast in looked] == [False, True]
    assert desk.app.queue.entries() == []


@pytest.mark.parametrize("ask", ["stop", "pause", "kill"])
def test_a_train_that_says_its_first_word_just_then(desk: Desk, monkeypatch: pytest.MonkeyPatch, ask: str) -> None:
    """It was not at work yet when it was looked for, and no longer starting a moment later."""
    job = desk.train(events=[ev.Started(pid=1, step=0), ev.Paused(step=4)])
    JobQueue(desk.workspace.root).add(job)
    JobQueue(desk.workspace.root).take_next()
    looked, killed = list[bool](), list[JobFolder]()

    def is_alive(folder: JobFolder) -> bool:
        if not looked:
            desk.tell(folder, ev.Started(pid=2, step=4))
        looked.append(bool(looked))
        return looked[-1]

    monkeypatch.setattr(launcher, "is_alive", is_alive)
    monkeypatch.setattr(launcher, "kill_worker", killed.append)
    getattr(desk.app.training, ask)(job)
    assert desk.job(job).requested() == ("pause" if ask == "pause" else "stop") or killed


def test_a_train_that_has_just_ended(desk: Desk) -> None:
    """Its LoRA is being published; nothing of it is asked any more, and it does not show as waiting."""
    job = desk.train()
    queue = JobQueue(desk.workspace.root)
    queue.add(job)
    queue.take_next()
    desk.tell(desk.job(job), ev.Started(pid=2**22 + 1, step=0), ev.Finished(step=9))
    (train,) = desk.app.training.list("cat", "v1")
    assert (train.place, train.status.state) == (0, "finished")
    for ask in (desk.app.training.stop, desk.app.training.pause, desk.app.training.kill):
        with pytest.raises(JobError, match="is not running"):
            ask(job)
    assert desk.job(job).requested() is None


def test_kill_of_one_that_ends_just_then(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own last word stands."""
    job = desk.train(events=[ev.Started(pid=7, step=0)])
    monkeypatch.setattr(launcher, "is_alive", lambda job: True)
    monkeypatch.setattr(launcher, "kill_worker", lambda folder: desk.tell(folder, ev.Finished(step=9)))
    desk.app.training.kill(job)
    assert desk.app.training.list("cat", "v1")[0].status.state == "finished"


def test_resume_refuses(desk: Desk) -> None:
    finished = desk.finished("done")
    with pytest.raises(JobError, match="done is finished") as error:
        desk.app.training.resume(finished)
    assert "new training" in error.value.hint
    gone = desk.train("gone", base_model=str(desk.root / "gone.ckpt"), events=[ev.Paused(step=1)])
    with pytest.raises(ModelError, match="does not exist"):
        desk.app.training.resume(gone)
    assert desk.app.queue.entries() == []


def test_resume_waits_for_the_pictures(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    job = desk.train(events=[ev.Started(pid=1, step=0), ev.Paused(step=4)])
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(desk.app.datasets, "is_updating", lambda version: version.path.name == "v1")
        with pytest.raises(ConfigError, match="The dataset is being updated"):
            desk.app.training.resume(job)
    assert desk.app.queue.entries() == []
    desk.app.training.resume(job)
    assert [entry.job for entry in desk.app.queue.entries()] == [job]


def test_delete_and_restore(desk: Desk) -> None:
    job = desk.finished()
    desk.previews(job, "cat-v1-grid.png")
    undo = desk.app.training.delete(job)
    assert desk.app.training.list("cat", "v1") == []
    with pytest.raises(WorkspaceError, match="does not exist"):
        desk.app.training.log(job)
    time.sleep(0.01)
    desk.train("other")
    assert desk.app.projects.restore(undo.entry).version == "v1"
    by_name = {train.name: train for train in desk.app.training.list("cat", "v1")}
    assert by_name["cat-v1"].status.state == "finished"
    assert by_name["cat-v1"].loras[0].previews == ["samples/cat-v1-grid.png"]


def test_another_train_under_the_name_of_a_deleted_one(desk: Desk) -> None:
    desk.app.training.delete(desk.finished(rank=4))
    time.sleep(0.01)
    desk.train(rank=32)
    (train,) = desk.app.training.list("cat", "v1")
    assert (train.status.state, train.loras) == ("waiting", [])
    assert "rank 32" in train.summary


def test_other_jobs_are_no_trains(desk: Desk) -> None:
    drawing = desk.app.training.draw_previews(desk.finished())
    for call in (desk.app.training.resume, desk.app.training.delete, desk.app.training.draw_previews):
        with pytest.raises(JobError, match="is no training"):
            call(drawing)
    assert desk.app.training.log(drawing) == ""
    assert desk.app.training.events(drawing, 0) == ([], 0)
    desk.app.training.stop(drawing)
    assert desk.app.queue.entries() == []


# --- files, log and events ---


def test_files_of_a_train_alone_are_given(desk: Desk) -> None:
    job = desk.finished()
    other = desk.finished("cat-v1-r2", loras=["cat-v1-r2.safetensors", "gone.safetensors"])
    (desk.job(other).path / "gone.safetensors").unlink()
    desk.previews(job, "cat-v1-grid.png", "cat-v1-p1-w1.png")
    desk.previews(other, "cat-v1-r2-grid.png")
    (desk.job(job).samples_dir / "notes.txt").write_bytes(b"")
    (desk.job(job).path / "by hand.safetensors").write_bytes(b"")
    training, folder = desk.app.training, desk.job(job).path
    for file in ("cat-v1.safetensors", "samples/cat-v1-grid.png", "samples/cat-v1-p1-w1.png"):
        assert training.file_path(job, file) == folder / file
    wrong = [
        *("", ".", "..", "samples", "samples/", "samples/notes.txt", "samples/../job.json", "job.json", "worker.log"),
        *("by hand.safetensors", "../cat-v1-r2/cat-v1-r2.safetensors", "../cat-v1-r2/samples/cat-v1-r2-grid.png"),
        *(str(folder / "cat-v1.safetensors"), "samples\\cat-v1-grid.png", "./cat-v1.safetensors", "CAT-V1.safetensors"),
    ]
    for file in wrong:
        with pytest.raises(WorkspaceError, match="There is no file"):
            training.file_path(job, file)
    with pytest.raises(WorkspaceError, match="There is no file"):
        training.file_path(other, "gone.safetensors")
    for unknown in ("", "jobs/../projects", "projects/cat/versions/v1/trains/..", str(folder)):
        with pytest.raises(WorkspaceError, match=r"no job|does not exist"):
            training.file_path(unknown, "cat-v1.safetensors")


def test_log_and_events(desk: Desk) -> None:
    job = desk.finished()
    desk.job(job).log_path.write_text("\n".join(f"line {number}" for number in range(100)), encoding="utf-8")
    assert desk.app.training.log(job).splitlines() == [f"line {number}" for number in range(60, 100)]
    found, offset = desk.app.training.events(job, 0)
    assert [event["kind"] for event in found] == ["started", "saved", "finished"]
    assert json.dumps(found)
    assert desk.app.training.events(job, offset) == ([], offset)
    desk.tell(desk.job(job), ev.Note("info", "猫"))
    later, end = desk.app.training.events(job, offset)
    assert ([event["message"] for event in later], end > offset) == (["猫"], True)
    assert len(desk.app.training.events(job, -5)[0]) == 4
    assert desk.app.training.events(job, 10**9) == ([], 10**9)


def test_curve(desk: Desk) -> None:
    steps = [ev.Step(step=n, epoch=1, loss=1 / n, lr=1e-4, s_per_step=0.1) for n in range(1, 1001)]
    job = desk.train(events=[ev.Started(pid=1, total_steps=1000, step=0), *steps])
    curve = desk.app.training.curve(job)
    assert len(curve) <= 400
    assert (curve[-1].step, curve[-1].lr) == (1000, 1e-4)
    assert desk.app.snapshot("cat", "v1").curve == curve


# --- previews afterwards ---


def test_previews_are_drawn_where_they_lack(desk: Desk) -> None:
    job = desk.finished(loras=["a.safetensors", "b.safetensors", "c.safetensors"], trigger_word="sks")
    desk.previews(job, "b-grid.png", "b-p1-w1.png")
    (desk.job(job).path / "c.safetensors").unlink()
    drawing = desk.app.training.draw_previews(job)
    spec = desk.job(drawing).read_spec()
    assert isinstance(spec, SamplesSpec)
    assert spec.loras == ("a.safetensors",)
    assert (desk.job(drawing).path / spec.train).resolve() == desk.job(job).path
    assert spec.settings.preview_prompts == ("sks",)
    (entry,) = desk.app.queue.entries()
    assert (entry.kind, entry.title) == ("preview", "cat v1: cat-v1")
    with pytest.raises(JobError, match="being drawn, or wait"):
        desk.app.training.draw_previews(job)
    desk.app.queue.cancel(drawing)
    desk.previews(job, "a-grid.png")
    with pytest.raises(JobError, match="has its previews"):
        desk.app.training.draw_previews(job)


def test_previews_that_were_not_wanted_are_drawn_when_asked_for(desk: Desk) -> None:
    drawing = desk.app.training.draw_previews(desk.finished(generate_previews=False))
    spec = desk.job(drawing).read_spec()
    assert isinstance(spec, SamplesSpec)
    assert spec.settings.preview_prompts == ("cat",)
