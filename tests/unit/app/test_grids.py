"""Previews of finished LoRAs: what is asked of the worker, what they cost, and what stays of them; nobody draws."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from lora_train.app.grid_snapshot import GridJob
from lora_train.app.grids import MOST_PICTURES
from lora_train.app.paces import remember_grid_pace
from lora_train.core import events as ev
from lora_train.core.assets import DEMO_MODEL
from lora_train.core.errors import ConfigError, JobError, WorkspaceError
from lora_train.core.grids import axes, cells, grid_file
from lora_train.core.host import BaseModelChoice
from lora_train.core.jobs import JobStatus
from lora_train.core.specs import GridSpec
from lora_train.launch.queue import JobQueue

if TYPE_CHECKING:
    from tests.unit.app.conftest import Desk

IDS = ("cat", "v1")
LORAS = ("cat-v1-000001.safetensors", "cat-v1.safetensors")


def with_preview(desk: Desk, **preview: Any) -> None:
    desk.version()
    assert desk.app.settings.save(*IDS, preview=preview) == []


def spec_of(desk: Desk, job: str) -> GridSpec:
    spec = desk.job(job).read_spec()
    assert isinstance(spec, GridSpec)
    return spec


def draw(desk: Desk, job: str, *, most: int | None = None, end: ev.Event | None = None) -> None:
    """What the worker would leave: pictures, the grids of LoRAs that are done, and its last word."""
    folder, spec = desk.job(job), spec_of(desk, job)
    for cell in list(cells(spec))[:most]:
        for file in cell.files:
            path = folder.path / file
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (8, 8), (cell.index % 256, 0, 0)).save(path)
    if most is None:
        for lora in spec.loras:
            Image.new("RGB", (32, 8)).save(folder.path / grid_file(Path(lora).stem))
    desk.tell(folder, ev.Started(pid=0), end or ev.Finished(result={"pictures": most}))
    leave_queue(desk, job)


def leave_queue(desk: Desk, job: str) -> None:
    jobs = JobQueue(desk.workspace.root)
    if job in jobs.waiting():
        jobs.cancel(job)


def only(desk: Desk, project: str = "cat", version: str = "v1") -> GridJob:
    (job,) = desk.app.grids.snapshot(project, version).jobs
    return job


class TestBegin:
    def test_every_lora_of_every_train_in_one_job(self, desk: Desk) -> None:
        desk.finished("cat-v1", loras=LORAS, created=1.0)
        desk.finished("cat-v1-r2", created=2.0)
        with_preview(desk, weights=(0.0, 1.0), seeds=(5,), steps=(4,), width_px=64, height_px=72)
        (job,) = desk.app.grids.begin_all(*IDS)
        spec = spec_of(desk, job)
        stems = ["cat-v1-000001", "cat-v1", "cat-v1-r2"]
        assert [Path(lora).stem for lora in spec.loras] == stems
        assert all((desk.job(job).path / lora).is_file() for lora in spec.loras)
        assert dict(axes(spec)) == {"lora": (*stems,), "weight": ("0", "1")}
        assert (spec.grid.prompt, spec.grid.seeds) == ("cat", (5,))
        (entry,) = desk.app.queue.entries()
        assert (entry.job, entry.title, entry.kind, entry.state) == (job, "cat v1: 3 LoRAs", "preview", "waiting")

    def test_one_lora_and_one_train(self, desk: Desk) -> None:
        train = desk.finished("cat-v1", loras=LORAS)
        desk.finished("cat-v1-r2", created=2.0)
        (job,) = desk.app.grids.begin(train, LORAS[0])
        assert [Path(lora).name for lora in spec_of(desk, job).loras] == [LORAS[0]]
        assert desk.app.queue.entries()[0].title == "cat v1: cat-v1-000001"
        (job,) = desk.app.grids.begin_train(train)
        assert [Path(lora).name for lora in spec_of(desk, job).loras] == [*LORAS]
        with pytest.raises(WorkspaceError, match=r"no LoRA 'dog\.safetensors'"):
            desk.app.grids.begin(train, "dog.safetensors")
        with pytest.raises(JobError, match="is no training"):
            desk.app.grids.begin_train(job)

    def test_what_was_left_open_is_chosen_once(self, desk: Desk) -> None:
        """The demo's model is of 64 pixels; the words are those in the file."""
        desk.finished("cat-v1", trigger_word="sks cat")
        with_preview(desk, seeds=(-1, 7, -1))
        (job,) = desk.app.grids.begin_all(*IDS)
        grid = spec_of(desk, job).grid
        assert (grid.width_px, grid.height_px, grid.prompt) == (64, 64, "sks cat")
        assert grid.seeds[1] == 7
        assert all(0 <= seed < 2**32 for seed in grid.seeds)

    def test_each_base_model_has_a_job_with_the_same_seeds(self, desk: Desk) -> None:
        other = desk.root / "other.safetensors"
        shutil.copyfile(DEMO_MODEL, other)
        desk.finished("cat-v1", created=1.0)
        desk.finished("cat-v1-r2", created=2.0, base_model=str(other))
        jobs = [spec_of(desk, job) for job in desk.app.grids.begin_all(*IDS)]
        assert [spec.settings.base_model for spec in jobs] == ["demo", str(other)]
        assert jobs[0].grid.seeds == jobs[1].grid.seeds

    def test_everything_in_the_way_at_once(self, desk: Desk) -> None:
        desk.version()
        with pytest.raises(ConfigError, match="no LoRA yet"):
            desk.app.grids.begin_all(*IDS)
        desk.finished("cat-v1", base_model=str(desk.root / "gone.safetensors"))
        desk.app.settings.save(*IDS, preview={"samplers": ["Euler b"], "width_px": 65})
        with pytest.raises(ConfigError) as told:
            desk.app.grids.begin_all(*IDS)
        for text in ("'Euler b' can't be drawn by Train Tools", "gone.safetensors", "65 is not 0 or a multiple of 8"):
            assert any(text in problem for problem in told.value.problems), told.value.problems
        assert desk.app.queue.entries() == []

    def test_too_many_are_refused(self, desk: Desk) -> None:
        desk.finished("cat-v1", loras=LORAS)
        with_preview(desk, weights=(1.0,), batch_count=100, batch_size=100)
        assert MOST_PICTURES == 2 * 100 * 100
        assert desk.app.grids.forecast(*IDS).problems == []
        desk.finished("cat-v1-r2", created=2.0)
        with pytest.raises(ConfigError, match="30,000 pictures are too many"):
            desk.app.grids.begin_all(*IDS)

    def test_a_host_draws_only_where_there_is_one(self, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
        desk.finished("cat-v1")
        with_preview(desk, drawn_by="host", samplers=["Restart"])
        (problem,) = desk.app.grids.forecast(*IDS).problems
        assert problem.startswith("Drawn by: there is no WebUI")
        monkeypatch.setattr(desk.host, "samplers", lambda: ("Restart", "Euler"))
        (problem,) = desk.app.grids.forecast(*IDS).problems
        assert problem.startswith("Drawn by: the WebUI does not list demo")
        monkeypatch.setattr(desk.host, "base_models", lambda: [BaseModelChoice("demo", str(DEMO_MODEL))])
        assert desk.app.grids.forecast(*IDS).problems == []
        assert desk.app.grids.samplers()[-1] == "Restart"

    def test_refused_where_the_disk_is_too_full(self, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
        """64 x 64 x 3 bytes for each of 4 pictures and their places in the grid: 98304 bytes."""
        desk.finished("cat-v1")

        def usage(free: int) -> Any:
            return lambda path: shutil._ntuple_diskusage(0, 0, free)  # type: ignore[attr-defined]

        monkeypatch.setattr(shutil, "disk_usage", usage(200_098_303))
        with pytest.raises(WorkspaceError, match="MB free"):
            desk.app.grids.begin_all(*IDS)
        monkeypatch.setattr(shutil, "disk_usage", usage(200_098_304))
        assert desk.app.grids.begin_all(*IDS)


class TestForecast:
    def test_pictures_and_time(self, desk: Desk) -> None:
        """2 LoRAs x 3 weights x 2 seeds x 2 of a batch x (10 + 20) steps, at 0.01 s a step of 64 x 64."""
        desk.finished("cat-v1", loras=LORAS)
        with_preview(desk, weights=(0.0, 0.5, 1.0), seeds=(1, 2), batch_size=2, steps=(10, 20))
        told = desk.app.grids.forecast(*IDS)
        assert (told.loras, told.pictures, told.seconds, told.problems) == (2, 48, None, [])
        (job,) = desk.app.grids.begin_all(*IDS)
        spec = spec_of(desk, job)
        assert len([file for cell in cells(spec) for file in cell.files]) == told.pictures
        result = {"s_per_picture_step": 0.01, "model_id": "x", "width_px": 64, "height_px": 64}
        remember_grid_pace(desk.workspace.root, spec, JobStatus(state="finished", result=result))
        assert desk.app.grids.forecast(*IDS).seconds == pytest.approx(2 * 3 * 2 * 2 * 30 * 0.01)
        with_preview(desk, width_px=128)
        assert desk.app.grids.forecast(*IDS).seconds == pytest.approx(2 * 2 * 3 * 2 * 2 * 30 * 0.01)

    @pytest.mark.parametrize("result", [{}, {"s_per_picture_step": 0.0, "width_px": 64, "height_px": 64}])
    def test_what_measured_nothing_is_not_remembered(self, desk: Desk, result: dict[str, object]) -> None:
        desk.finished("cat-v1")
        (job,) = desk.app.grids.begin_all(*IDS)
        remember_grid_pace(desk.workspace.root, spec_of(desk, job), JobStatus(result=result))
        assert desk.app.grids.forecast(*IDS).seconds is None


class TestWhatIsThere:
    def test_jobs_newest_first_with_what_is_drawn(self, desk: Desk) -> None:
        desk.finished("cat-v1", loras=LORAS)
        with_preview(desk, weights=(0.0, 1.0), seeds=(1, 2), delete_before=False)
        (old,) = desk.app.grids.begin_all(*IDS)
        draw(desk, old)
        (new,) = desk.app.grids.begin_all(*IDS)
        draw(desk, new, most=5, end=ev.Stopped(step=5))
        stopped, finished = desk.app.grids.snapshot(*IDS).jobs
        assert (stopped.job, stopped.status.state, stopped.drawn, stopped.total) == (new, "stopped", 5, 8)
        assert [len(lora.pictures) for lora in stopped.loras] == [4, 1]
        assert (finished.job, finished.drawn, finished.place) == (old, 8, None)
        assert [lora.file for lora in finished.loras] == ["cat-v1-000001-grid.png", "cat-v1-grid.png"]

    def test_the_table_knows_every_place(self, desk: Desk) -> None:
        desk.finished("cat-v1", loras=LORAS)
        with_preview(desk, weights=(0.0, 0.5, 1.0), cfg_scales=(3.0, 7.5), seeds=(9,), batch_size=2)
        (job,) = desk.app.grids.begin_all(*IDS)
        draw(desk, job, most=7)
        table = desk.app.grids.table(job)
        assert [(axis.name, axis.labels) for axis in table.axes] == [
            ("lora", ["cat-v1-000001", "cat-v1"]),
            ("cfg", ["3", "7.5"]),
            ("weight", ["0", "0.5", "1"]),
        ]
        assert [cell.place for cell in table.cells[:4]] == [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0]]
        assert table.cells[-1].place == [1, 1, 2]
        spec = spec_of(desk, job)
        for cell, place in zip(cells(spec), table.cells, strict=True):
            named = {axis.name: axis.labels[own] for axis, own in zip(table.axes, place.place, strict=True)}
            assert (named["lora"], named["cfg"], named["weight"]) == (cell.lora, f"{cell.cfg:g}", f"{cell.weight:g}")
            assert place.files == (list(cell.files) if cell.index < 7 else [])

    def test_files_are_served_and_no_others(self, desk: Desk) -> None:
        train = desk.finished("cat-v1")
        (job,) = desk.app.grids.begin_all(*IDS)
        draw(desk, job)
        grids = desk.app.grids
        assert grids.file_path(job, "pictures/00000-0.png").is_file()
        assert grids.file_path(job, "cat-v1-grid.png").is_file()
        assert grids.thumbnail(job, "pictures/00000-0.png")[:2] == b"\xff\xd8"
        for file in ("job.json", "pictures/../job.json", "pictures/00099-0.png", "../../page.json", "dog-grid.png", ""):
            with pytest.raises(WorkspaceError):
                grids.file_path(job, file)
        with pytest.raises(JobError, match="draws no previews"):
            grids.file_path(train, "cat-v1.safetensors")

    def test_deleted_loras_and_trains_leave_the_list(self, desk: Desk) -> None:
        train = desk.finished("cat-v1", loras=LORAS)
        (job,) = desk.app.grids.begin_all(*IDS)
        draw(desk, job)
        undo = desk.app.loras.delete(train, LORAS[0])
        assert [lora.stem for lora in only(desk).loras] == ["cat-v1"]
        assert {cell.place[0] for cell in desk.app.grids.table(job).cells} == {1}
        desk.app.projects.restore(undo.entry)
        assert len(only(desk).loras) == 2
        undo = desk.app.training.delete(train)
        assert desk.app.grids.snapshot(*IDS).jobs == []
        desk.app.projects.restore(undo.entry)
        assert len(only(desk).loras) == 2

    def test_a_job_whose_folder_is_gone_or_damaged_is_left_out(self, desk: Desk) -> None:
        desk.finished("cat-v1")
        with_preview(desk, delete_before=False)
        jobs = [desk.app.grids.begin_all(*IDS)[0] for _ in range(3)]
        shutil.rmtree(desk.job(jobs[0]).path)
        desk.job(jobs[1]).spec_path.write_text("{", encoding="utf-8")
        assert only(desk).job == jobs[2]


class TestRenamed:
    def test_grids_are_found_again_and_go_on(self, desk: Desk) -> None:
        desk.finished("cat-v1")
        (job,) = desk.app.grids.begin_all(*IDS)
        with pytest.raises(JobError, match="being drawn"):
            desk.app.projects.rename_version(*IDS, "v2")
        draw(desk, job, most=2, end=ev.Stopped(step=2))
        desk.app.projects.rename_version(*IDS, "second")
        desk.app.projects.rename("cat", "dog")
        found = only(desk, "dog", "second")
        assert (found.job, found.drawn, [lora.stem for lora in found.loras]) == (job, 2, ["cat-v1"])
        desk.app.grids.resume(job)
        assert all((desk.job(job).path / lora).is_file() for lora in spec_of(desk, job).loras)
        assert desk.app.queue.entries()[0].title == "dog second: cat-v1"

    def test_nothing_is_moved_while_it_is_drawn(self, desk: Desk) -> None:
        train = desk.finished("cat-v1")
        desk.app.grids.begin_all(*IDS)
        for move in (
            lambda: desk.app.projects.delete("cat"),
            lambda: desk.app.projects.delete_version(*IDS),
            lambda: desk.app.training.delete(train),
        ):
            with pytest.raises(JobError, match=r"Previews of .* are being drawn"):
                move()
        desk.version("dog")
        desk.app.projects.delete("dog")

    def test_grids_go_with_their_version_and_come_back(self, desk: Desk) -> None:
        desk.finished("cat-v1")
        (job,) = desk.app.grids.begin_all(*IDS)
        draw(desk, job)
        for delete in (lambda: desk.app.projects.delete_version(*IDS), lambda: desk.app.projects.delete("cat")):
            undo = delete()
            assert not desk.job(job).path.exists()
            desk.app.projects.restore(undo.entry)
            assert only(desk).drawn == 4

    def test_a_duplicate_takes_the_settings_along(self, desk: Desk) -> None:
        with_preview(desk, weights=(0.25,))
        desk.app.projects.duplicate_version(*IDS, "v2")
        assert desk.app.settings.preview("cat", "v2")["weights"] == (0.25,)
        assert desk.app.grids.snapshot("cat", "v2").jobs == []


class TestEnds:
    def test_stop_and_go_on(self, desk: Desk) -> None:
        desk.finished("cat-v1")
        (job,) = desk.app.grids.begin_all(*IDS)
        with pytest.raises(JobError, match="wait for the card"):
            desk.app.grids.resume(job)
        desk.app.grids.stop(job)
        assert desk.app.queue.entries() == []
        assert (only(desk).status.state, only(desk).place) == ("waiting", None)
        desk.app.grids.resume(job)
        assert [entry.job for entry in desk.app.queue.entries()] == [job]
        draw(desk, job)
        with pytest.raises(JobError, match="finished"):
            desk.app.grids.resume(job)
        with pytest.raises(JobError, match="not running"):
            desk.app.grids.stop(job)

    def test_what_lost_a_lora_does_not_go_on(self, desk: Desk) -> None:
        train = desk.finished("cat-v1", loras=LORAS)
        (job,) = desk.app.grids.begin_all(*IDS)
        draw(desk, job, most=1, end=ev.Stopped(step=1))
        desk.app.loras.delete(train, LORAS[1])
        with pytest.raises(JobError, match="cat-v1 was deleted"):
            desk.app.grids.resume(job)

    def test_deleted_and_back(self, desk: Desk) -> None:
        desk.finished("cat-v1")
        (job,) = desk.app.grids.begin_all(*IDS)
        with pytest.raises(JobError, match="being drawn"):
            desk.app.grids.delete(job)
        with pytest.raises(JobError, match="no previews"):
            desk.app.grids.delete_all(*IDS)
        draw(desk, job)
        undo = desk.app.grids.delete(job)
        assert (undo.what, desk.app.grids.snapshot(*IDS).jobs) == ("cat-v1", [])
        desk.app.projects.restore(undo.entry)
        assert only(desk).drawn == 4
        undo = desk.app.grids.delete_all(*IDS)
        assert desk.app.grids.snapshot(*IDS).jobs == []
        desk.app.projects.restore(undo.entry)
        assert only(desk).job == job

    def test_delete_before_takes_the_same_loras_alone(self, desk: Desk) -> None:
        train = desk.finished("cat-v1", loras=LORAS)
        (both,) = desk.app.grids.begin_all(*IDS)
        draw(desk, both)
        (one,) = desk.app.grids.begin(train, LORAS[0])
        kept = {job.job: [lora.stem for lora in job.loras] for job in desk.app.grids.snapshot(*IDS).jobs}
        assert kept == {one: ["cat-v1-000001"], both: ["cat-v1"]}
        draw(desk, one)
        (again,) = desk.app.grids.begin_all(*IDS)
        assert [job.job for job in desk.app.grids.snapshot(*IDS).jobs] == [again]
        assert _trashed(desk, "00000-0.png") == 2

    def test_earlier_grids_stay_where_wanted(self, desk: Desk) -> None:
        desk.finished("cat-v1")
        with_preview(desk, delete_before=False)
        jobs: Sequence[str] = []
        for _ in range(2):
            (job,) = desk.app.grids.begin_all(*IDS)
            draw(desk, job)
            jobs = [job, *jobs]
        assert [entry.job for entry in desk.app.grids.snapshot(*IDS).jobs] == jobs

    def test_pages_show_ten(self, desk: Desk) -> None:
        """Newest first; those whose LoRAs are all deleted take no place."""
        train = desk.finished("cat-v1", loras=LORAS)
        gone = desk.finished("cat-v1-r2")
        with_preview(desk, delete_before=False)
        jobs = [
            desk.app.grids.begin(*own)[0]
            for own in [(train, LORAS[0])] * 5 + [(gone, "cat-v1-r2.safetensors")] + [(train, LORAS[1])] * 6
        ]
        for job in jobs:
            draw(desk, job)
        jobs.pop(5)
        desk.app.loras.delete(gone, "cat-v1-r2.safetensors")
        shown = [desk.app.grids.page(*IDS, page) for page in (1, 2, 7)]
        assert [entry.job for entry in shown[0].jobs] == jobs[:0:-1]
        assert [[entry.job for entry in own.jobs] for own in shown[1:]] == [[jobs[0]]] * 2
        assert [(own.page, own.pages) for own in shown] == [(1, 2), (2, 2), (2, 2)]
        assert len(desk.app.grids.snapshot(*IDS).jobs) == len(jobs)


def _trashed(desk: Desk, name: str) -> int:
    return len([*desk.workspace.trash_dir.rglob(name)])
