"""A training whose files are written beside the loop."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from lora_train import worker
from lora_train.core import events as ev
from lora_train.engine import results, train, way_back

if TYPE_CHECKING:
    from tests.integration.conftest import Studio


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker's main function runs in this process, whose modules and environment it may not change."""
    monkeypatch.setattr(worker, "_isolate", lambda _: None)


def test_the_loop_goes_on_while_a_lora_is_written(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first epoch's LoRA is held back until three steps more are done: a loop that waited for it would hang."""
    images = studio.pictures("pictures", ["red", "blue"])
    steps, save_lora, train_step = {"done": 0}, results.save_lora, train.train_step
    begun, went_on = threading.Event(), threading.Event()

    def counted(run: Any, group: Any) -> Any:
        steps["done"] += 1
        if steps["done"] == 7:
            went_on.set()
        return train_step(run, group)

    def slow(path: Any, *rest: Any) -> None:
        begun.set()
        assert went_on.wait(60)
        time.sleep(0.1)
        save_lora(path, *rest)

    monkeypatch.setattr(results, "save_lora", slow)
    monkeypatch.setattr(train, "train_step", counted)
    job = studio.plan(images, epochs=3, repeats=2, save_every_epochs=1)
    assert worker.main([str(job.path)]) == 0
    assert begun.is_set()
    events = job.events()
    saved = [event for event in events if isinstance(event, ev.Saved)]
    assert [(event.step, event.epoch) for event in saved] == [(4, 1), (8, 2), (12, 3)]
    assert all((job.path / event.path).is_file() for event in saved)
    assert isinstance(events[-1], ev.Finished), "after everything is written"


def test_a_full_disk_ends_the_training(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    images = studio.pictures("pictures", ["red", "blue"])
    save_state, calls = way_back.save_state, list[int]()

    def fails_later(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) > 1:
            raise OSError(28, "No space left on device", "state")
        save_state(*arguments)

    monkeypatch.setattr(way_back, "save_state", fails_later)
    job = studio.plan(images, epochs=2, repeats=4, save_every_epochs=1)
    assert worker.main([str(job.path)]) == 1
    failed = job.events()[-1]
    assert isinstance(failed, ev.Failed)
    assert failed.error == "OSError"
    assert failed.message == "state can't be written: the disk is full."
    assert failed.hint == "Free some space, then try again."


def test_pictures_are_told_of_after_their_lora(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    save_lora = results.save_lora

    def slow(path: Any, *rest: Any) -> None:
        time.sleep(2)
        save_lora(path, *rest)

    monkeypatch.setattr(results, "save_lora", slow)
    monkeypatch.setattr(results, "draw_previews", lambda *_: [])
    monkeypatch.setattr(
        results, "save_previews", lambda folder, stem, *rest: rest[-1](folder / f"{stem}.png", "", None)
    )
    job = studio.plan(
        studio.pictures("pictures", ["red"]), epochs=1, generate_previews=True, preview_prompts=("a red thing",)
    )
    assert worker.main([str(job.path)]) == 0
    kinds = [type(event) for event in job.events() if isinstance(event, (ev.Saved, ev.Sampled))]
    assert kinds == [ev.Saved, ev.Sampled]
