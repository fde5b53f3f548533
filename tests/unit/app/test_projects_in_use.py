"""Nothing of a project is moved or deleted while something works on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lora_train.app.datasets import Datasets
from lora_train.core import events as ev
from lora_train.core.errors import JobError, WorkspaceError
from lora_train.launch.queue import JobQueue

if TYPE_CHECKING:
    from tests.unit.app.conftest import Desk


def in_queue(desk: Desk, job: str, place: int) -> None:
    queue = JobQueue(desk.workspace.root)
    if place > 0:
        queue.add("jobs/first")
    queue.add(job)
    queue.take_next()
    assert queue.place_of(job) == place


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("what", ["train", "previews"])
def test_nothing_moves_while_a_job_needs_it(desk: Desk, place: int, what: str) -> None:
    job = desk.finished()
    desk.version("cat", "v2")
    desk.version("cat-2")
    if what == "previews":
        job = desk.app.training.draw_previews(job)
        JobQueue(desk.workspace.root).cancel(job)
    in_queue(desk, job, place)
    projects = desk.app.projects
    for call in (
        lambda: projects.rename("cat", "dog"),
        lambda: projects.delete("cat"),
        lambda: projects.rename_version("cat", "v1", "x"),
        lambda: projects.delete_version("cat", "v1"),
        lambda: desk.app.training.delete("projects/cat/versions/v1/trains/cat-v1"),
    ):
        with pytest.raises(JobError, match="waits or runs") as error:
            call()
        assert "Stop it" in error.value.hint
    projects.rename_version("cat", "v2", "v3")
    projects.delete("cat-2")
    projects.duplicate_version("cat", "v1", "copy")


def test_nothing_moves_while_a_command_line_trains(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a train is not in the queue."""
    desk.train(events=[ev.Started(pid=1, step=0)])
    monkeypatch.setattr("lora_train.launch.launcher._process", lambda job, pid: object() if pid else None)
    for call in (lambda: desk.app.projects.rename("cat", "dog"), lambda: desk.app.projects.delete_version("cat", "v1")):
        with pytest.raises(JobError, match="waits or runs"):
            call()


def test_nothing_moves_while_its_pictures_are_made(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.version()
    desk.version("dog")
    monkeypatch.setattr(Datasets, "is_updating", lambda self, version: version.project.path.name == "cat")
    projects = desk.again().projects
    for call in (
        lambda: projects.rename("cat", "x"),
        lambda: projects.delete("cat"),
        lambda: projects.delete_version("cat", "v1"),
        lambda: projects.duplicate_version("cat", "v1", "v2"),
    ):
        with pytest.raises(JobError, match="being updated"):
            call()
    projects.delete("dog")


def test_a_queue_of_damaged_jobs_blocks_nothing_else(desk: Desk) -> None:
    desk.version()
    queue = JobQueue(desk.workspace.root)
    queue.add("jobs/gone")
    (desk.workspace.jobs_dir / "damaged").mkdir(parents=True)
    (desk.workspace.jobs_dir / "damaged" / "job.json").write_bytes(b"{")
    queue.add("jobs/damaged")
    assert desk.app.projects.delete("cat").what == "cat"


def test_a_copy_while_another_program_changes_settings_leaves_nothing(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.version()
    monkeypatch.setattr("lora_train.core.workspace._LOCK_WAIT_S", 0.05)
    copies = desk.again().projects
    with desk.workspace.locked("settings"), pytest.raises(WorkspaceError, match="is being changed by another program"):
        copies.duplicate_version("cat", "v1", "v2")
    assert [entry.id for entry in copies.list()[0].versions] == ["v1"]
    copies.duplicate_version("cat", "v1", "v2")
