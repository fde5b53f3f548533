"""kill -9 of the WebUI, and of the whole machine: what runs is found again, what waits keeps its order."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("fastapi")

from lora_train.core import events as ev
from lora_train.core.jobs import JobFolder
from tests.faults import deeds
from tests.faults.conftest import fingerprint, temporary_files, workers_below, zombies
from tests.faults.sites import VERSION, Site

_SEED = 8
_LONG: dict[str, Any] = {
    "base_model": "demo",
    "hold_out": 0,
    "rank": 2,
    "alpha": 2,
    "repeats": 1,
    "epochs": 5000,
    "save_every_epochs": 0,
    "state_every_s": 1,
    "generate_previews": False,
    "cpu_threads": 1,
}
"""Never waited for: each of these trainings is ended early."""
_DAY_S = 86400


class Place:
    """A workspace, a WebUI on it, and the workers that it started."""

    def __init__(self, root: Path) -> None:
        self.root = root
        deeds.set_up(root)
        deeds.open_app(root).settings.save(*deeds.IDS, train=_LONG)
        self.site = Site(root)

    def begin(self) -> str:
        return self.site.ask("trains", VERSION)["job"]

    def queue(self) -> list[tuple[str, str]]:
        return [(entry["job"], entry["state"]) for entry in self.site.ask("queue")]

    def status(self, job: str) -> Any:
        return self.site.ask(f"jobs/status?job={job}")

    def folder(self, job: str) -> JobFolder:
        return JobFolder(self.root / "workspace" / job)

    def workers(self) -> dict[str, list[psutil.Process]]:
        """By their jobs."""
        found: dict[str, list[psutil.Process]] = {}
        for process in workers_below(self.root):
            with suppress(psutil.NoSuchProcess):
                job = Path(process.cmdline()[-1]).relative_to(self.root / "workspace").as_posix()
                found.setdefault(job, []).append(process)
        return found

    def wait_for_step(self, job: str) -> None:
        told = len(self.folder(job).events())
        self.site.wait_until(lambda: any(isinstance(event, ev.Step) for event in self.folder(job).events()[told:]))

    def kill_workers(self) -> None:
        processes = [process for own in self.workers().values() for process in own]
        for process in processes:
            process.kill()
        psutil.wait_procs(processes)

    def close(self) -> None:
        self.site.kill()
        for processes in self.workers().values():
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.kill()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    opened = Place(tmp_path / "place")
    yield opened
    opened.close()


def _originals(root: Path) -> dict[Path, str]:
    return fingerprint([root / "workspace/projects/cat/versions/v1/dataset", root / "Lora"], _is_no_ones)


def _is_no_ones(path: Path) -> bool:
    return path.suffix not in (".png", ".txt", ".safetensors")


def test_killed_while_one_trains_and_two_wait(
    place: Place, share: Callable[[int], int], count: Callable[[str, int], None]
) -> None:
    before, chance, kills = _originals(place.root), random.Random(_SEED), share(20)
    jobs = [place.begin() for _ in range(3)]
    place.site.wait_until(lambda: place.queue()[0] == (jobs[0], "running"))  # places count those that wait
    place.site.ask("queue/move", {"job": jobs[2], "place": 1})
    in_order = [jobs[0], jobs[2], jobs[1]]
    seen: set[int] = set()
    for _ in range(kills):
        time.sleep(chance.choice([0, chance.random(), 3 * chance.random()]))  # as its worker comes up, and later
        place.site.kill()
        place.site.start()
        assert [job for job, _ in place.queue()] == in_order
        workers = place.workers()
        assert set(workers) <= {jobs[0]}
        seen.update(process.pid for process in workers.get(jobs[0], ()))
    place.wait_for_step(jobs[0])
    assert {job: len(processes) for job, processes in place.workers().items()} == {jobs[0]: 1}
    assert len(seen | {place.status(jobs[0])["pid"]}) <= 2, "one more may have come up, and found the job taken"
    assert [state for _, state in place.queue()] == ["running", "waiting", "waiting"]
    starts = [event for event in place.folder(jobs[0]).events() if isinstance(event, ev.Started)]
    assert [event.step for event in starts] == [None, 0], "begun once"

    place.site.ask("jobs/stop", {"job": jobs[0]})
    place.site.kill()  # nobody is there when it ends
    place.site.start()
    place.site.wait_until(lambda: place.queue()[0] == (jobs[2], "running"))
    assert place.status(jobs[0])["state"] == "stopped"
    (saved,) = place.status(jobs[0])["saved"]
    assert (place.root / "Lora" / saved).is_file(), "published by the start that found it ended"
    assert _originals(place.root).items() >= before.items()
    place.site.ask("queue/cancel", {"job": jobs[1]})
    place.site.ask("jobs/kill", {"job": jobs[2]})
    place.site.wait_until(lambda: place.queue() == [])
    assert temporary_files(place.root) == []
    assert zombies() == []
    count("kills of the WebUI", kills + 1)


@pytest.fixture
def strangers(tmp_path: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Two processes of others; one is a worker, of another job."""
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    opened = [subprocess.Popen(sleep), subprocess.Popen([*sleep, "lora_train.worker", str(tmp_path / "another")])]
    yield opened
    for process in opened:
        process.kill()
        process.wait()


