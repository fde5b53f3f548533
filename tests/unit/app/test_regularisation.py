"""Regularisation pictures by class: what they cost, and what is asked of the worker; no worker is started."""

from __future__ import annotations

import os
import shutil
from collections import namedtuple
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from lora_train.app.paces import remember_drawing_pace
from lora_train.core import events as ev
from lora_train.core.errors import ConfigError, JobError, WorkspaceError
from lora_train.core.specs import DRAWING_REGULARISATION, RegularisationSpec, TrainSpec
from lora_train.launch.queue import JobQueue

if TYPE_CHECKING:
    from tests.unit.app.conftest import Desk

QUICK = {"base_model": "demo", "epochs": 3, "batch_size": 1}


def with_settings(desk: Desk, **train: Any) -> None:
    desk.version()
    assert desk.app.settings.save("cat", "v1", {**QUICK, **train}) == []


def class_pictures(desk: Desk, folder: str, count: int, size: tuple[int, int] = (64, 64)) -> Path:
    """In `dataset/reg`, as the original extension keeps them."""
    path = desk.workspace.find_version(*desk.version()).regularisation_dir / folder
    path.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("RGB", size, (number, 99, 0)).save(path / f"{number}.png")
        path.joinpath(f"{number}.txt").write_text("a photo", encoding="utf-8")
    return path


def generate(desk: Desk, class_name: str = "person", prompt: str = "a photo of a person", count: int = 3) -> str:
    return desk.app.regularisation.generate("cat", "v1", class_name, prompt, "", count)


class TestWhatIsThere:
    def test_pictures_of_an_original_workspace_count(self, desk: Desk) -> None:
        """Its class pictures lie in dataset/reg alone; the gallery, the sum and the plan have them."""
        with_settings(desk)
        desk.trained("4_cat/a.png", "4_cat/b.png")
        class_pictures(desk, "1_person", 3)
        entries = {entry.file: entry for entry in desk.app.datasets.snapshot("cat", "v1").pictures}
        entry = entries["../reg/1_person/0.png"]
        assert (entry.is_regularisation, entry.is_waiting, entry.caption) == (True, False, "a photo")
        forecast = desk.app.training.forecast("cat", "v1")
        # 2 pictures x 4 repeats, as many regularisation views, 3 epochs, batch 1.
        assert (forecast.pictures, forecast.regularisation_pictures) == (2, 3)
        assert (forecast.views_per_epoch, forecast.total_steps) == (16, 48)
        spec = desk.job(desk.app.training.begin("cat", "v1")).read_spec()
        assert isinstance(spec, TrainSpec)

    def test_they_are_shown_captioned_and_removed_as_others(self, desk: Desk) -> None:
        with_settings(desk)
        desk.trained("4_cat/a.png")
        folder = class_pictures(desk, "1_person", 2)
        datasets, file = desk.app.datasets, "../reg/1_person/0.png"
        assert datasets.picture_path("cat", "v1", file, is_waiting=False) == folder / "0.png"
        assert datasets.thumbnail("cat", "v1", file, is_waiting=False)[:2] == b"\xff\xd8"
        assert str(folder) in datasets.snapshot("cat", "v1").folders
        datasets.set_caption("cat", "v1", file, "a portrait")
        assert folder.joinpath("0.txt").read_text(encoding="utf-8") == "a portrait"
        undo = datasets.remove("cat", "v1", file)
        assert sorted(path.name for path in folder.iterdir()) == ["1.png", "1.txt"]
        assert file not in [entry.file for entry in datasets.snapshot("cat", "v1").pictures]
        desk.app.projects.restore(undo.entry)
        assert folder.joinpath("0.txt").read_text(encoding="utf-8") == "a portrait"
        for outside in ("../reg/../../version.json", "../origin/x.png", "../reg/1_person/9.png"):
            with pytest.raises(WorkspaceError):
                datasets.picture_path("cat", "v1", outside, is_waiting=False)

    def test_classes_of_both_places(self, desk: Desk) -> None:
        with_settings(desk)
        desk.trained("4_cat/a.png", "reg/2_animal/a.png")
        class_pictures(desk, "1_person", 3)
        class_pictures(desk, "5_animal", 1)
        found = desk.app.regularisation.classes("cat", "v1")
        assert [(own.folder, own.name, own.repeats, own.count) for own in found] == [
            ("reg/2_animal", "animal", 2, 1),
            ("../reg/1_person", "person", 1, 3),
            ("../reg/5_animal", "animal", 5, 1),
        ]
        assert desk.app.regularisation.snapshot("cat", "v1").classes == found

    def test_a_version_without_anything(self, desk: Desk) -> None:
        desk.version()
        snapshot = desk.app.regularisation.snapshot("cat", "v1")
        assert (snapshot.classes, snapshot.job, snapshot.status, snapshot.is_drawing) == ([], "", None, False)
        with pytest.raises(WorkspaceError):
            desk.app.regularisation.classes("cat", "v9")

    def test_duplicates_take_them_along(self, desk: Desk) -> None:
        with_settings(desk)
        desk.trained("4_cat/a.png")
        class_pictures(desk, "1_person", 3)
        desk.app.projects.duplicate_version("cat", "v1", "v2")
        assert [own.count for own in desk.app.regularisation.classes("cat", "v2")] == [3]


