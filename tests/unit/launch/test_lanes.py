"""Several cards: some jobs run beside the first card's, one on each, and are found again there."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lora_train.core.config import TrainSettings
from lora_train.core.errors import JobError
from lora_train.core.jobs import JobFolder
from lora_train.core.specs import BenchSpec
from lora_train.launch import launcher
from lora_train.launch.cards import cards, numbered
from lora_train.launch.queue import JobQueue, Turn

if TYPE_CHECKING:
    from tests.unit.launch.conftest import Hall


def _is_run(job: JobFolder) -> bool:
    return job.path.name.startswith("run")


def test_one_job_on_each_card(hall: Hall) -> None:
    """Runs take any card; others the first alone, for which the host makes room."""
    inside: list[str] = []

    @contextmanager
    def around(job: JobFolder) -> Iterator[None]:
        inside.append(job.path.name)
        yield

    jobs = {name: hall.add(name) for name in ("other-1", "run-1", "run-2", "other-2", "run-3")}
    hall.runner(around, cards=lambda: ["0", "1", "2"], may_run_beside=_is_run)
    for name in ("other-1", "run-1", "run-2"):
        hall.wait_for(jobs[name], "running")
    assert hall.queue.running() == "jobs/other-1"
    assert sorted(hall.queue.all_running()) == ["jobs/other-1", "jobs/run-1", "jobs/run-2"]
    assert [hall.queue.place_of(f"jobs/{name}") for name in jobs] == [0, 0, 0, 1, 2]
    time.sleep(0.2)
    assert hall.queue.waiting() == ["jobs/other-2", "jobs/run-3"], "every card has its job"
    hall.end(jobs["run-2"])
    hall.wait_for(jobs["run-3"], "running")
    hall.end(jobs["other-1"])
    hall.wait_for(jobs["other-2"], "running")
    for job in jobs.values():
        hall.end(job)
    hall.wait(lambda: not hall.queue.all_running())
    assert hall.cards["other-1"] == hall.cards["other-2"] == "", "the card that a worker takes by itself"
    assert {hall.cards["run-1"], hall.cards["run-2"]} == {"1", "2"}
    assert hall.cards["run-3"] == hall.cards["run-2"]
    assert inside == ["other-1", "other-2"]
    assert sorted(hall.log) == sorted(f"{name} finished" for name in jobs)


def test_one_card_takes_one_after_the_other(hall: Hall) -> None:
    jobs = [hall.add("run-1"), hall.add("run-2")]
    hall.runner(cards=lambda: ["0"], may_run_beside=_is_run)
    hall.wait_for(jobs[0], "running")
    time.sleep(0.2)
    assert hall.queue.waiting() == ["jobs/run-2"]


def test_ends_are_told_one_at_a_time(hall: Hall) -> None:
    """What comes after one run must not meet what comes after another; each then has left the queue."""
    inside: list[str] = []

    def on_end(job: JobFolder) -> None:
        inside.append(job.path.name)
        time.sleep(0.1)
        assert inside == [job.path.name]
        before = set(hall.queue.all_running())
        hall.log.append(f"{len(before)}")
        inside.clear()

    for name in ("run-1", "run-2", "run-3"):
        hall.add(name, "end")
    hall.runner(None, on_end, cards=lambda: ["0", "1", "2"], may_run_beside=_is_run)
    hall.wait(lambda: len(hall.log) == 3)
    assert hall.log[-1] == "1", "those that ended before are gone"


def test_runs_on_other_cards_are_found_again(hall: Hall) -> None:
    """Also by a start that sees one card only: it waits for their ends, and starts no more there."""
    jobs = [hall.add(f"run-{number}") for number in (1, 2, 3)]
    first = hall.runner(cards=lambda: ["0", "1"], may_run_beside=_is_run)
    for job in jobs[:2]:
        hall.wait_for(job, "running")
    first.stop()
    first.join()
    assert hall.log == []
    hall.runner(cards=lambda: ["0"], may_run_beside=_is_run)
    beside = next(job for job in jobs[:2] if hall.cards[job.path.name] == "1")
    hall.end(beside)
    hall.wait(lambda: hall.log == [f"{beside.path.name} finished"])
    hall.wait(lambda: hall.queue.cards_in_use() == [])
    time.sleep(0.2)
    assert hall.queue.waiting() == ["jobs/run-3"]
    assert hall.starts == 2


def test_a_job_on_another_card_is_in_the_queue_once(tmp_path: Path) -> None:
    queue = JobQueue(tmp_path)
    queue.add("jobs/run")
    assert queue.take_beside("1", lambda _: False) is None
    assert queue.take_beside("1", lambda _: True) == Turn("jobs/run", 0)
    assert queue.take_beside("1", lambda _: True) == Turn("jobs/run", 0), "until it is finished"
    assert queue.take_beside("2", lambda _: True) is None
    assert JobQueue(tmp_path).cards_in_use() == ["1"], "as after a restart"
    assert queue.is_starting("jobs/run")
    with pytest.raises(JobError, match="run waits or runs already"):
        queue.add("jobs/run")
    queue.finish("jobs/run")
    assert queue.all_running() == []


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        ({"CUDA_VISIBLE_DEVICES": "2, 0"}, ["2", "0"]),
        ({"CUDA_VISIBLE_DEVICES": ""}, []),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, []),
        ({"CUDA_VISIBLE_DEVICES": "0,1", "TRAIN_TOOLS_CARDS": "1"}, ["1"]),
    ],
)
def test_cards_that_the_environment_names(environ: dict[str, str], found: list[str]) -> None:
    assert cards(environ) == found


def test_cards_that_the_driver_lists() -> None:
    told = "GPU 0: NVIDIA GeForce RTX 3090 (UUID: GPU-1)\nGPU 1: NVIDIA GeForce RTX 3060 (UUID: GPU-2)\n"
    assert numbered(told) == ["0", "1"]
    assert numbered("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n") == []


def test_a_worker_sees_its_card_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    class Started:
        pid = 0

        def __init__(self, command: list[str], **options: Any) -> None:
            seen.update(options["env"], command=command)

    monkeypatch.setattr(launcher, "Worker", Started)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    job = JobFolder(tmp_path / "a")
    job.create(BenchSpec(settings=TrainSettings(), pictures=1, steps=1))
    launcher.start_worker(job)
    assert "CUDA_VISIBLE_DEVICES" not in seen
    assert "--processes" not in seen["command"]
    launcher.start_worker(job, card="GPU-2")
    assert seen["CUDA_VISIBLE_DEVICES"] == "GPU-2"
    launcher.start_worker(job, 3)
    assert seen["command"][-3:] == ["--processes", "3", str(job.path)]
