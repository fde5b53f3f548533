"""Small trainings by real workers, each a fork of this process: libraries are imported once, not for every case."""

from __future__ import annotations

import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from lora_train.app import App
from lora_train.core import events as ev
from lora_train.core.assets import DEMO_MODEL
from lora_train.core.jobs import JobFolder, JobStatus
from lora_train.core.limits import Limits, write_limits
from lora_train.core.workspace import Workspace
from lora_train.launch import launcher
from lora_train.launch import queue as launch_queue
from lora_train.launch.queue import JobQueue
from tests.faults.conftest import TRAINING, nobody_is_left, wait_until
from tests.faults.damaging import SmallDisk, are_sentences
from tests.faults.forks import import_ahead
from tests.integration.conftest import QUICK, Files, Studio

WAIT_S = 600
PAUSED_AT = 10
SETTINGS: dict[str, Any] = {
    **QUICK,
    "epochs": 2,
    "repeats": 2,
    "batch_size": 1,
    "save_every_epochs": 1,
    "train_text_encoder": False,  # captions are encoded once, and kept
}
"""4 pictures, 8 steps an epoch: 16 in all, a LoRA and a state after the eighth, paused after the tenth."""


def forked(work: Callable[[], int], log: Path) -> int:
    """Exit code of `work` in a fork of this process, which writes to `log`; 124 where it hangs."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            os.setsid()  # by which all that it starts is known
            stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(stream, 1)
            os.dup2(stream, 2)
            sys.stdout = sys.stderr = os.fdopen(2, "w", buffering=1)
            code = work()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    until = time.monotonic() + WAIT_S
    while time.monotonic() < until:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            assert _session(pid) == [], "it left processes behind"
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return 124


def _session(leader: int) -> list[int]:
    """The processes that belong to a session."""
    found: list[int] = []
    for pid in psutil.pids():
        with suppress(ProcessLookupError):
            if os.getsid(pid) == leader:
                found.append(pid)
    return found


def work_on(job: JobFolder, log: Path, around: AbstractContextManager[object] | None = None) -> int:
    """A worker's exit code; all it does is done within `around`."""
    import_ahead(TRAINING)
    from lora_train import worker

    def work() -> int:
        with around or nullcontext():
            return worker.main([str(job.path)])

    return forked(work, log)


class Forge:
    """A paused training whose turn it is again, one that waits behind it, and what the same one made without a pause.
    `put_back` makes all as it was.
    """

    def __init__(self, root: Path, place: Path | None = None) -> None:
        self.place = place or root / "place"
        self.place.mkdir(exist_ok=True)
        self.disk: SmallDisk | None = None
        """Of its own, where it has one."""
        self.log = root / "forge.log"
        model = self.place / "models" / DEMO_MODEL.name
        model.parent.mkdir()
        for path in DEMO_MODEL.parent.glob(f"{DEMO_MODEL.stem}*"):
            shutil.copy(path, model.parent)
        os.utime(model, (1_700_000_000,) * 2)  # long ago: what was changed just now is hashed again and again
        studio = Studio(self.place)
        images = studio.pictures("pictures", ["a red thing", "a blue thing", "a green thing", "a thing"])
        straight = self._plan(studio, images, model)
        assert work_on(straight, self.log) == 0, self.log.read_text(encoding="utf-8")
        self.expected = {path.name[len(straight.path.name) :]: Files.tensor_bytes(path) for path in _loras(straight)}
        job = self._plan(studio, images, model)
        write_limits(job.path, Limits(pause_at_step=PAUSED_AT))
        assert work_on(job, self.log) == 0, self.log.read_text(encoding="utf-8")
        write_limits(job.path, Limits())
        assert len(Files.states(job)) == 2
        self.job, self._waiting = job, self._plan(studio, images, model)
        queue = JobQueue(studio.app.workspace.root)
        for queued in (self.job, self._waiting):
            queue.add(studio.app.workspace.id_of(queued.path))
        turn = queue.take_next()
        assert turn is not None
        self._turn = turn
        self._kept = root / "kept"
        shutil.copytree(self.place, self._kept)

    @staticmethod
    def _plan(studio: Studio, images: Path, model: Path) -> JobFolder:
        return studio.app.plan_train(name="thing", images=images, values={**SETTINGS, "base_model": str(model)}).job

    def file(self, pattern: str) -> Path:
        """The first of those that a pattern finds, as seen from the training's folder."""
        return min(self.job.path.glob(pattern)).resolve()

    def put_back(self) -> JobFolder:
        for own in self.place.iterdir():
            shutil.rmtree(own) if own.is_dir() else own.unlink()
        shutil.copytree(self._kept, self.place, dirs_exist_ok=True)
        return self.job

    def resume(self, around: AbstractContextManager[object] | None = None) -> tuple[int, JobStatus | None]:
        """Exit code, and the status; None where the folder is no job any more."""
        self.log.unlink(missing_ok=True)
        code = work_on(self.job, self.log, around)
        app = App(Workspace(self.place / "workspace"))
        return code, app.status(self.job) if code != 2 else None

    def next_start(self) -> None:
        """The WebUI comes again, when the worker has ended and all is well with the disk. Asserts that no process is
        left, and that the queue then leads to an end: what ran has left it, or is begun anew if its worker had said
        nothing; what waits gets its turn, once.
        """
        nobody_is_left(self.place)
        expected = [] if self.job.has_told_since(self._turn.told_before_bytes) else [self.job.path.name]
        begun: list[JobFolder] = []

        def start(job: JobFolder) -> _Ended:
            begun.append(job)
            events = ev.EventWriter(job.events_path)
            events.write(ev.Started(pid=0), ev.Finished())
            events.close()
            return _Ended()

        queue = JobQueue(self.place / "workspace")
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(launcher, "start_worker", start)
            patched.setattr(launch_queue, "_POLL_S", 0.001)
            runner = launch_queue.Runner(queue, lambda _: nullcontext(), lambda _: None)
            runner.start()
            wait_until(lambda: not queue.all_running() and not queue.waiting(), 10)
            runner.stop()
            runner.join()
        assert [job.path.name for job in begun] == [*expected, self._waiting.path.name]

    def outcome(self, but: str = "", around: AbstractContextManager[object] | None = None) -> str:
        """How a resume ended: "equal" to the straight run, or what the person is told; asserts that it is one of both.
        `but` is a LoRA that was damaged before.
        """
        code, status = self.resume(around)
        said = self.log.read_text(encoding="utf-8")
        if status is None:
            return are_sentences(said.strip().splitlines()[-1], "")
        if status.state == "finished":
            assert code == 0
            ending = but[len(self.job.path.name) :]
            assert self.made(ending) == {name: made for name, made in self.expected.items() if name != ending}
            return "equal"
        if (code, status.state) == (1, "paused"):  # not even its lock could be written: the log alone tells
            return are_sentences(said.strip().splitlines()[-1], "")
        assert (code, status.state) == (1, "failed"), (code, status.state, said)
        return are_sentences(status.message, status.hint)

    def made(self, but: str = "") -> dict[str, bytes]:
        """Tensor bytes of the LoRAs of the whole epochs, by the end of their names, `but` one."""
        found = {path.name[len(self.job.path.name) :]: path for path in _loras(self.job)}
        return {name: Files.tensor_bytes(found[name]) for name in self.expected if name in found and name != but}


class _Ended:
    """A worker, as soon as it is looked at."""

    @staticmethod
    def is_running() -> bool:
        return False


def _loras(job: JobFolder) -> list[Path]:
    return sorted(path for path in job.path.glob("*.safetensors") if "-step" not in path.name)
