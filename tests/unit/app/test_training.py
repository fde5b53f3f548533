"""What a training would do, and what can be done with trains; no worker is started."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from lora_train.app import planning
from lora_train.app.datasets import Datasets
from lora_train.core import events as ev
from lora_train.core.assets import DEMO_MODEL
from lora_train.core.config import TrainSettings
from lora_train.core.errors import ConfigError, JobError, ModelError, WorkspaceError
from lora_train.core.families import CheckpointFacts
from lora_train.core.host import BaseModelChoice
from lora_train.core.specs import SamplesSpec, TrainSpec
from lora_train.launch import launcher
from lora_train.launch.queue import JobQueue

if TYPE_CHECKING:
    from tests.unit.app.conftest import Desk

PICTURES = [f"9_cat/{number}.png" for number in range(18)]


def save(desk: Desk, **settings: Any) -> None:
    desk.version()
    assert desk.app.settings.save("cat", "v1", train={"base_model": "demo", "hold_out": 0, **settings}) == []


# --- the sum ---


def test_forecast_by_hand(desk: Desk) -> None:
    """The tutorial's own sum: 18 pictures x 9 repeats x 10 epochs / batch 1."""
    desk.trained(*PICTURES)
    save(desk, epochs=10)
    forecast = desk.app.training.forecast("cat", "v1")
    assert (forecast.pictures, forecast.repeats, forecast.epochs, forecast.batch_size) == (18, 9, 10, 1)
    assert (forecast.views_per_epoch, forecast.total_steps, forecast.is_exact) == (162, 1620, True)
    assert (forecast.regularisation_pictures, forecast.seconds, forecast.problems) == (0, None, [])


@pytest.mark.parametrize(
    ("settings", "steps", "is_exact"),
    [
        ({"batch_size": 4}, 41 * 2, False),  # 162 = 40 x 4 + 2
        ({"batch_size": 3}, 54 * 2, True),
        ({"batch_size": 256}, 2, False),
        ({"batch_size": 4, "gradient_accumulation_steps": 4}, 11 * 2, False),
        ({"repeats": 1, "batch_size": 6, "gradient_accumulation_steps": 3}, 2, True),
        ({"repeats": 2, "batch_size": 5}, 8 * 2, False),
    ],
)
def test_batches_and_accumulation_by_hand(desk: Desk, settings: dict[str, Any], steps: int, is_exact: bool) -> None:
    desk.trained(*PICTURES)
    save(desk, epochs=2, **settings)
    forecast = desk.app.training.forecast("cat", "v1")
    assert (forecast.total_steps, forecast.is_exact) == (steps, is_exact)


def test_several_sizes_folders_and_regularisation_by_hand(desk: Desk) -> None:
    """Pictures of different shapes never share a batch; a regularisation view comes with each training view."""
    desk.trained("3_cat/wide.png", size=(128, 64))
    desk.trained("5_dog/a.png", "5_dog/b.png")
    save(desk, epochs=4, batch_size=4)
    forecast = desk.app.training.forecast("cat", "v1")
    assert (forecast.pictures, forecast.repeats, forecast.views_per_epoch) == (3, None, 13)
    assert (forecast.total_steps, forecast.is_exact) == ((1 + 3) * 4, False)
    desk.trained("reg/1_person/r.png", "reg/s.png")
    forecast = desk.app.training.forecast("cat", "v1")
    assert (forecast.pictures, forecast.regularisation_pictures, forecast.views_per_epoch) == (3, 2, 26)
    assert forecast.total_steps == (1 + 6) * 4  # 3 wide ones; 10 + 13 square ones


def test_time_is_that_of_the_last_training_like_it(desk: Desk) -> None:
    desk.trained(*PICTURES)
    save(desk, epochs=1)
    save_speed(desk, "demo", 0.5)
    assert desk.app.training.forecast("cat", "v1").seconds == pytest.approx(81)
    save(desk, batch_size=2)
    assert desk.app.training.forecast("cat", "v1").seconds is None, "another batch size is another pace"


def save_speed(desk: Desk, base_model: str, s_per_step: float) -> None:
    from lora_train.app.paces import remember_pace
    from lora_train.core.jobs import JobStatus

    spec = desk.job(desk.train("measured", batch_size=1, base_model=base_model)).read_spec()
    assert isinstance(spec, TrainSpec)
    remember_pace(desk.workspace.root, spec, JobStatus(s_per_step=99.0, step=9))
    remember_pace(desk.workspace.root, spec, JobStatus(s_per_step=s_per_step, step=10))
    remember_pace(desk.workspace.root, spec, JobStatus(s_per_step=None, step=10))


