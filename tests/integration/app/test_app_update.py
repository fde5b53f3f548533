"""*Update Dataset* in its own process: progress, stop, death, and sets that the command line made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from lora_train.core.errors import ConfigError, JobError
from lora_train.launch import launcher

if TYPE_CHECKING:
    from tests.integration.app.conftest import House
    from tests.integration.conftest import Studio


def captions(house: House) -> dict[str, str]:
    return {entry.file: entry.caption for entry in house.app.datasets.snapshot("cat", "v1").pictures}


def begin_a_long_one(house: House) -> str:
    """A set of one picture, and then an update of many large ones that has begun."""
    house.save()
    house.upload(1)
    house.update()
    large = house.picture((1500, 1500))
    house.app.datasets.add("cat", "v1", [(f"large {number}.png", large) for number in range(40)])
    house.app.datasets.set_caption("cat", "v1", "1_cat/0.png", "by hand")
    job = house.app.datasets.start_update("cat", "v1")

    def has_begun() -> bool:
        update = house.app.datasets.snapshot("cat", "v1").update
        assert update is not None
        assert update.state in ("waiting", "running")
        return update.phase_done > 2

    house.wait(has_begun)
    return job


def test_stop_leaves_the_old_set(house: House) -> None:
    begin_a_long_one(house)
    with pytest.raises(JobError, match="being updated already"):
        house.app.datasets.start_update("cat", "v1")
    with pytest.raises(ConfigError, match="being updated"):
        house.app.training.begin("cat", "v1")
    with pytest.raises(JobError, match="being updated"):
        house.app.projects.rename_version("cat", "v1", "v2")
    house.app.datasets.stop_update("cat", "v1")
    house.wait(lambda: house.app.datasets.snapshot("cat", "v1").update.state == "stopped")
    trained = [entry for entry in house.app.datasets.snapshot("cat", "v1").pictures if not entry.is_waiting]
    assert [(entry.file, entry.caption) for entry in trained] == [("1_cat/0.png", "by hand")]
    assert house.app.training.forecast("cat", "v1").problems == []


def test_death_in_the_middle_leaves_the_old_set(house: House) -> None:
    job = begin_a_long_one(house)
    process = launcher.process_of(house.folder(job))
    assert isinstance(process, psutil.Process)
    process.kill()
    house.wait(lambda: house.app.datasets.snapshot("cat", "v1").update.state == "failed")
    assert captions(house)["1_cat/0.png"] == "by hand"
    house.update()
    assert len(captions(house)) == 41
    assert captions(house)["1_cat/0.png"] == "by hand"
    dataset_dir = house.app.workspace.find_version("cat", "v1").path / "dataset"
    left = {path.name for path in dataset_dir.iterdir()}
    assert left == {".facts.json", ".update-lock", "caption_history.json", "origin", "processed"}, "nothing half-made"
    assert not any(entry.is_waiting for entry in house.app.datasets.snapshot("cat", "v1").pictures)


def test_damaged_pictures_are_told_by_the_update(house: House) -> None:
    house.save()
    house.upload(1)
    cut = house.root / "cut.png"
    cut.write_bytes(house.picture((200, 200), seed=5).read_bytes()[:-2000])
    assert house.app.datasets.add("cat", "v1", [("cut.png", cut)]) == []
    house.update()
    snapshot = house.app.datasets.snapshot("cat", "v1")
    assert snapshot.update is not None
    assert "cut short" in snapshot.update.notes[0]
    assert [(entry.file, entry.is_waiting) for entry in snapshot.pictures] == [
        ("1_cat/0.png", False),
        ("cut.png", True),
    ]


def test_nothing_uploaded(house: House) -> None:
    house.save()
    house.update()
    update = house.app.datasets.snapshot("cat", "v1").update
    assert update is not None
    assert (update.state, "no uploaded pictures" in update.message) == ("failed", True)


def test_a_set_of_the_command_line_keeps_its_captions(studio: Studio) -> None:
    """`lora-train train` makes a project that the page can open, change and train on."""
    images = studio.pictures("pictures", ["a red thing", "a blue thing"], sizes_px=[(80, 64)])
    studio.plan(images, name="cat")
    app = studio.app
    assert app.projects.selection().project == "cat"
    assert app.settings.train("cat", "v1")["rank"] == 2
    before = {entry.caption for entry in app.datasets.snapshot("cat", "v1").pictures}
    assert before == {"a red thing", "a blue thing"}
    (train,) = app.training.list("cat", "v1")
    assert (train.status.state, train.place) == ("waiting", None)
    app.settings.save("cat", "v1", dataset={"width_px": 64, "height_px": 64, "caption_action": "ignore"})
    app.datasets.start_update("cat", "v1")
    version = app.workspace.find_version("cat", "v1")
    while app.datasets.is_updating(version):
        pass
    pictures = app.datasets.snapshot("cat", "v1").pictures
    assert {entry.caption for entry in pictures} == before
    assert {(entry.width_px, entry.height_px, entry.is_waiting) for entry in pictures} == {(64, 64, False)}
    assert {Path(entry.file).parent.name for entry in pictures} == {"1_cat"}
