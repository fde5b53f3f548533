"""A job's folder: its spec, its requests, and the status that its events tell."""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec
import pytest

from lora_train.core import events as ev
from lora_train.core.config import TrainSettings
from lora_train.core.errors import JobError
from lora_train.core.jobs import JobFolder
from lora_train.core.specs import BenchSpec, CompareSpec, JobSpec, PreviewSpec, TrainSpec
from tests.unit.core.folding import status_of

SETTINGS = TrainSettings(base_model="demo", preview_prompts=("猫",), preview_weights=(0.0, 0.6))
SPECS: list[JobSpec] = [
    TrainSpec(
        name="自作-v1",
        dataset="../../dataset/processed",
        dataset_fingerprint="0" * 32,
        trash="../../../../../../trash",
        settings=SETTINGS,
        concept="自作",
        publish_to="/models/Lora",
        created=1.5,
        version="v1",
    ),
    PreviewSpec(lora="a.safetensors", out="a.png", settings=SETTINGS),
    CompareSpec(
        lora="a.safetensors",
        prompts=("sks",),
        ordinary_prompts=("a red circle",),
        pictures="pictures",
        settings=SETTINGS,
    ),
    BenchSpec(settings=SETTINGS, pictures=20, steps=5),
]


@pytest.fixture
def job(tmp_path: Path) -> JobFolder:
    return JobFolder(tmp_path / "自作-v1")


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: type(spec).__name__)
def test_spec_comes_back(spec: JobSpec, job: JobFolder) -> None:
    job.create(spec)
    assert JobFolder(job.path).read_spec() == spec
    assert sorted(path.name for path in job.path.iterdir()) == ["job.json"]
    assert msgspec.json.decode(job.spec_path.read_bytes())["kind"] in ("train", "preview", "compare", "bench")


def test_spec_is_written_once(job: JobFolder) -> None:
    job.create(SPECS[0])
    before = job.spec_path.read_bytes()
    with pytest.raises(JobError, match="already holds a job"):
        job.create(SPECS[1])
    assert job.spec_path.read_bytes() == before


def test_folders_that_are_no_job(job: JobFolder, tmp_path: Path) -> None:
    with pytest.raises(JobError, match="is not a job") as error:
        job.read_spec()
    assert "lora-train train" in error.value.hint
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(JobError, match="is not a job"):
        JobFolder(tmp_path / "file").read_spec()


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"kind":"dance"}', b'{"kind":"train","name":"x"}', b'{"kind":"\xff"}']
)
def test_damaged_spec_is_named(content: bytes, job: JobFolder) -> None:
    job.path.mkdir()
    job.spec_path.write_bytes(content)
    with pytest.raises(JobError) as error:
        job.read_spec()
    assert str(job.spec_path) in error.value.message


def test_requests(job: JobFolder) -> None:
    job.path.mkdir()
    assert job.requested() is None
    job.request("pause")
    assert job.requested() == "pause"
    job.request("stop")
    assert job.requested() == "stop", "stopping wins: it saves more"
    job.clear_requests()
    job.clear_requests()
    assert job.requested() is None
    assert list(job.path.iterdir()) == []


def test_heartbeat_and_log(job: JobFolder) -> None:
    assert job.silent_s() == 0.0
    assert job.log_tail() == ""
    job.path.mkdir()
    job.events_path.write_bytes(b"")
    os.utime(job.events_path, (time.time() - 100, time.time() - 100))
    assert 99 < job.silent_s() < 110
    job.log_path.write_bytes("\n".join(f"行 {index}" for index in range(30)).encode() + b"\n\xff broken")
    assert job.log_tail(3).splitlines() == ["行 28", "行 29", "\ufffd broken"]


def test_the_tail_of_a_long_log_is_read_alone(job: JobFolder) -> None:
    job.path.mkdir()
    with job.log_path.open("wb") as stream:
        stream.truncate(4 * 2**30)  # a sparse file: it takes no room
        stream.seek(0, os.SEEK_END)
        stream.write(b"\nlast but one\nlast\n")
    begun = time.process_time()
    assert job.log_tail(2) == "last but one\nlast"
    assert time.process_time() - begun < 1


def test_what_was_told_since(job: JobFolder) -> None:
    assert job.told_bytes() == 0
    assert not job.has_told_since(0)
    job.path.mkdir()
    job.events_path.write_bytes(b'{"kind":"note","level":"info","mess')
    told = job.told_bytes()
    writer = ev.EventWriter(job.events_path)
    assert not job.has_told_since(told), "the end of the half line is nothing new"
    writer.write(ev.Started(pid=7))
    writer.close()
    assert job.has_told_since(told)


# --- status ---


