"""Sweeps over the API, over a real App."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

pytestmark = pytest.mark.compat

World = Any


def test_a_sweep_is_planned_begun_listed_and_stopped(world: World) -> None:
    told = world.post(
        "settings",
        **world.ids,
        train={"base_model": "demo", "epochs": 2},
        sweep={"learning_rates": [1e-3, 2e-3], "optimizers": ["Lion", "AdamW"]},
    )
    assert told == {"problems": []}
    assert world.get("settings", **world.ids)["sweep"]["optimizers"] == ["Lion", "AdamW"]
    forecast = world.get("sweeps/forecast", **world.ids)
    assert forecast["problems"] == []
    assert forecast["labels"] == ["Lion · 0.001", "AdamW · 0.001", "Lion · 0.002", "AdamW · 0.002"]
    sweep = world.post("sweeps", **world.ids)["sweep"]
    assert len(world.get("queue")) == 4
    (listed,) = world.get("sweeps", **world.ids)
    assert (listed["id"], listed["ended"], [row["is_waiting"] for row in listed["rows"]]) == (sweep, "", [True] * 4)
    assert world.post("sweeps/stop", sweep=sweep) == {}
    assert world.get("queue") == []
    assert world.get("sweeps", **world.ids)[0]["ended"] == "stopped"


def test_what_is_wrong_is_told(world: World) -> None:
    wrong = {"optimizers": "Lion, Sofia", "ranks": "8, x", "clip_skips": "0", "finish_by": "soon"}
    problems = world.post("settings", **world.ids, train={"base_model": "demo"}, sweep=wrong)["problems"]
    assert [problem.partition(" ")[0] for problem in problems] == ["optimizers", "ranks", "clip_skips"]
    world.post("settings", **world.ids, sweep={"ranks": "8,16"})
    assert "write it as 07:30" in world.get("sweeps/forecast", **world.ids)["problems"][0]
    answer = world.ask("POST", "sweeps", json=world.ids)
    assert answer.status_code == 400
    assert world.ask("POST", "sweeps/stop", json={"sweep": "projects/x"}).status_code in (400, 404)