def test_many_epochs_are_counted_at_once(desk: Desk) -> None:
    """The sum is asked for every second."""
    desk.trained(*PICTURES, "reg/1_person/r.png", "reg/s.png", "reg/t.png")
    save(desk, epochs=10_000)
    desk.app.training.forecast("cat", "v1")
    begun = time.perf_counter()
    forecast = desk.app.training.forecast("cat", "v1")
    assert time.perf_counter() - begun < 0.2
    assert forecast.total_steps == 10_000 * 324


def test_why_it_can_not_begin_all_at_once(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.version()
    with desk.workspace.find_version("cat", "v1").changing() as info:
        info.train = {"rank": 0, "repeats": 0, "base_model": "not there.safetensors", "vae": "nor this.pt"}
    monkeypatch.setattr(Datasets, "is_updating", lambda self, version: True)
    with pytest.raises(ConfigError) as error:
        desk.app.training.begin("cat", "v1")
    text = "\n".join(error.value.problems)
    for part in (
        "rank (Net dim (rank)): 0",
        "repeats",
        "not there.safetensors does not exist",
        "VAE",
        "no pictures yet",
    ):
        assert part in text
    assert "being updated" in text
    assert len(error.value.problems) == 6
    assert desk.app.training.list("cat", "v1") == []
    assert desk.app.queue.entries() == []


def test_pictures_that_still_wait(desk: Desk) -> None:
    save(desk)
    desk.app.datasets.add("cat", "v1", [("a.png", desk.picture())])
    assert desk.app.training.forecast("cat", "v1").problems == [
        "The uploaded pictures are not in the dataset yet: press Update Dataset."
    ]


def test_a_resolution_without_buckets(desk: Desk) -> None:
    desk.trained("4_cat/a.png")
    save(desk, resolution=32, bucket_step_px=64)
    assert ["bucket step" in problem for problem in desk.app.training.forecast("cat", "v1").problems] == [True]


def test_no_base_model(desk: Desk) -> None:
    desk.trained("4_cat/a.png")
    assert desk.app.training.forecast("cat", "v1").problems == ["Train base model: choose a checkpoint."]


# --- base models ---


def test_base_models(desk: Desk, tmp_path: Path) -> None:
    desk.host.checkpoints = [BaseModelChoice("anime/model", str(DEMO_MODEL))]
    choices = desk.app.training.base_models()
    assert [choice.name for choice in choices] == ["anime/model", "Small demo model"]
    named = desk.app.training.base_model(str(DEMO_MODEL))
    assert (named.name, named.problem) == ("anime/model", "")
    demo = desk.app.training.base_model("demo")
    assert (demo.name, demo.prediction, demo.resolution_px, demo.clip_skip_matters) == (
        *("Small demo model", "epsilon", 64, True),
    )
    assert "1" in demo.family
    text = tmp_path / "text.safetensors"
    text.write_bytes(b"I am a text, and long enough to be read as a header.")
    for path in (text, tmp_path / "gone.ckpt"):
        snapshot = desk.app.training.base_model(str(path))
        assert path.name in snapshot.problem
        assert snapshot.family == ""


def test_an_open_page_takes_no_paths(desk: Desk) -> None:
    """What the list offers may be chosen, also as the default was saved while the page was local."""
    desk.trained("4_cat/a.png")
    save(desk, base_model=str(DEMO_MODEL), vae=str(DEMO_MODEL))
    desk.host.is_local = False
    problems = desk.app.training.forecast("cat", "v1").problems
    assert len(problems) == 2
    assert all("takes no paths" in problem for problem in problems)
    assert "takes no paths" in desk.app.training.base_model("/etc/passwd").problem
    with pytest.raises(ConfigError, match="takes no paths"):
        desk.app.training.begin("cat", "v1")
    desk.host.checkpoints = [BaseModelChoice("model", str(DEMO_MODEL))]
    save(desk, base_model=str(DEMO_MODEL), vae="")
    assert desk.app.training.forecast("cat", "v1").problems == []


def test_a_header_is_read_once(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.trained("4_cat/a.png")
    save(desk)
    planning._read_header.cache_clear()
    read: list[Path] = []
    original = planning.read_checkpoint
    monkeypatch.setattr(planning, "read_checkpoint", lambda path: read.append(path) or original(path))
    for _ in range(3):
        assert desk.app.training.forecast("cat", "v1").problems == []
    assert len(read) == 1


# --- beginning ---


def test_begin_writes_the_job_and_puts_it_into_the_queue(desk: Desk) -> None:
    desk.trained(*PICTURES)
    save(desk, epochs=3, trigger_word="sks")
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
    assert trains[0].summary == "AdamW 0.0001 · rank 16 · batch 1 · 3 epochs"


def test_names_in_the_hosts_folder_are_left_alone(desk: Desk) -> None:
    desk.trained("4_cat/a.png")
    save(desk)
    (desk.host.root / "sub").mkdir(parents=True)
    (desk.host.root / "sub" / "Cat-v1-000002.safetensors").write_bytes(b"somebody's")
    assert desk.app.training.begin("cat", "v1").endswith("/cat-v1-r2")


@pytest.mark.parametrize("publishes", [True, False])
def test_auto_publish_is_the_hosts_choice(desk: Desk, publishes: bool) -> None:
    desk.trained("4_cat/a.png")
    save(desk)
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
    save(desk, rank=1024, save_every_epochs=1, epochs=10_000)
    with pytest.raises(WorkspaceError, match="MB free"):
        desk.app.training.begin("cat", "v1")
    assert desk.app.training.list("cat", "v1") == []


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
    with pytest.raises(JobError, match=r"can't be read|not a job"):
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
    save(desk)
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


# --- a LoRA that is taught more ---


def write_lora(path: Path, inputs: int = 768, part: str = "lora_down.weight", modules: int = 1) -> Path:
    """A LoRA of layers that read the text, whose width tells the family."""
    tensors = {}
    for number in range(modules):
        name = f"lora_unet_down_blocks_0_attentions_{number}_transformer_blocks_0_attn2_to_k"
        tensors[f"{name}.{part}"] = np.ones((2, inputs), dtype=np.float16)
        tensors[f"{name}.lora_up.weight"] = np.ones((320, 2), dtype=np.float16)
        tensors[f"{name}.alpha"] = np.array(1.0, dtype=np.float32)
    save_file(tensors, path)
    return path


def test_a_lora_to_continue_from(desk: Desk) -> None:
    desk.trained("4_cat/a.png")
    lora = write_lora(desk.root / "自作 LoRA.safetensors")
    save(desk, continue_from=str(lora))
    assert desk.app.training.forecast("cat", "v1").problems == []
    spec = desk.job(desk.app.training.begin("cat", "v1")).read_spec()
    assert isinstance(spec, TrainSpec)
    assert Path(spec.settings.continue_from).is_absolute()
    assert "continues 自作 LoRA" in desk.app.training.list("cat", "v1")[0].summary


def test_why_a_lora_can_not_be_continued(desk: Desk) -> None:
    """Each told in one sentence before anything is made, from the header alone."""
    desk.trained("4_cat/a.png")
    text = desk.root / "text.safetensors"
    text.write_bytes(b"I am a text, and long enough to be read as a header.")
    for path, says in (
        (desk.root / "gone.safetensors", "does not exist"),
        (text, "neither a safetensors file nor a checkpoint"),
        (DEMO_MODEL, "is not a LoRA"),
        (
            write_lora(desk.root / "xl.safetensors", 2048),
            "is a LoRA for SDXL, but the base model is of Stable Diffusion 1",
        ),
        (write_lora(desk.root / "loha.safetensors", part="hada_w1_a"), "hada_w1_a, which no plain LoRA has"),
        (write_lora(desk.root / "dora.safetensors", part="dora_scale"), "dora_scale, which no plain LoRA has"),
    ):
        save(desk, continue_from=str(path))
        (problem,) = desk.app.training.forecast("cat", "v1").problems
        assert says in problem
        with pytest.raises(ConfigError):
            desk.app.training.begin("cat", "v1")
    assert desk.app.training.list("cat", "v1") == []


def test_an_open_page_continues_from_no_path(desk: Desk) -> None:
    desk.trained("4_cat/a.png")
    save(desk, continue_from=str(write_lora(desk.root / "a.safetensors")))
    desk.host.is_local = False
    (problem,) = desk.app.training.forecast("cat", "v1").problems
    assert problem.startswith("Continue from LoRA: leave it empty")


def test_the_disk_is_measured_by_the_lora_itself(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """2 x its size for each of 100 saves, and 6 for each of three states, all of twice its size."""
    lora = write_lora(desk.root / "a.safetensors")
    size = lora.stat().st_size
    settings = TrainSettings(continue_from=str(lora), epochs=99, save_every_epochs=1, rank=1024)
    needed = (100 + 18) * 2 * size + 200_000_000

    def usage(free: int) -> Any:
        return lambda path: shutil._ntuple_diskusage(0, 0, free)  # type: ignore[attr-defined]

    monkeypatch.setattr(shutil, "disk_usage", usage(needed))
    planning.check_disk(desk.root, settings, CheckpointFacts("sd1"))
    monkeypatch.setattr(shutil, "disk_usage", usage(needed - 1))
    with pytest.raises(WorkspaceError, match="MB free"):
        planning.check_disk(desk.root, settings, CheckpointFacts("sd1"))
