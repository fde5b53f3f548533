"""Jobs whose worker is a few lines: it tells that it runs, and ends when it is told to."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import psutil
import pytest

from lora_train.core import events as ev
from lora_train.core.config import TrainSettings
from lora_train.core.jobs import JobFolder
from lora_train.core.specs import BenchSpec
from lora_train.launch import launcher
from lora_train.launch.queue import JobQueue, Runner

WAIT_S = 60

_WORKER = """
import json, os, sys, time
folder = sys.argv[2]
def there(name): return os.path.exists(os.path.join(folder, name))
def tell(**event):
    with open(os.path.join(folder, "events.jsonl"), "a") as stream:
        stream.write(json.dumps({"t": time.time(), **event}) + "\\n")
if there("broken"):
    sys.exit("no module named torch")
while there("slow"):
    time.sleep(0.01)
tell(kind="started", pid=os.getpid(), total_steps=9, epochs=1, step=0)
while not there("end"):
    if there("stop") or there("pause"):
        tell(kind="stopped" if there("stop") else "paused", step=3)
        sys.exit()
    time.sleep(0.01)
tell(kind="finished", step=9)
"""
"""Files in the job's folder steer it. Its command line has what a worker is known by."""


def start_stand_in(job: JobFolder) -> launcher.Worker:
    """`launcher.start_worker`, with the stand-in for the worker."""
    told_before_bytes = job.told_bytes()
    with job.log_path.open("ab") as log:
        worker = launcher.Worker(
            [sys.executable, "-I", "-S", "-c", _WORKER, "lora_train.worker", str(job.path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    worker.told_before_bytes = told_before_bytes
    return worker


class Hall:
    """A queue, its jobs, and the runners that a test starts."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.queue = JobQueue(root)
        self.log: list[str] = []
        """What `around` and `on_end` were told, in order."""
        self.starts = 0
        self.cards: dict[str, str] = {}
        """The card that each job's worker was started for."""
        self._runners: list[Runner] = []

    def job(self, name: str, *files: str) -> JobFolder:
        job = JobFolder(self.root / "jobs" / name)
        job.create(BenchSpec(settings=TrainSettings(), pictures=1, steps=1))
        for file in files:
            (job.path / file).touch()
        return job

    def add(self, name: str, *files: str) -> JobFolder:
        job = self.job(name, *files)
        self.queue.add(f"jobs/{name}")
        return job

    def runner(
        self,
        around: Callable[[JobFolder], AbstractContextManager[Any]] | None = None,
        on_end: Callable[[JobFolder], None] | None = None,
        **options: Any,
    ) -> Runner:
        runner = Runner(
            self.queue,
            around or (lambda job: nullcontext()),
            on_end or (lambda job: self.log.append(f"{job.path.name} {self.state(job)}")),
            **options,
        )
        self._runners.append(runner)
        runner.start()
        return runner

    def state(self, job: JobFolder) -> str:
        return launcher.read_status(job).state

    def events(self, job: JobFolder) -> list[str]:
        return [type(event).__name__ for event in job.events()]

    def pid(self, job: JobFolder) -> int:
        return next(event.pid for event in reversed(job.events()) if isinstance(event, ev.Started))

    def wait(self, is_true: Callable[[], object]) -> None:
        until = time.monotonic() + WAIT_S
        while not is_true():
            assert time.monotonic() < until, "waited too long"
            time.sleep(0.01)

    def wait_for(self, job: JobFolder, state: str) -> None:
        self.wait(lambda: self.state(job) == state)

    def end(self, job: JobFolder) -> None:
        (job.path / "end").touch()

    def close(self) -> None:
        for runner in self._runners:
            runner.stop()
        for runner in self._runners:
            runner.join(WAIT_S)
        for process in psutil.process_iter(["cmdline"]):
            if "lora_train.worker" in (process.info["cmdline"] or []) and str(self.root) in str(
                process.info["cmdline"]
            ):
                process.kill()


@pytest.fixture
def hall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hall]:
    opened = Hall(tmp_path / "work space")

    def start(job: JobFolder, card: str = "") -> launcher.Worker:
        opened.starts += 1
        opened.cards[job.path.name] = card
        return start_stand_in(job)

    monkeypatch.setattr(launcher, "start_worker", start)
    monkeypatch.setattr("lora_train.launch.queue._POLL_S", 0.02)
    monkeypatch.setattr("lora_train.launch.queue._RETRY_S", 0.1)
    yield opened
    opened.close()