def test_the_machine_is_restarted_and_its_clock_put_back(
    place: Place, strangers: list[subprocess.Popen[bytes]], count: Callable[[str, int], None]
) -> None:
    """The numbers of the worker are now those of other processes, and all that was written is of tomorrow."""
    before = _originals(place.root)
    first, second = place.begin(), place.begin()
    place.wait_for_step(first)
    place.site.kill()
    place.kill_workers()
    _reuse_numbers(place.folder(first), *(stranger.pid for stranger in strangers))
    _put_clock_back(place.root / "workspace")

    place.site.start()
    place.site.wait_until(lambda: [job for job, _ in place.queue()] == [second])
    status = place.status(first)
    assert (status["state"], status["hint"]) == ("failed", "Resume goes on from the last saved state.")
    code, answer = place.site.call("jobs/kill", {"job": first})
    assert (code, answer["message"]) == (400, f"{Path(first).name} is not running.")
    place.site.ask("jobs/resume", {"job": first})
    place.wait_for_step(second)
    assert place.queue() == [(second, "running"), (first, "waiting")]
    assert set(place.workers()) == {second}
    assert place.status(second)["silent_s"] >= 0
    shown = deeds.open_app(place.root).snapshot(*deeds.IDS).shown
    assert shown is not None
    assert shown.job == second, "what runs is shown, however old it seems"

    place.site.ask("jobs/kill", {"job": second})
    place.site.wait_until(lambda: place.queue() == [(first, "running")])
    place.wait_for_step(first)
    starts = [event for event in place.folder(first).events() if isinstance(event, ev.Started)]
    assert starts[-1].step is not None, "it went on"
    place.site.ask("jobs/kill", {"job": first})
    place.site.wait_until(lambda: place.queue() == [])
    assert [stranger.poll() for stranger in strangers] == [None, None], "nobody else's process was ended"
    assert _originals(place.root).items() >= before.items()
    count("restarts of the machine", 1)


def _reuse_numbers(job: JobFolder, told: int, started: int) -> None:
    text = re.sub(r'"pid":\d+', f'"pid":{told}', job.events_path.read_text(encoding="utf-8"))
    job.events_path.write_text(text, encoding="utf-8")
    (job.path / "worker.pid").write_text(str(started), encoding="ascii")


def _put_clock_back(workspace: Path) -> None:
    """By a day: every time in a file, and of a file, is of tomorrow then."""
    for path in workspace.rglob("*"):
        if path.name == "events.jsonl":
            events = [json.loads(line) for line in path.read_bytes().splitlines()]
            lines = [json.dumps({**event, "t": event["t"] + _DAY_S}) + "\n" for event in events]
            path.write_text("".join(lines), encoding="utf-8")
        if path.is_file():
            told = path.stat()
            os.utime(path, (told.st_atime + _DAY_S, told.st_mtime + _DAY_S))
