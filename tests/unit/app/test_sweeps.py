"""Sweeps begun and kept going."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lora_train.app import planning
from lora_train.core.errors import ConfigError, WorkspaceError
from lora_train.core.judgement import Judged, Judgement
from lora_train.core.records import write_json
from lora_train.core.specs import TrainSpec

if TYPE_CHECKING:
    pass

from tests.unit.app.floor import Floor, knows_pace

# --- before ---


def test_forecast_is_the_sum_of_the_runs(floor: Floor) -> None:
    knows_pace(floor, 2.0, 10.0)
    desk = floor.desk
    desk.app.settings.save("cat", "v1", sweep={"ranks": "8,16", "batch_sizes": "1,2"})
    forecast = desk.app.sweeps.forecast("cat", "v1")
    assert forecast.problems == []
    assert forecast.labels == ["rank 8 · batch 1", "rank 8 · batch 2", "rank 16 · batch 1", "rank 16 · batch 2"]
    assert forecast.total_steps == 2 * 40 + 2 * 20
    assert forecast.seconds is None, "nobody knows how fast batches of 2 are"
    desk.app.settings.save("cat", "v1", sweep={"batch_sizes": ""})
    forecast = desk.app.sweeps.forecast("cat", "v1")
    assert forecast.seconds == 2 * (40 * 2.0 + 10.0)
    # One LoRA each and a state of six times its size in three copies: 1.35 MB a rank.
    assert forecast.disk_bytes == (8 + 16) * 1_350_000 * 19


def test_one_run_is_no_sweep(floor: Floor) -> None:
    for lists in ({}, {"ranks": "8"}, {"ranks": "8,8"}):
        floor.desk.app.settings.save("cat", "v1", sweep={"ranks": "", **lists})
        assert "two values" in floor.desk.app.sweeps.forecast("cat", "v1").problems[0]
        with pytest.raises(ConfigError, match="two values"):
            floor.desk.app.sweeps.begin("cat", "v1")


def test_problems_are_told_by_label_and_nothing_is_written(floor: Floor, tmp_path: Path) -> None:
    desk = floor.desk
    desk.app.settings.save("cat", "v1", sweep={"base_models": ["demo", str(tmp_path / "none.safetensors")]})
    (problem,) = desk.app.sweeps.forecast("cat", "v1").problems
    assert problem.startswith("none: ")
    assert "does not exist" in problem
    with pytest.raises(ConfigError, match="none: "):
        desk.app.sweeps.begin("cat", "v1")
    desk.app.settings.save("cat", "v1", sweep={"presets": ["style", "gone"], "base_models": ["demo"]})
    assert desk.app.sweeps.forecast("cat", "v1").problems[0].startswith("gone: preset: there is none called 'gone'")
    trains = desk.workspace.find_version("cat", "v1").trains_dir
    assert not trains.exists()
    assert desk.app.queue.entries() == []


def test_what_is_wrong_with_all_is_told_once(floor: Floor) -> None:
    shutil.rmtree(floor.desk.workspace.find_version("cat", "v1").dataset_dir)
    floor.desk.app.settings.save("cat", "v1", sweep={"ranks": "8,16"})
    assert [p.partition(":")[0] for p in floor.desk.app.sweeps.forecast("cat", "v1").problems] == [
        "There are no pictures yet"
    ]


def test_presets_are_under_the_other_lists(floor: Floor) -> None:
    sweep = floor.begin(presets=["style", "character"], ranks="3,5")
    jobs = [floor.desk.job(row.job).read_spec() for row in floor.shown(sweep).rows]
    rows = floor.shown(sweep).rows
    assert [row.label for row in rows] == [
        "style · rank 3",
        "style · rank 5",
        "character · rank 3",
        "character · rank 5",
    ]
    style = floor.desk.app.presets.find("style").values("small")
    for job, rank, preset in zip(jobs, (3, 5, 3, 5), ("style", "style", "character", "character"), strict=True):
        assert isinstance(job, TrainSpec)
        assert job.settings.rank == rank
        assert job.settings.alpha == floor.desk.app.presets.find(preset).values("small")["alpha"]
    assert style["rank"] not in (3, 5), "the lists win"


def test_a_full_disk_is_told_before(floor: Floor, monkeypatch: pytest.MonkeyPatch) -> None:
    full = shutil.disk_usage(floor.desk.root)._replace(free=1000)
    monkeypatch.setattr(planning.shutil, "disk_usage", lambda _: full)
    with pytest.raises(WorkspaceError, match="sweep of 4 runs"):
        floor.begin()


# --- without a time ---


def test_every_run_has_a_name_and_a_place(floor: Floor) -> None:
    sweep = floor.begin()
    rows = floor.shown(sweep).rows
    assert [row.name for row in rows] == ["cat-v1", "cat-v1-r2", "cat-v1-r3", "cat-v1-r4"]
    assert [entry.job for entry in floor.desk.app.queue.entries()] == [row.job for row in rows]
    floor.train_all()
    shown = floor.shown(sweep)
    assert (shown.ended, floor.states(sweep)) == ("finished", ["finished"] * 4)
    assert [row.label for row in shown.rows if row.is_best] == ["0.004"]
    loras = floor.desk.app.sweeps.comparison_loras(sweep)
    assert [path.name for path in loras] == [f"{row.name}.safetensors" for row in rows]


def test_a_failed_run_does_not_stop_the_rest(floor: Floor) -> None:
    floor.fails = {"cat-v1-r2"}
    sweep = floor.begin()
    floor.train_all()
    assert floor.states(sweep) == ["finished", "failed", "finished", "finished"]
    assert floor.shown(sweep).ended == "finished"


def test_the_judge_decides_where_all_are_judged(floor: Floor) -> None:
    floor.validates = False
    sweep = floor.begin()
    floor.train_all()
    assert not any(row.is_best for row in floor.shown(sweep).rows), "the training loss says too little"
    for row, score in zip(floor.shown(sweep).rows, (0.2, 0.9, 0.3, 0.1), strict=True):
        facts = Judged(lora=row.lora, weight=0.8, likeness=0.5, score=score)
        write_json(floor.desk.job(row.job).path / "judgement.json", Judgement(rows=(facts,), lora=row.lora, weight=0.8))
    best = [row for row in floor.shown(sweep).rows if row.is_best]
    assert [(row.label, row.judge_score, row.judge_weight) for row in best] == [("0.002", 0.9, 0.8)]


def test_stop_all_empties_the_queue(floor: Floor) -> None:
    sweep = floor.begin()
    floor.train_next()
    floor.desk.app.sweeps.stop_all(sweep)
    assert floor.desk.app.queue.entries() == []
    assert (floor.shown(sweep).ended, floor.states(sweep)) == ("stopped", ["finished", "waiting", "waiting", "waiting"])
    assert not any(row.is_waiting for row in floor.shown(sweep).rows)


def test_single_runs_taken_out_by_hand(floor: Floor) -> None:
    """The last one that waits is cancelled, and one that ended deleted: the sweep is over all the same."""
    sweep = floor.begin()
    jobs = [row.job for row in floor.shown(sweep).rows]
    floor.train_next()
    floor.desk.app.training.delete(jobs[0])
    for job in jobs[1:]:
        floor.desk.app.queue.cancel(job)
    (shown,) = floor.desk.app.sweeps.list("cat", "v1")
    assert shown.ended == "finished"
    assert [row.job for row in shown.rows] == ["", *jobs[1:]]


def test_damaged_and_missing_sweeps_are_told(floor: Floor) -> None:
    sweep = floor.begin()
    (floor.desk.workspace.root / sweep / "sweep.json").write_text("{", encoding="utf-8")
    assert floor.desk.app.sweeps.list("cat", "v1") == []
    find: list[Callable[[str], object]] = [floor.desk.app.sweeps.stop_all, floor.desk.app.sweeps.snapshot]
    for call in find:
        for wrong in ("", "projects/cat/versions/v1/sweeps/../trains", f"{sweep}x", sweep):
            with pytest.raises(WorkspaceError):
                call(wrong)


def test_a_copy_of_a_version_has_its_lists_and_not_its_sweeps(floor: Floor) -> None:
    floor.begin(ranks="8,16")
    copy = floor.desk.app.projects.duplicate_version("cat", "v1", "v2").version
    assert floor.desk.app.settings.sweep("cat", copy)["ranks"] == (8, 16)
    assert floor.desk.app.sweeps.list("cat", copy) == []
