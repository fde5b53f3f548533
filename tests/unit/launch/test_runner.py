"""The thread that works the queue off: one job at a time, whatever breaks, and over restarts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

import lora_train
from lora_train.core import events as ev
from lora_train.core.jobs import JobFolder
from lora_train.launch import launcher

if TYPE_CHECKING:
    from tests.unit.launch.conftest import Hall


def test_one_after_the_other(hall: Hall) -> None:
    inside: list[str] = []

    @contextmanager
    def around(job: JobFolder) -> Iterator[None]:
        inside.append(job.path.name)
        hall.log.append(f"in {job.path.name}")
        assert len(inside) == 1, "one job at a time"
        yield
        inside.remove(job.path.name)
        hall.log.append(f"out {job.path.name}")

    jobs = [hall.add(name) for name in "abc"]
    hall.queue.move("jobs/c", 1)
    hall.runner(around)
    order = [jobs[2], jobs[0], jobs[1]]
    for job in order:
        hall.wait_for(job, "running")
        assert [hall.state(other) for other in order].count("running") == 1
        hall.end(job)
    hall.wait(lambda: hall.queue.take_next() is None)
    assert hall.log == [line for name in "cab" for line in (f"in {name}", f"out {name}", f"{name} finished")]
    assert hall.starts == 3


def test_a_job_that_is_added_later(hall: Hall) -> None:
    hall.runner()
    time.sleep(0.1)
    job = hall.add("a", "end")
    hall.wait_for(job, "finished")


@pytest.mark.parametrize("request_", ["stop", "pause"])
def test_stopped_and_resumed(hall: Hall, request_: str) -> None:
    job = hall.add("a")
    hall.runner()
    hall.wait_for(job, "running")
    job.request("stop" if request_ == "stop" else "pause")
    state = "stopped" if request_ == "stop" else "paused"
    hall.wait(lambda: hall.log == [f"a {state}"])
    hall.wait(lambda: hall.queue.running() == "")
    job.clear_requests()
    hall.queue.add("jobs/a")
    hall.wait_for(job, "running")
    hall.end(job)
    hall.wait(lambda: hall.log == [f"a {state}", "a finished"])


def test_stopped_before_its_worker_was_started(hall: Hall) -> None:
    """While the host finishes a picture, the card is not free yet."""
    is_free = threading.Event()

    @contextmanager
    def around(job: JobFolder) -> Iterator[None]:
        is_free.wait(10)
        yield

    job = hall.add("a")
    hall.add("b", "end")
    hall.runner(around)
    hall.wait(lambda: hall.queue.is_starting("jobs/a"))
    job.request("stop")
    is_free.set()
    hall.wait(lambda: hall.log == ["a stopped", "b finished"])
    assert hall.events(job) == ["Stopped"]
    assert hall.starts == 1


def test_stopped_while_its_worker_comes_up(hall: Hall) -> None:
    job = hall.add("a", "slow")
    hall.runner()
    hall.wait(lambda: hall.starts == 1)
    job.request("pause")
    (job.path / "slow").unlink()
    hall.wait(lambda: hall.log == ["a paused"])


# --- what breaks ---


def test_a_worker_that_can_not_start_fails_with_its_log(hall: Hall) -> None:
    broken = hall.add("a", "broken")
    hall.add("b", "end")
    hall.runner()
    hall.wait(lambda: hall.log == ["a failed", "b finished"])
    status = launcher.read_status(broken)
    assert status.message == "The worker process could not start.\nThe end of its log: no module named torch"


def test_a_worker_that_dies_without_a_word(hall: Hall) -> None:
    job = hall.add("a")
    hall.add("b", "end")
    hall.runner()
    hall.wait_for(job, "running")
    psutil.Process(hall.pid(job)).kill()
    hall.wait(lambda: hall.log == ["a failed", "b finished"])
    assert "ended without a word" in launcher.read_status(job).message
    assert hall.events(job) == ["Started"]


@pytest.mark.parametrize("at", ["enter", "call"])
def test_a_host_that_can_not_free_the_card(hall: Hall, at: str) -> None:
    @contextmanager
    def refuse() -> Iterator[None]:
        raise RuntimeError("CUDA is gone")
        yield

    def around(job: JobFolder) -> AbstractContextManager[None]:
        if job.path.name == "a" and at == "call":
            raise RuntimeError("CUDA is gone")
        return refuse() if job.path.name == "a" else nullcontext()

    job = hall.add("a", "end")
    hall.add("b", "end")
    hall.runner(around)
    hall.wait(lambda: hall.log == ["a failed", "b finished"])
    assert launcher.read_status(job).message == "It could not be started: CUDA is gone"
    assert hall.starts == 1


def test_a_host_that_can_not_free_the_card_for_a_worker_that_has_it(hall: Hall) -> None:
    """After a restart: it is not started again, not told to have failed, and nothing else is started beside it."""
    job = hall.add("a")
    hall.add("b", "end")
    first = hall.runner()
    hall.wait_for(job, "running")
    first.stop()
    first.join(10)
    tries: list[str] = []

    def around(job: JobFolder) -> AbstractContextManager[None]:
        tries.append(job.path.name)
        if len(tries) < 3:
            raise RuntimeError("CUDA is gone")
        return nullcontext()

    hall.runner(around)
    hall.wait(lambda: len(tries) == 3)
    assert (hall.state(job), hall.starts) == ("running", 1)
    hall.end(job)
    hall.wait(lambda: hall.log == ["a finished", "b finished"])
    assert tries == ["a", "a", "a", "b"]
    assert hall.events(job) == ["Started", "Finished"]


def test_a_host_that_can_not_take_the_card_back(hall: Hall) -> None:
    """The job itself came to its end, and is told so."""

    @contextmanager
    def around(job: JobFolder) -> Iterator[None]:
        yield
        raise RuntimeError("CUDA is gone")

    job = hall.add("a", "end")
    hall.add("b", "end")
    hall.runner(around)
    hall.wait(lambda: hall.log == ["a finished", "b finished"])
    assert hall.events(job) == ["Started", "Finished"]


def test_what_comes_after_a_job_may_break(hall: Hall) -> None:
    def on_end(job: JobFolder) -> None:
        hall.log.append(job.path.name)
        raise RuntimeError("the LoRA folder is gone")

    hall.add("a", "end")
    hall.add("b", "end")
    hall.runner(on_end=on_end)
    hall.wait(lambda: hall.queue.take_next() is None)
    assert hall.log == ["a", "b"]


def test_a_job_whose_folder_is_gone(hall: Hall) -> None:
    def around(job: JobFolder) -> AbstractContextManager[None]:
        job.read_spec()
        return nullcontext()

    hall.queue.add("jobs/gone")
    hall.add("b", "end")
    hall.runner(around)
    hall.wait(lambda: "b finished" in hall.log)
    assert not (hall.root / "jobs" / "gone").exists()


def test_a_disk_that_is_away_for_a_moment(hall: Hall) -> None:
    hall.job("a", "end")
    (hall.root / "queue.json").mkdir()
    hall.runner()
    time.sleep(0.2)
    (hall.root / "queue.json").rmdir()
    hall.queue.add("jobs/a")
    hall.wait(lambda: hall.log == ["a finished"])


# --- restarts ---


def test_stop_leaves_the_worker_and_the_next_runner_finds_it(hall: Hall) -> None:
    entered: list[str] = []

    @contextmanager
    def around(job: JobFolder) -> Iterator[None]:
        entered.append("in")
        yield
        entered.append("out")

    job = hall.add("a")
    hall.add("b", "end")
    first = hall.runner(around)
    hall.wait_for(job, "running")
    first.stop()
    first.join(10)
    assert hall.log == []
    assert entered == ["in", "out"], "the host gets its card back, whatever happens"
    assert hall.queue.running() == "jobs/a"
    assert hall.state(job) == "running"

    hall.runner(around)
    time.sleep(0.2)
    assert hall.state(job) == "running"
    assert hall.starts == 1, "attached to, not started again"
    hall.end(job)
    hall.wait(lambda: hall.log == ["a finished", "b finished"])
    assert entered == ["in", "out"] * 3


def test_a_second_runner_waits_for_the_first_ones_end(hall: Hall) -> None:
    first = hall.runner(on_end=lambda job: hall.log.append("first"))
    job = hall.add("a")
    hall.wait_for(job, "running")
    second = hall.runner(on_end=lambda job: hall.log.append("second"))
    hall.add("b", "end")
    time.sleep(0.2)
    assert hall.starts == 1
    assert second.is_alive()
    first.stop()
    hall.end(job)
    hall.wait(lambda: len(hall.log) == 2)
    assert hall.log == ["second", "second"]


def test_a_job_that_ended_while_nobody_watched(hall: Hall) -> None:
    """It is told of, and the host is not bothered."""
    job = hall.add("a")
    hall.queue.take_next()
    writer = ev.EventWriter(job.events_path)
    writer.write(ev.Started(pid=2**22 + 1, step=0), ev.Finished(step=9))
    writer.close()
    hall.runner(around=lambda job: pytest.fail("the card is not needed"))
    hall.wait(lambda: hall.log == ["a finished"])
    assert hall.starts == 0


def test_a_job_that_died_while_nobody_watched_is_not_started_again(hall: Hall) -> None:
    job = hall.add("a")
    hall.queue.take_next()
    writer = ev.EventWriter(job.events_path)
    writer.write(ev.Started(pid=2**22 + 1, step=0))
    writer.close()
    hall.runner()
    hall.wait(lambda: hall.log == ["a failed"])
    assert hall.starts == 0


def test_a_job_that_was_taken_but_never_started_is_started(hall: Hall) -> None:
    job = hall.job("a", "end")
    writer = ev.EventWriter(job.events_path)
    writer.write(ev.Started(pid=2**22 + 1, step=0), ev.Paused(step=3))  # of an earlier turn
    writer.close()
    hall.queue.add("jobs/a")
    assert hall.queue.take_next() is not None
    hall.runner()
    hall.wait(lambda: hall.log == ["a finished"])
    assert hall.starts == 1


_RUNNER = """
import sys
from contextlib import nullcontext
from pathlib import Path
from lora_train.launch import launcher
from lora_train.launch.queue import JobQueue, Runner
sys.path.insert(0, sys.argv[2])
from conftest import start_stand_in

