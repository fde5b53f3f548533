"""What a captioner has written can be undone, as an edit can; the jobs run in this process, or die in it."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lora_train.app import captioning
from lora_train.app.captions import AllPictures
from lora_train.core import events as ev
from lora_train.core.errors import JobError
from lora_train.core.jobs import JobFolder
from lora_train.core.specs import CaptionPlan, CaptionSpec
from lora_train.data.caption_edits import AddTags
from lora_train.data.captioning import write_captions
from lora_train.launch import launcher

if TYPE_CHECKING:
    from tests.unit.app.conftest import Desk

V = ("cat", "v1")
ALL = AllPictures()


class Killed(BaseException):
    """As `kill -9`: nothing that the job still means to do is done."""


class Captioner:
    fingerprint = "says the name"

    def __init__(self) -> None:
        self.dies_at = -1
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def captions(self, pictures: Iterable[Path]) -> Iterator[str]:
        for number, path in enumerate(pictures):
            self.may_go_on.wait(10)
            if number == self.dies_at:
                raise Killed
            yield f"a {path.stem}"


@pytest.fixture
def captioner(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Captioner:
    """What writes captions; two pictures with some."""
    made = Captioner()

    class Worker(launcher.Worker):
        def __init__(self, job: JobFolder) -> None:
            self.job = job
            events = ev.EventWriter(job.events_path)
            events.write(ev.Started(pid=0))
            self.thread = threading.Thread(target=self._work, args=(events,))
            self.thread.start()
            if made.may_go_on.is_set():
                self.thread.join()

        def _work(self, events: ev.EventWriter) -> None:
            spec = self.job.read_spec()
            assert isinstance(spec, CaptionSpec)
            try:
                with pytest.MonkeyPatch.context() as patch:
                    if made.dies_at >= 0:
                        patch.setattr("lora_train.data.captioning._Writing.put_replaced_away", lambda _: None)
                    events.write(ev.Finished(result=write_captions(spec, self.job, made, events)))
            except Killed:
                pass
            events.close()

        def __del__(self) -> None:
            pass

        def poll(self) -> int | None:
            return None if self.thread.is_alive() else 0

    monkeypatch.setattr(launcher, "start_worker", Worker)
    monkeypatch.setattr(captioning.Captioning, "plan", lambda self, version: CaptionPlan(wd14="a model"))
    desk.trained("4_cat/x.png", "4_cat/y.png")
    return made


def captions(desk: Desk) -> list[str]:
    return [row.caption for row in desk.app.captions.view(*V).rows]


BEFORE = ["caption of x.png", "caption of y.png"]
AFTER = ["a x", "a y"]


def test_undo_and_redo(desk: Desk, captioner: Captioner) -> None:
    desk.app.captioning.start(*V, policy="overwrite")
    assert captions(desk) == AFTER
    step = desk.app.captions.view(*V).undo
    assert step is not None
    assert (step.what, step.detail, step.pictures) == ("Write captions", "WD14 tagger", 2)
    assert desk.app.captions.undo(*V).changed == 2
    assert captions(desk) == BEFORE
    assert desk.app.captions.view(*V).undo is None
    assert desk.again().captions.redo(*V).changed == 2
    assert captions(desk) == AFTER


def test_between_edits(desk: Desk, captioner: Captioner) -> None:
    desk.app.captions.edit(*V, AddTags("one"), ALL)
    desk.app.captioning.start(*V, policy="append")
    desk.app.captions.edit(*V, AddTags("two"), ALL)
    assert captions(desk)[0] == "a x, caption of x.png, one, two"
    seen = []
    for _ in range(3):
        desk.app.captions.undo(*V)
        seen.append(captions(desk)[0])
    assert seen == ["a x, caption of x.png, one", "caption of x.png, one", "caption of x.png"]
    for _ in range(3):
        desk.app.captions.redo(*V)
    assert captions(desk)[0] == "a x, caption of x.png, one, two"


def test_a_killed_job_is_undone(desk: Desk, captioner: Captioner) -> None:
    captioner.dies_at = 1
    desk.app.captioning.start(*V, policy="overwrite")
    assert captions(desk) == ["a x", "caption of y.png"]
    again = desk.again()
    assert again.captions.undo(*V).changed == 1
    assert captions(desk) == BEFORE
    assert again.captions.view(*V).redo is not None


def test_a_job_that_wrote_nothing_is_no_step(desk: Desk, captioner: Captioner) -> None:
    desk.app.captions.edit(*V, AddTags("one"), ALL)
    desk.app.captioning.start(*V, policy="only where empty")
    step = desk.app.captions.view(*V).undo
    assert step is not None
    assert step.what == "Add tags"
    assert desk.app.captions.undo(*V).what == "Add tags"
    with pytest.raises(JobError, match="nothing to undo"):
        desk.app.captions.undo(*V)


def test_edits_and_jobs_wait_for_each_other(desk: Desk, captioner: Captioner) -> None:
    captioner.may_go_on.clear()
    job_id = desk.app.captioning.start(*V, policy="overwrite")
    for refused in (
        lambda: desk.app.captions.undo(*V),
        lambda: desk.app.captions.edit(*V, AddTags("one"), ALL),
        lambda: desk.app.captioning.start(*V),
    ):
        with pytest.raises(JobError, match="updated or captioned already"):
            refused()
    captioner.may_go_on.set()
    worker = desk.app.captioning._jobs._workers[desk.workspace.find_job(job_id)]
    worker.thread.join(10)  # type: ignore[attr-defined]
    assert captions(desk) == AFTER
    assert desk.app.captions.undo(*V).changed == 2


def test_an_emptied_jobs_folder(desk: Desk, captioner: Captioner) -> None:
    """The person may empty it: what a job wrote is then no step any more, and the others still are."""
    desk.app.captions.edit(*V, AddTags("one"), ALL)
    desk.app.captioning.start(*V, policy="overwrite")
    for path in desk.workspace.jobs_dir.iterdir():
        path.rename(desk.root / path.name)
    assert desk.app.captions.undo(*V).problems == [
        "4_cat/x.png has another caption by now, which is kept.",
        "4_cat/y.png has another caption by now, which is kept.",
    ]
    assert captions(desk) == AFTER