class TestEstimate:
    def test_steps_without_now_and_with_more(self, desk: Desk) -> None:
        """2 x 5 training views: an epoch has 10 views alone, 20 with any number of regularisation pictures."""
        with_settings(desk)
        desk.trained("5_cat/a.png", "5_cat/b.png")
        told = desk.app.regularisation.estimate("cat", "v1", 4)
        assert (told.pictures, told.training_views, told.used_per_epoch) == (0, 10, 0)
        assert (told.total_steps_without, told.total_steps, told.total_steps_with) == (30, 30, 60)
        class_pictures(desk, "1_person", 4)
        told = desk.app.regularisation.estimate("cat", "v1", 0)
        assert (told.pictures, told.training_views, told.used_per_epoch) == (4, 10, 4)
        assert (told.total_steps_without, told.total_steps, told.total_steps_with) == (30, 60, 60)
        class_pictures(desk, "1_person", 25)
        told = desk.app.regularisation.estimate("cat", "v1", 0)
        assert (told.pictures, told.used_per_epoch, told.total_steps) == (25, 10, 60)

    @pytest.mark.parametrize("class_name", ["person", "animal", ""])
    @pytest.mark.parametrize(("batch_size", "before"), [(1, 0), (4, 0), (3, 2), (4, 7)])
    def test_the_promise_is_kept(self, desk: Desk, class_name: str, batch_size: int, before: int) -> None:
        """Of drawn pictures of another size than those that are there: buckets have partial batches."""
        with_settings(desk, batch_size=batch_size)
        desk.trained("3_cat/a.png", "3_cat/b.png", size=(96, 64))
        if before:
            class_pictures(desk, "1_person", before, size=(64, 96))
        told = desk.app.regularisation.estimate("cat", "v1", 5, class_name)
        folder = class_pictures(desk, f"1_{class_name or 'class'}", 0)
        for number in range(1, 6):
            Image.new("RGB", (told.size_px, told.size_px)).save(folder / f"{number:04}.png")
        forecast = desk.app.training.forecast("cat", "v1")
        assert forecast.total_steps == told.total_steps_with
        assert forecast.regularisation_pictures == before + 5
        assert desk.app.regularisation.estimate("cat", "v1", 0).total_steps_without == told.total_steps_without

    def test_sizes_are_those_that_are_drawn(self, desk: Desk) -> None:
        with_settings(desk, base_model="")
        assert desk.app.regularisation.estimate("cat", "v1", 1).size_px == 512
        with_settings(desk)
        assert desk.app.regularisation.estimate("cat", "v1", 1).size_px == 64
        with_settings(desk, preview_size_px=96)
        assert desk.app.regularisation.estimate("cat", "v1", 1).size_px == 96

    def test_what_is_wrong_is_told(self, desk: Desk) -> None:
        with_settings(desk, base_model="")
        told = desk.app.regularisation.estimate("cat", "v1", 1001)
        assert (told.total_steps, told.total_steps_with) == (0, 0)
        assert "1001 is not a whole number from 1 to 1000" in told.problems[0]
        assert any("choose a checkpoint" in problem for problem in told.problems)
        assert any("no pictures yet" in problem for problem in told.problems)

    def test_time_is_known_after_the_first_drawing(self, desk: Desk) -> None:
        with_settings(desk)
        assert desk.app.regularisation.estimate("cat", "v1", 10).seconds is None
        told = [ev.Phase(DRAWING_REGULARISATION, done, 20, t) for done, t in ((0, 100.0), (8, 116.0), (10, 120.0))]
        spec = desk.job(generate(desk)).read_spec()
        assert isinstance(spec, RegularisationSpec)
        remember_drawing_pace(desk.workspace.root, spec, told)
        # 20 s for 10 pictures.
        assert desk.app.regularisation.estimate("cat", "v1", 10).seconds == pytest.approx(20)
        with_settings(desk, preview_steps=9)
        assert desk.app.regularisation.estimate("cat", "v1", 10).seconds is None
        remember_drawing_pace(desk.workspace.root, spec, told[:1])
        with_settings(desk, preview_steps=24)
        assert desk.app.regularisation.estimate("cat", "v1", 10).seconds == pytest.approx(20)