def step(number: int, loss: float, s_per_step: float = 0.5, epoch: int = 1) -> ev.Step:
    return ev.Step(step=number, epoch=epoch, loss=loss, lr=1e-4, s_per_step=s_per_step, t=float(number))


STARTED = ev.Started(pid=7, total_steps=100, epochs=4, device="CPU", step=0, t=1.0)


def test_nothing_happened_yet() -> None:
    status = status_of([])
    assert (status.state, status.pid, status.loss) == ("waiting", 0, None)


def test_running() -> None:
    status = status_of([ev.Started(pid=7), ev.Phase("encoding the pictures", 3, 20), STARTED])
    assert (status.state, status.pid, status.device) == ("running", 7, "CPU")
    assert (status.phase, status.phase_done, status.phase_total) == ("encoding the pictures", 3, 20)
    assert (status.total_steps, status.epochs, status.step) == (100, 4, 0)


def test_smoothed_loss_and_remaining_time_by_hand() -> None:
    """The mean of the first steps; from step 50 on a fiftieth of each new one. Pace: a tenth of each new one."""
    status = status_of([STARTED, step(1, 0.4), step(2, 0.2), step(3, 0.6)])
    assert status.loss == pytest.approx((0.4 + 0.2 + 0.6) / 3)
    assert status.s_per_step == 0.5
    assert status.eta_s == pytest.approx(97 * 0.5)
    status = status_of([STARTED, step(60, 1.0), step(61, 2.0, s_per_step=1.5, epoch=3)])
    assert status.loss == pytest.approx(1.02)
    assert status.s_per_step == pytest.approx(0.6)
    assert status.eta_s == pytest.approx(39 * 0.6)
    assert (status.step, status.epoch, status.lr, status.last_event_t) == (61, 3, 1e-4, 61.0)


def test_nan_does_not_spoil_the_curve() -> None:
    status = status_of([STARTED, step(1, 0.4), step(2, float("nan"))])
    assert (status.step, status.loss) == (2, 0.4)


@pytest.mark.parametrize(
    ("last", "state", "at"),
    [
        (ev.Stopped(step=2), "stopped", 2),
        (ev.Paused(step=2), "paused", 2),
        (ev.Failed(error="JobError", message="why", hint="what to do"), "failed", 3),
        (ev.Finished(step=3, result={"grid": "a.png"}), "finished", 3),
    ],
)
def test_endings(last: ev.Event, state: str, at: int) -> None:
    status = status_of([STARTED, step(3, 0.4), last])
    assert (status.state, status.step) == (state, at)
    assert status.eta_s in (None, 0.0)
    assert status.result == ({"grid": "a.png"} if state == "finished" else {})
    assert (status.message, status.hint) == (("why", "what to do") if state == "failed" else ("", ""))


def test_going_on_after_a_failure() -> None:
    failed = ev.Failed(error="JobError", message="why", hint="what to do")
    training = ev.Phase("training")
    again = ev.Started(pid=8, total_steps=100, epochs=4, device="CPU", step=20)
    status = status_of([STARTED, training, step(30, 0.4), failed, ev.Started(pid=8)])
    assert (status.state, status.pid, status.message, status.step) == ("running", 8, "", 30)
    assert status.phase == ""
    status = status_of([STARTED, training, step(30, 0.4), failed, ev.Started(pid=8), again])
    assert (status.state, status.step, status.message, status.hint) == ("running", 20, "", "")


def test_files_are_told_once_and_in_order() -> None:
    events = [
        STARTED,
        ev.Saved("a.safetensors", step=10, epoch=1),
        ev.Sampled("samples/a.png", step=10),
        ev.Saved("b.safetensors", step=20, epoch=2),
        ev.Saved("a.safetensors", step=10, epoch=1),
        ev.Note("warning", "careful"),
    ]
    status = status_of(events)
    assert status.saved == ["b.safetensors", "a.safetensors"]
    assert status.sampled == ["samples/a.png"]
    assert status.notes == ["careful"]


def test_files_made_after_the_state_that_a_run_goes_back_to_are_gone() -> None:
    back = ev.Started(pid=8, total_steps=100, epochs=4, device="CPU", step=15)
    saves = [ev.Saved("a.safetensors", step=10, epoch=1), ev.Saved("b.safetensors", step=20, epoch=2)]
    samples = [ev.Sampled("a.png", step=10), ev.Sampled("b.png", step=20)]
    status = status_of([STARTED, *saves, *samples, back])
    assert (status.saved, status.sampled) == (["a.safetensors"], ["a.png"])
    status = status_of([STARTED, *saves, *samples, back, saves[1]])
    assert status.saved == ["a.safetensors", "b.safetensors"]
