"""Regularisation pictures, drawn by real workers with the small demo model, and trained with."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from lora_train.core import events as ev
from lora_train.core.errors import ConfigError, JobError
from lora_train.core.jobs import JobStatus
from lora_train.engine.regularisation import picture_seed

if TYPE_CHECKING:
    from tests.integration.app.conftest import House

PROMPT = "a green triangle on a gray background"


def class_dir(house: House, folder: str = "1_shape") -> Path:
    return house.app.workspace.find_version("cat", "v1").regularisation_dir / folder


def pictures(house: House) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(class_dir(house).glob("*.png"))}


def begin(house: House, count: int) -> None:
    house.app.regularisation.generate("cat", "v1", "shape", PROMPT, "", count)
    house.app.start_background()


def status(house: House) -> JobStatus:
    snapshot = house.app.regularisation.snapshot("cat", "v1")
    assert snapshot.status is not None
    return snapshot.status


def end(house: House) -> JobStatus:
    house.wait(lambda: not house.app.regularisation.snapshot("cat", "v1").is_drawing)
    return status(house)


def draw(house: House, count: int) -> JobStatus:
    begin(house, count)
    return end(house)


def test_pictures_of_a_prompt_are_drawn_and_a_second_run_adds(house: House) -> None:
    house.save({"preview_steps": 4, "preview_seed": 7})
    told = draw(house, 10)
    assert (told.state, told.result, told.phase_done, told.phase_total) == ("finished", {"drawn": 10}, 10, 10)
    first = pictures(house)
    assert list(first) == [f"{number:04}.png" for number in range(1, 11)]
    for name in first:
        path = class_dir(house) / name
        assert path.with_suffix(".txt").read_text(encoding="utf-8") == PROMPT
        with Image.open(path) as picture:
            assert (picture.size, picture.mode) == ((64, 64), "RGB")
            assert f"Seed: {picture_seed(7, int(path.stem))}," in picture.text["parameters"]
            # A picture of the model's, no plain colour: the demo draws shapes on grey.
            assert np.asarray(picture).std() > 5
    assert len(set(first.values())) == 10
    assert house.host.parked_for == ["in auto", "out"]
    estimate = house.app.regularisation.estimate("cat", "v1", 100)
    assert estimate.seconds is not None
    assert 0 < estimate.seconds < 100

    class_dir(house).joinpath("0010.png").unlink()
    class_dir(house).joinpath("0010.txt").unlink()
    assert draw(house, 3).state == "finished"
    both = pictures(house)
    assert list(both) == [f"{number:04}.png" for number in (*range(1, 10), 11, 12, 13)]
    assert {name: both[name] for name in first if name in both} == {name: first[name] for name in first if name in both}
    assert len(set(both.values()) | {first["0010.png"]}) == 13, "what was removed is not drawn again"


def test_stop_keeps_what_is_drawn(house: House) -> None:
    house.save({"preview_steps": 20})
    begin(house, 1000)
    house.wait(lambda: status(house).phase_done >= 8)
    job = house.app.regularisation.snapshot("cat", "v1").job
    with pytest.raises(JobError, match="being drawn"):
        house.app.regularisation.generate("cat", "v1", "other", PROMPT, "", 1)
    with pytest.raises(JobError, match="being drawn"):
        house.app.projects.delete("cat")
    house.app.training.stop(job)
    assert end(house).state == "stopped"
    kept = pictures(house)
    assert 8 <= len(kept) < 1000
    for name in kept:
        with Image.open(class_dir(house) / name) as picture:
            picture.load()
        assert class_dir(house).joinpath(name).with_suffix(".txt").is_file()
    assert [own.count for own in house.app.regularisation.classes("cat", "v1")] == [len(kept)]
    house.save({"preview_steps": 2})
    draw(house, 2)
    assert len(pictures(house)) == len(kept) + 2


@pytest.mark.parametrize(("batch_size", "count"), [(1, 3), (2, 3), (3, 11)])
def test_the_steps_are_those_that_were_promised(house: House, batch_size: int, count: int) -> None:
    """The estimate before, the forecast after, and what the loop does."""
    house.set_up(5, batch_size=batch_size, epochs=2, preview_steps=2)
    estimate = house.app.regularisation.estimate("cat", "v1", count, "shape")
    # 5 training views an epoch and as many of the others, all of one size.
    assert (estimate.total_steps_without, estimate.total_steps) == (2 * math.ceil(5 / batch_size),) * 2
    assert estimate.total_steps_with == 2 * math.ceil(10 / batch_size)
    draw(house, count)
    with_them = house.app.training.forecast("cat", "v1")
    assert with_them.total_steps == estimate.total_steps_with
    job = house.app.training.begin("cat", "v1")
    house.wait_for(job, "finished")
    assert house.steps(job) == list(range(1, estimate.total_steps_with + 1))


def test_pictures_of_an_original_workspace_are_trained_with(house: House) -> None:
    """They lie in dataset/reg; an update of the dataset leaves them alone, and a resume finds them again."""
    house.set_up(2, epochs=30, state_every_s=0)
    folder = class_dir(house, "2_shape")
    folder.mkdir(parents=True)
    for number in range(3):
        folder.joinpath(f"old {number}.png").write_bytes(house.picture(seed=10 + number).read_bytes())
        folder.joinpath(f"old {number}.txt").write_text(PROMPT, encoding="utf-8")
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    house.update()
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()} == before
    entries = house.app.datasets.snapshot("cat", "v1").pictures
    assert [entry.file for entry in entries if entry.is_regularisation] == [
        f"../reg/2_shape/old {number}.png" for number in range(3)
    ]
    job = house.app.training.begin("cat", "v1")
    house.app.start_background()
    house.wait(lambda: len(house.steps(job)) > 3)
    house.app.training.pause(job)
    house.wait_for(job, "paused")
    house.app.training.resume(job)
    house.wait_for(job, "finished")
    assert house.steps(job)[-1] == house.app.training.forecast("cat", "v1").total_steps == 120
    folder.joinpath("old 1.txt").write_text("something else", encoding="utf-8")
    again = house.app.training.begin("cat", "v1")
    house.wait(lambda: len(house.steps(again)) > 3)
    house.app.training.pause(again)
    house.wait_for(again, "paused")
    folder.joinpath("old 1.png").unlink()
    house.app.training.resume(again)
    house.wait_for(again, "failed")
    assert "not the ones this training began with" in house.train(again).status.message


def test_no_training_begins_while_they_are_drawn(house: House) -> None:
    house.set_up(1, preview_steps=2)
    house.app.regularisation.generate("cat", "v1", "shape", PROMPT, "", 1)
    with pytest.raises(ConfigError, match="being drawn"):
        house.app.training.begin("cat", "v1")
    house.app.start_background()
    end(house)
    job = house.app.training.begin("cat", "v1")
    house.wait_for(job, "finished")
    assert any(isinstance(event, ev.Finished) for event in house.folder(job).events())
