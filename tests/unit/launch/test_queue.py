"""The list of jobs on the disk: its order, and several programs that change it."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import lora_train
from lora_train.core.errors import JobError
from lora_train.core.files import lock
from lora_train.launch import queue as queue_module
from lora_train.launch.queue import JobQueue, Turn


@pytest.fixture
def queue(tmp_path: Path) -> JobQueue:
    return JobQueue(tmp_path / "work space")


def test_empty(queue: JobQueue) -> None:
    assert (queue.running(), queue.waiting(), queue.place_of("jobs/a")) == ("", [], None)
    assert queue.take_next() is None
    assert not queue.root.exists(), "looking makes nothing"


def test_order(queue: JobQueue) -> None:
    for name in "abcd":
        queue.add(f"jobs/{name}")
    queue.move("jobs/d", 1)
    queue.move("jobs/a", 99)
    queue.move("jobs/b", -1)
    assert queue.waiting() == ["jobs/b", "jobs/d", "jobs/c", "jobs/a"]
    queue.cancel("jobs/d")
    assert queue.take_next() == Turn("jobs/b", 0)
    assert queue.take_next() == Turn("jobs/b", 0), "until it is finished"
    assert [queue.place_of(f"jobs/{name}") for name in "bcad"] == [0, 1, 2, None]
    queue.finish("jobs/c")
    assert queue.running() == "jobs/b", "another one's end is not its own"
    queue.finish("jobs/b")
    assert (queue.running(), queue.waiting()) == ("", ["jobs/c", "jobs/a"])
    assert JobQueue(queue.root).take_next() == Turn("jobs/c", 0), "as after a restart"


def test_a_job_once(queue: JobQueue) -> None:
    queue.add("jobs/a")
    with pytest.raises(JobError, match="a waits or runs already"):
        queue.add("jobs/a")
    queue.take_next()
    with pytest.raises(JobError, match="a waits or runs already"):
        queue.add("jobs/a")
    queue.finish("jobs/a")
    queue.add("jobs/a")


def test_only_what_waits_is_moved_or_cancelled(queue: JobQueue) -> None:
    queue.add("jobs/a")
    queue.take_next()
    for job in ("jobs/a", "jobs/b"):
        with pytest.raises(JobError, match="does not wait"):
            queue.move(job, 1)
        with pytest.raises(JobError, match="does not wait"):
            queue.cancel(job)


def test_what_a_job_told_before_its_turn(queue: JobQueue) -> None:
    events = queue.root / "jobs" / "a" / "events.jsonl"
    events.parent.mkdir(parents=True)
    events.write_bytes(b"of an earlier start\n")
    queue.add("jobs/a")
    assert not queue.is_starting("jobs/a"), "it waits"
    assert queue.take_next() == Turn("jobs/a", 20)
    assert queue.is_starting("jobs/a")
    events.write_bytes(b"of an earlier start\nand of this one\n")
    assert not queue.is_starting("jobs/a")
    assert not queue.is_starting("jobs/b")


def test_a_damaged_list_is_an_empty_one(queue: JobQueue) -> None:
    queue.add("jobs/a")
    (queue.root / "queue.json").write_bytes(b'{"waiting": ["jobs')
    assert queue.waiting() == []
    queue.add("jobs/b")
    assert queue.waiting() == ["jobs/b"]


def test_a_list_that_cannot_be_read_is_not_forgotten(queue: JobQueue) -> None:
    """A disk that is away for a moment must not cost the waiting jobs."""
    queue.add("jobs/a")
    path = queue.root / "queue.json"
    path.rename(queue.root / "kept")
    path.mkdir()
    with pytest.raises(OSError, match="directory"):
        queue.add("jobs/b")
    path.rmdir()
    (queue.root / "kept").rename(path)
    assert queue.waiting() == ["jobs/a"]


def test_a_lock_that_is_held_too_long(queue: JobQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_module, "_LOCK_WAIT_S", 0.05)
    queue.add("jobs/a")
    held = lock(queue.root / "queue.lock")
    assert held is not None
    with held, pytest.raises(JobError, match="locked by another program"):
        queue.add("jobs/b")
    assert queue.waiting() == ["jobs/a"]
    queue.add("jobs/b")


_ADD = """
import sys
from pathlib import Path
from lora_train.launch.queue import JobQueue

queue = JobQueue(Path(sys.argv[1]))
for number in range(50):
    queue.add(f"jobs/{sys.argv[2]}-{number}")
"""


def test_programs_and_threads_that_add_at_once_lose_nothing(queue: JobQueue) -> None:
    package_root = Path(lora_train.__file__).parents[1]
    programs = [
        subprocess.Popen([sys.executable, "-c", _ADD, str(queue.root), name], cwd=package_root)
        for name in ("one", "two")
    ]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda number: queue.add(f"jobs/here-{number}"), range(30)))
    assert [program.wait(60) for program in programs] == [0, 0]
    waiting = queue.waiting()
    assert len(waiting) == len(set(waiting)) == 130
    for name in ("one", "two"):
        own = [job for job in waiting if job.startswith(f"jobs/{name}-")]
        assert own == [f"jobs/{name}-{number}" for number in range(50)], "each one's in its order"
