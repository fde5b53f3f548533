"""Previews of finished LoRAs over the API, over a real App."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from PIL import Image

from lora_train.core.config import TrainSettings
from lora_train.core.jobs import JobFolder

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

pytestmark = pytest.mark.compat

World = Any


def test_grids_are_drawn_shown_and_deleted(world: World) -> None:
    folder = JobFolder(world.train_dir)
    folder.replace_spec(msgspec.structs.replace(folder.read_spec(), settings=TrainSettings(base_model="demo")))
    train = world.train
    settings = {"weights": "0, 1", "seeds": "7", "steps": "2"}
    assert world.post("settings", **world.ids, preview=settings) == {"problems": []}
    assert world.get("settings", **world.ids)["preview"]["weights"] == [0, 1]
    assert "samplers" in [field["name"] for field in world.get("settings/schema")["preview"]]
    told = world.get("grids/forecast", **world.ids)
    assert told == {"loras": 1, "pictures": 2, "seconds": None, "problems": []}
    (job,) = world.post("grids", **world.ids)["jobs"]
    assert [(entry["job"], entry["kind"]) for entry in world.get("queue")] == [(job, "preview")]
    assert world.post("grids/stop", job=job) == {}
    assert world.get("queue") == []
    assert world.post("grids/resume", job=job) == {}
    assert world.post("jobs/stop", job=job) == {}

    folder = world.app.workspace.find_job(job)
    (folder / "pictures").mkdir()
    Image.new("RGB", (640, 640)).save(folder / "pictures" / "00001-0.png")
    table = world.get("grids/table", job=job)
    assert table["axes"] == [{"name": "weight", "labels": ["0", "1"]}]
    assert [cell["files"] for cell in table["cells"]] == [[], ["pictures/00001-0.png"]]
    file = {"job": job, "file": "pictures/00001-0.png"}
    assert world.ask("GET", "grids/picture", params=file).content[:4] == b"\x89PNG"
    assert world.ask("GET", "grids/picture", params={**file, "size": "thumb"}).content[:2] == b"\xff\xd8"
    assert world.ask("GET", "grids/picture", params={**file, "file": "job.json"}).status_code == 400

    undo = world.post("grids/delete", job=job)
    assert world.get("grids", **world.ids) == {"jobs": []}
    world.post("trash/restore", entry=undo["entry"])
    assert [entry["job"] for entry in world.get("grids", **world.ids)["jobs"]] == [job]
    assert world.post("grids/delete_all", **world.ids)["entry"]
    (lora,) = world.get("trains", **world.ids)[0]["loras"]
    assert len(world.post("grids/train", job=train)["jobs"]) == 1
    assert len(world.post("grids/lora", job=train, lora=lora["file"])["jobs"]) == 1


def test_what_is_in_the_way_is_told(world: World) -> None:
    answer = world.ask("POST", "grids", json=world.ids)
    assert (answer.status_code, answer.json()["problems"]) == (400, ["Train base model: choose a checkpoint."])
    world.app.loras.delete(world.train, "猫-v1.safetensors")
    answer = world.ask("POST", "grids", json=world.ids)
    assert answer.json()["problems"] == ["There is no LoRA yet: train one first."]