class TestGenerate:
    def test_a_job_waits_for_the_card(self, desk: Desk) -> None:
        with_settings(desk)
        prompt = "a photo\nof a  person"
        job = desk.app.regularisation.generate("cat", "v1", "人物", prompt, "blurry", 12)
        spec = desk.job(job).read_spec()
        assert isinstance(spec, RegularisationSpec)
        assert (spec.prompt, spec.negative_prompt, spec.count) == ("a photo of a person", "blurry", 12)
        version = desk.workspace.find_version("cat", "v1")
        assert Path(os.path.normpath(desk.job(job).path / spec.folder)) == version.regularisation_dir / "1_人物"
        assert spec.settings.base_model == "demo"
        assert spec.settings.cpu_threads == 1
        (entry,) = desk.app.queue.entries()
        assert (entry.job, entry.title, entry.kind, entry.state) == (job, "cat v1: 人物", "regularisation", "waiting")
        snapshot = desk.again().regularisation.snapshot("cat", "v1")
        assert (snapshot.job, snapshot.is_drawing) == (job, True)
        assert snapshot.status is not None
        assert snapshot.status.state == "waiting"
        assert not version.regularisation_dir.exists(), "the worker makes it"

    def test_all_that_is_wrong_is_told_at_once(self, desk: Desk) -> None:
        with_settings(desk, base_model="")
        with pytest.raises(ConfigError) as caught:
            generate(desk, prompt=" \n", count=0)
        assert len(caught.value.problems) == 3
        for count in (1, 1000):
            assert generate_and_cancel(desk, count)
        with pytest.raises(ConfigError, match="1 to 1000"):
            generate(desk, count=1001)
        with pytest.raises(WorkspaceError, match="Type a name"):
            generate(desk, class_name=" ")
        assert desk.app.queue.entries() == []

    def test_models_that_can_not_be_trained_are_refused(self, desk: Desk) -> None:
        with_settings(desk, base_model=str(desk.picture()))
        with pytest.raises(ConfigError):
            generate(desk)
        desk.host.is_local = False
        with pytest.raises(ConfigError, match="takes no paths"):
            generate(desk)

    def test_one_at_a_time(self, desk: Desk) -> None:
        with_settings(desk)
        desk.version("dog")
        desk.app.settings.save("dog", "v1", QUICK)
        first = generate(desk)
        with pytest.raises(JobError, match="being drawn"):
            generate(desk, class_name="animal")
        assert desk.app.regularisation.generate("dog", "v1", "animal", "an animal", "", 1)
        desk.app.queue.cancel(first)
        assert generate(desk, class_name="animal")

    def test_a_training_waits_for_its_end(self, desk: Desk) -> None:
        with_settings(desk)
        desk.trained("4_cat/a.png")
        job = generate(desk)
        with pytest.raises(ConfigError, match="being drawn"):
            desk.app.training.begin("cat", "v1")
        for change in (
            lambda: desk.app.projects.rename("cat", "dog"),
            lambda: desk.app.projects.delete_version("cat", "v1"),
        ):
            with pytest.raises(JobError, match="being drawn"):
                change()
        desk.app.training.stop(job)
        assert desk.app.queue.entries() == []
        train = desk.app.training.begin("cat", "v1")
        assert train
        with pytest.raises(JobError, match="needs the pictures"):
            generate(desk)

    def test_refused_while_the_dataset_is_updated(self, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
        with_settings(desk)
        monkeypatch.setattr(desk.app.regularisation._in_use, "_is_updating", lambda version: True)
        with pytest.raises(JobError, match="being updated"):
            generate(desk)

    def test_refused_where_the_disk_is_too_full(self, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
        with_settings(desk)
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 205_000_000))
        # 64 x 64 x 3 bytes, uncompressed: 406 fit into the 5 MB beyond what is kept free, 407 don't.
        with pytest.raises(WorkspaceError, match="407 pictures may need"):
            generate(desk, count=407)
        assert generate(desk, count=406)

    def test_a_queue_that_is_locked_leaves_nothing_running(self, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
        with_settings(desk)

        def locked(queue: JobQueue, job: str) -> None:
            raise JobError("The queue is locked by another program.")

        monkeypatch.setattr(JobQueue, "add", locked)
        with pytest.raises(JobError, match="locked"):
            generate(desk)
        assert not desk.app.regularisation.snapshot("cat", "v1").is_drawing


def generate_and_cancel(desk: Desk, count: int) -> bool:
    with_settings(desk)
    desk.app.queue.cancel(generate(desk, count=count))
    return True


class TestOwnPictures:
    def test_they_go_to_their_class(self, desk: Desk) -> None:
        with_settings(desk)
        desk.trained("4_cat/a.png")
        caption = desk.root / "caption"
        caption.write_text("ある人", encoding="utf-8")
        files = [("IMG 1.PNG", desk.picture()), ("IMG 1.txt", caption), ("notes.exe", caption)]
        problems = desk.app.regularisation.add("cat", "v1", "person", files)
        assert len(problems) == 1
        assert "notes.exe" in problems[0]
        (picture,) = [entry for entry in desk.app.datasets.snapshot("cat", "v1").pictures if entry.is_regularisation]
        assert (picture.file, picture.caption) == ("../reg/1_person/IMG 1.PNG", "ある人")
        other = desk.picture(color=(1, 2, 3))
        assert desk.app.regularisation.add("cat", "v1", "Person", [("IMG 1.PNG", other)]) == []
        assert [own.count for own in desk.app.regularisation.classes("cat", "v1")] == [2]

    def test_rubbish_leaves_no_empty_class(self, desk: Desk) -> None:
        desk.version()
        assert len(desk.app.regularisation.add_bytes("cat", "v1", "person", [("a.png", b"no picture")])) == 1
        assert desk.app.regularisation.classes("cat", "v1") == []

    def test_not_while_a_training_needs_them(self, desk: Desk) -> None:
        with_settings(desk)
        desk.trained("4_cat/a.png")
        desk.app.training.begin("cat", "v1")
        with pytest.raises(JobError, match="needs the pictures"):
            desk.app.regularisation.add("cat", "v1", "person", [("a.png", desk.picture())])


class TestRemove:
    def test_a_class_goes_and_comes_back(self, desk: Desk) -> None:
        with_settings(desk)
        desk.trained("4_cat/a.png", "reg/2_animal/a.png")
        class_pictures(desk, "1_person", 3)
        before = desk.app.regularisation.classes("cat", "v1")
        for entry in before:
            undo = desk.app.regularisation.remove_class("cat", "v1", entry.folder)
            assert entry not in desk.app.regularisation.classes("cat", "v1")
            desk.app.projects.restore(undo.entry)
            assert desk.app.regularisation.classes("cat", "v1") == before
        assert len(desk.app.datasets.snapshot("cat", "v1").pictures) == 5

    def test_loose_pictures_go_without_the_classes_below(self, desk: Desk) -> None:
        with_settings(desk)
        class_pictures(desk, ".", 2)
        class_pictures(desk, "1_person", 1)
        desk.app.regularisation.remove_class("cat", "v1", "../reg")
        assert [own.folder for own in desk.app.regularisation.classes("cat", "v1")] == ["../reg/1_person"]

    @pytest.mark.parametrize("folder", ["", "4_cat", "..", "../origin", "../reg/1_nobody", "../reg/../../trains"])
    def test_nothing_else_can_be_removed(self, desk: Desk, folder: str) -> None:
        desk.trained("4_cat/a.png")
        class_pictures(desk, "1_person", 1)
        with pytest.raises(WorkspaceError, match="no regularisation pictures"):
            desk.app.regularisation.remove_class("cat", "v1", folder)

    def test_not_while_they_are_drawn(self, desk: Desk) -> None:
        with_settings(desk)
        class_pictures(desk, "1_person", 1)
        generate(desk)
        with pytest.raises(JobError, match="being drawn"):
            desk.app.regularisation.remove_class("cat", "v1", "../reg/1_person")
