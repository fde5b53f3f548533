"""The health of a version: reported from what is known without opening a picture, and looked at in a job."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from lora_train.app.health import Health
from lora_train.core import events as ev
from lora_train.core.errors import DatasetError, JobError, WorkspaceError
from lora_train.core.events import EventWriter
from lora_train.core.jobs import JobFolder
from lora_train.core.specs import CheckSpec
from lora_train.data.facts import check_pictures
from lora_train.launch import launcher

if TYPE_CHECKING:
    from tests.unit.app.conftest import Desk


@pytest.fixture(autouse=True)
def no_worker(monkeypatch: pytest.MonkeyPatch) -> list[JobFolder]:
    """The jobs that were started; each is done at once, in this process."""
    begun: list[JobFolder] = []

    class Ended(launcher.Worker):
        def __init__(self, job: JobFolder) -> None:
            begun.append(job)
            spec = job.read_spec()
            assert isinstance(spec, CheckSpec)
            events = EventWriter(job.events_path)
            events.write(ev.Started(pid=0))
            events.write(ev.Finished(result=check_pictures(spec, job, events)))
            events.close()

        def poll(self) -> int:
            return 0

    monkeypatch.setattr(launcher, "start_worker", Ended)
    monkeypatch.setattr(Ended, "__del__", lambda self: None)
    return begun


def kinds(desk: Desk) -> list[str]:
    return [finding.kind for finding in desk.app.health.report("cat", "v1").findings]


def test_from_unknown_to_known(desk: Desk) -> None:
    desk.trained("4_cat/a.png", "4_cat/b.png", "reg/1_cat/r.png")
    before = desk.app.health.report("cat", "v1")
    assert (before.missing_facts, before.check) == (2, None)
    assert "blurred" not in kinds(desk)
    job = desk.app.health.start("cat", "v1")
    after = desk.app.health.report("cat", "v1")
    assert (after.missing_facts, "blurred" in kinds(desk)) == (0, True)  # plain pictures have no edge
    assert after.check is not None
    assert (after.check.state, after.check.phase_done) == ("finished", 2)
    assert job.startswith("jobs/")
    assert desk.again().health.report("cat", "v1") == after  # as after a restart
    desk.trained("4_cat/a.png", size=(64, 80))
    assert desk.app.health.report("cat", "v1").missing_facts == 1


def test_no_picture_is_opened_for_a_report(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the set was scanned. It is fast, too: 200 pictures took 12 ms on two busy cores, 200 ms is promised."""
    desk.trained(*(f"4_cat/{number}.png" for number in range(200)), size=(8, 8))
    desk.app.health.start("cat", "v1")
    desk.app.health.report("cat", "v1")

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a picture is opened")

    monkeypatch.setattr(Image, "open", refuse)
    start = time.process_time()
    assert len(desk.app.health.report("cat", "v1").pictures) == 200
    assert time.process_time() - start < 0.2


def test_nothing_there_yet(desk: Desk) -> None:
    desk.version()
    report = desk.app.health.report("cat", "v1")
    assert (report.pictures, report.buckets, report.findings[0].kind) == ([], [], "no_pictures")
    assert "left_out" not in kinds(desk)  # a version without a set has lost nothing
    with pytest.raises(DatasetError):
        desk.app.health.start("cat", "v1")
    with pytest.raises(WorkspaceError):
        desk.app.health.report("cat", "v9")
    with pytest.raises(WorkspaceError):
        desk.app.health.start("cat", "v9")


def test_files_that_are_no_pictures(desk: Desk) -> None:
    processed = desk.trained("4_cat/a.png")
    processed.joinpath("4_cat", "b.png").write_bytes(b"a text")
    assert "left_out" in kinds(desk)
    processed.joinpath("4_cat", "a.png").unlink()
    left_out = next(one for one in desk.app.health.report("cat", "v1").findings if one.kind == "left_out")
    assert "b.png" in " ".join(left_out.sentences)


def test_the_settings_of_the_version_count(desk: Desk) -> None:
    """The small model trains at 64 px in steps of 8; a resolution without a bucket is told, and the rest as well."""
    desk.trained("4_cat/a.png", "4_cat/b.png", size=(64, 64))
    assert "too_small" in kinds(desk)  # for 512 px
    desk.app.settings.save("cat", "v1", train={"base_model": "demo", "batch_size": 3, "trigger_word": "sks"})
    report = desk.app.health.report("cat", "v1")
    assert report.pictures[0].bucket_px == (64, 64)
    told = [one.kind for one in report.findings]
    assert "too_small" not in told
    assert {"scarce_buckets", "trigger_word"} <= set(told)
    desk.app.settings.save("cat", "v1", train={"base_model": "", "resolution": 32})
    report = desk.app.health.report("cat", "v1")
    assert (report.findings[0].kind, report.findings[0].level) == ("no_buckets", "error")
    assert "32" in report.findings[0].sentences[0]
    assert len(report.pictures) == 2


def test_tokens_are_counted_as_they_are_trained(desk: Desk) -> None:
    """Each caption once, with the trigger word in its place."""
    counted: list[str] = []

    def count(caption: str) -> int:
        counted.append(caption)
        return 151 if "b.png" in caption else 150

    health = Health(desk.workspace, desk.app.datasets, desk.app.datasets._watch, count)
    desk.trained("4_cat/a.png", "4_cat/b.png", "reg/1_cat/r.png")
    desk.app.settings.save("cat", "v1", train={"trigger_word": "sks"})
    long = next(one for one in health.report("cat", "v1").findings if one.kind == "long_captions")
    assert [(shown.file, shown.number) for shown in long.pictures] == [("4_cat/b.png", 151)]
    health.report("cat", "v1")
    assert counted == ["sks, caption of a.png", "sks, caption of b.png"]


def test_one_look_at_a_time(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    class Running(launcher.Worker):
        def __init__(self, job: JobFolder) -> None:
            pass

        def poll(self) -> None:
            return None

    monkeypatch.setattr(launcher, "start_worker", Running)
    monkeypatch.setattr(Running, "__del__", lambda self: None)
    desk.trained("4_cat/a.png")
    desk.app.health.start("cat", "v1")
    check = desk.app.health.report("cat", "v1").check
    assert check is not None
    assert check.state == "waiting"
    with pytest.raises(JobError, match="already"):
        desk.app.health.start("cat", "v1")
    with monkeypatch.context() as updating:
        updating.setattr(desk.app.datasets, "is_updating", lambda version: True)
        with pytest.raises(JobError, match="updated"):
            desk.app.health.start("cat", "v1")


def test_a_job_that_was_thrown_away(desk: Desk, no_worker: list[JobFolder]) -> None:
    desk.trained("4_cat/a.png")
    desk.app.health.start("cat", "v1")
    for file in no_worker[0].path.iterdir():
        file.unlink()
    no_worker[0].path.rmdir()
    assert desk.app.health.report("cat", "v1").check is None
    desk.app.health.start("cat", "v1")
    assert len(no_worker) == 2
