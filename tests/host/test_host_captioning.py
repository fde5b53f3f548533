"""Captions by the WebUI's own captioners, from the App down to the files: on demand, and after *Update Dataset*."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("lora_train.data.captioning")

from lora_train.app import App
from lora_train.core.errors import JobError
from lora_train.core.jobs import JobFolder
from lora_train.core.workspace import Workspace

pytestmark = pytest.mark.compat

_LIMIT_S = 60
RED, BLUE = (250, 0, 0), (0, 0, 250)


class Desk:
    def __init__(self, root: Path) -> None:
        from lora_train.hosts.webui import WebUI

        self.root = root
        self.app = App(Workspace(root / "work space"), WebUI())
        self.version = self.app.workspace.project("猫 cat").version("v1")
        self.ids = self.version.project.path.name, self.version.path.name
        self.app.settings.save(*self.ids, dataset={"width_px": 64, "height_px": 64}, train={"repeats": 4})

    def add(self, name: str, color: tuple[int, int, int] = RED, caption: str = "") -> None:
        path = self.root / name
        Image.new("RGB", (64, 64), color).save(path)
        files = [(name, path)]
        if caption:
            path.with_suffix(".txt").write_text(caption, encoding="utf-8")
            files.append((path.with_suffix(".txt").name, path.with_suffix(".txt")))
        assert self.app.datasets.add(*self.ids, files) == []

    def update(self) -> None:
        self.app.datasets.start_update(*self.ids)
        self.wait()

    def wait(self) -> None:
        wait_until(lambda: not self.app.datasets.is_updating(self.version))

    def captions(self) -> dict[str, str]:
        return {Path(entry.file).name: entry.caption for entry in self.app.datasets.snapshot(*self.ids).pictures}

    def status(self) -> Any:
        status = self.app.captioning.choices(*self.ids).job
        assert status is not None
        return status


@pytest.fixture
def desk(host_modules: Path, tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def wait_until(condition: Callable[[], object]) -> None:
    until = time.monotonic() + _LIMIT_S
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def calls() -> list[str]:
    from modules import shared

    return shared.interrogator.calls


def test_an_update_is_completed_by_the_host(desk: Desk) -> None:
    desk.app.captioning.answer("host")
    desk.add("a.png")
    desk.add("b.png", BLUE, caption="a cat of my own")
    desk.update()
    assert desk.captions() == {"a.png": "a picture of red", "b.png": "a cat of my own"}
    assert desk.status().state == "finished"
    assert calls() == ["load", "caption", "unload"], "one picture needed it"

    desk.app.datasets.set_caption(*desk.ids, "4_猫 cat/a.png", "by hand")
    desk.add("c.png", BLUE)
    desk.update()
    assert desk.captions() == {
        "a.png": "by hand",
        "b.png": "a cat of my own",
        "c.png": "a picture of blue",
    }
    assert calls()[3:] == ["load", "caption", "unload"]


def test_what_came_along_is_completed_where_that_is_wanted(desk: Desk) -> None:
    desk.app.settings.save(*desk.ids, dataset={"caption_action": "prepend"}, caption={"use_deepbooru": True})
    desk.add("a.png")
    desk.add("b.png", BLUE, caption="mine")
    desk.update()
    assert desk.captions()["a.png"] == "1girl, ribbon (hair), red"
    assert desk.captions()["b.png"].startswith("mine, ")
    assert desk.captions()["b.png"].endswith(", 1girl, ribbon (hair)")


def test_on_demand(desk: Desk) -> None:
    desk.app.captioning.answer("none")
    desk.add("a.png")
    desk.add("b.png", BLUE, caption="mine")
    desk.update()
    assert desk.captions() == {"a.png": "猫 cat", "b.png": "mine"}
    desk.app.captioning.answer("host")
    job_id = desk.app.captioning.start(*desk.ids, ("4_猫 cat/b.png",), "append")
    desk.wait()
    assert desk.captions() == {"a.png": "猫 cat", "b.png": "a picture of blue, mine"}
    status = desk.app.status(JobFolder(desk.app.workspace.find_job(job_id)))
    assert (status.state, status.phase, status.phase_done) == ("finished", "writing captions", 1)
    assert not any(call.endswith("!") for call in calls())


def test_who_waits_for_the_webui_can_be_stopped(desk: Desk) -> None:
    from modules import call_queue

    desk.app.captioning.answer("none")
    desk.add("a.png")
    desk.update()
    desk.app.captioning.answer("host")
    with call_queue.queue_lock:  # a picture is being made
        job_id = desk.app.captioning.start(*desk.ids)
        wait_until(lambda: call_queue.queue_lock.waiting)
        assert (desk.status().state, desk.status().phase) == ("running", "waiting for the WebUI")
        job = JobFolder(desk.app.workspace.find_job(job_id))
        assert desk.app.status(job).state == "running"
        for refused in (desk.app.captioning.start, desk.app.datasets.start_update):
            with pytest.raises(JobError):
                refused(*desk.ids)
        desk.app.captioning.stop(*desk.ids)
    desk.wait()
    assert desk.status().state == "stopped"
    assert desk.captions() == {"a.png": "猫 cat"}
    assert calls() == ["load", "unload"]
    assert not call_queue.queue_lock.locked()


def test_a_host_that_fails_is_told(desk: Desk) -> None:
    from modules import shared

    shared.interrogator.fails_on = "load"
    desk.app.captioning.answer("host")
    desk.add("a.png")
    desk.update()
    status = desk.status()
    assert (status.state, status.error) == ("failed", "ModelError")
    assert status.message == "The WebUI could not load its BLIP: no network."
    assert desk.captions() == {"a.png": "猫 cat"}
    assert calls() == ["load", "unload"]


def test_a_stopped_update_is_not_completed(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.app.captioning.answer("host")
    for number in range(30):
        desk.add(f"{number}.png")
    desk.app.datasets.start_update(*desk.ids)
    assert desk.app.captioning.is_busy(desk.version)
    desk.app.captioning.stop(*desk.ids)
    desk.wait()
    assert calls() == []
    assert set(desk.captions().values()) == {"猫 cat"}


def test_a_sentence_by_the_host_and_tags_by_a_worker(desk: Desk, taggers: Any) -> None:
    """A tagger of colours in a worker process; the host's sentence goes before its tags."""
    folder = taggers.make_colour_tagger(desk.root / "tagger")
    settings = {"use_blip": True, "use_wd14": True, "wd14_model": str(folder), "device": "cpu"}
    assert desk.app.settings.save(*desk.ids, caption=settings) == []
    desk.add("a.png")
    desk.add("b.png", BLUE, caption="mine")
    desk.update()
    tags = desk.captions()["a.png"].removeprefix("a picture of red, ")
    assert "red" in tags
    assert desk.captions() == {"a.png": f"a picture of red, {tags}", "b.png": "mine"}

    desk.app.captioning.start(*desk.ids, policy="overwrite")
    desk.wait()
    captions = desk.captions()
    assert captions["a.png"] == f"a picture of red, {tags}"
    assert captions["b.png"].startswith("a picture of blue, ")
    assert "blue" in captions["b.png"].removeprefix("a picture of blue, ")
    assert desk.status().state == "finished"