launcher.start_worker = start_stand_in
runner = Runner(JobQueue(Path(sys.argv[1])), lambda job: nullcontext(), lambda job: None)
runner.start()
runner.join()
"""


def runner_process(hall: Hall) -> subprocess.Popen[bytes]:
    package_root = Path(lora_train.__file__).parents[1]
    command = [sys.executable, "-c", _RUNNER, str(hall.root), str(Path(__file__).parent)]
    return subprocess.Popen(command, cwd=package_root, env={**os.environ, "PYTHONPATH": str(package_root)})


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
@pytest.mark.parametrize("moment", ["while it works", "while it comes up"])
def test_the_runners_process_is_killed(hall: Hall, moment: str) -> None:
    """The worker goes on; the next runner finds it, waits for its end and takes the next job."""
    job = hall.add("a", *(["slow"] if moment == "while it comes up" else []))
    hall.add("b", "end")
    program = runner_process(hall)
    if moment == "while it works":
        hall.wait_for(job, "running")
    else:
        hall.wait(lambda: [p for p in psutil.process_iter(["cmdline"]) if str(job.path) in (p.info["cmdline"] or [])])
    program.send_signal(signal.SIGKILL)
    program.wait()
    workers = [p.pid for p in psutil.process_iter(["cmdline"]) if str(job.path) in (p.info["cmdline"] or [])]
    assert len(workers) == 1
    if moment == "while it comes up":
        (job.path / "slow").unlink()
        hall.wait_for(job, "running")

    hall.runner()
    time.sleep(0.2)
    assert (hall.state(job), hall.pid(job), hall.starts) == ("running", workers[0], 0)
    assert hall.queue.waiting() == ["jobs/b"]
    hall.end(job)
    hall.wait(lambda: hall.log == ["a finished", "b finished"])
    assert hall.starts == 1


def test_a_worker_of_an_earlier_runner_that_had_not_told_yet(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers come up; the second gives way (it finds the job locked), and the first is waited for."""
    job = hall.add("a")
    hall.add("b", "end")
    hall.queue.take_next()
    real = launcher.start_worker

    def late(folder: JobFolder) -> launcher.Worker:
        if folder != job and folder.path != job.path:
            return real(folder)
        real(folder)  # the earlier runner's
        hall.wait_for(job, "running")
        worker = launcher.Worker([sys.executable, "-I", "-S", "-c", "raise SystemExit(2)"])
        worker.told_before_bytes = 0
        return worker

    monkeypatch.setattr(launcher, "start_worker", late)
    hall.runner()
    hall.wait_for(job, "running")
    time.sleep(0.3)
    assert hall.queue.waiting() == ["jobs/b"], "the card is taken"
    hall.end(job)
    hall.wait(lambda: hall.log == ["a finished", "b finished"])
    assert "Failed" not in hall.events(job)


def test_the_process_that_watches_needs_no_torch() -> None:
    code = "import sys, lora_train.launch.queue, lora_train.launch.launcher; print(sorted(sys.modules))"
    package_root = Path(lora_train.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=package_root, capture_output=True, text=True, check=True)
    assert not {"torch", "diffusers", "transformers", "numpy", "PIL"} & set(eval(done.stdout))
