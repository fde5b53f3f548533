"""The judge's routes, over a real App."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from lora_train.core.assets import DEMO_PICTURES
from lora_train.core.config import TrainSettings
from lora_train.core.jobs import JobFolder

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

pytestmark = pytest.mark.compat

World = Any


def test_judged_overruled_published(world: World) -> None:
    (train, *_) = world.get("trains", **world.ids)
    job, file = train["job"], train["loras"][0]["file"]
    folder = JobFolder(world.train_dir)
    settings = TrainSettings(base_model="demo")
    folder.replace_spec(msgspec.structs.replace(folder.read_spec(), settings=settings, dataset=str(DEMO_PICTURES)))
    cost = world.get("judge/forecast", job=job)
    assert cost["pictures"] > 0, cost
    judge = world.post("judge", job=job)["job"]
    told = world.get("judge", job=job)
    assert (told["job"], told["is_running"], told["judgement"]) == (judge, True, None)
    world.post("jobs/stop", job=judge)
    assert world.post("judge/choose", job=job, lora=file, weight=0.6) == {}
    assert world.get("judge", job=job)["choice"] == {"lora": file, "weight": 0.6}
    name = world.post("loras/publish-recommended", job=job)["name"]
    assert file.startswith(name)
    assert world.post("judge/follow", job=job) == {}
    assert world.get("judge", job=job)["choice"] is None
    assert world.post("loras/private", job=job, private=True) == {}
    assert world.get("trains", **world.ids)[0]["is_private"]


@pytest.mark.parametrize("body", [{"weights": []}, {"weights": ["x"]}, {"pictures": 0}])
def test_wrong_numbers(world: World, body: dict[str, Any]) -> None:
    job = world.get("trains", **world.ids)[0]["job"]
    assert world.ask("POST", "judge", json={"job": job, **body}).status_code in (400, 422)
