"""What the routes do, over a real App."""

from __future__ import annotations

import base64
import time
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from lora_train.api import TOKEN
from lora_train.core.host import BaseModelChoice

pytestmark = pytest.mark.compat

World = Any


def test_projects_and_versions(world: World) -> None:
    project = world.ids["project"]
    listed = world.get("projects")
    assert [(entry["name"], [v["name"] for v in entry["versions"]]) for entry in listed] == [("猫 Cat", ["v1"])]
    second = world.post("versions/duplicate", project=project, version="v1", name="第二版")
    assert world.post("versions/rename", **second, name="v3")["project"] == project
    assert world.get("selection")["version"] == "v3"
    assert world.post("selection", project=project, version="v1") == world.get("selection") == world.ids
    undo = world.post("versions/delete", project=project, version="v3")
    assert [v["name"] for v in world.get("projects")[0]["versions"]] == ["v1"]
    assert world.post("trash/restore", entry=undo["entry"])["version"]
    assert {v["name"] for v in world.get("projects")[0]["versions"]} == {"v1", "v3"}
    renamed = world.post("projects/rename", project=project, name="Dog")
    undo = world.post("projects/delete", project=renamed["project"])
    assert world.get("projects") == []
    world.post("trash/restore", entry=undo["entry"])
    assert [entry["name"] for entry in world.get("projects")] == ["Dog"]


def test_settings(world: World) -> None:
    assert world.post("settings", **world.ids, train={"epochs": 7}, dataset={"width_px": 640}) == {"problems": []}
    problems = world.post("settings", **world.ids, train={"batch_size": -1, "rank": 8})["problems"]
    assert len(problems) == 1
    assert "batch_size" in problems[0]
    saved = world.get("settings", **world.ids)
    assert (saved["train"]["epochs"], saved["train"]["rank"], saved["dataset"]["width_px"]) == (7, 8, 640)
    schema = world.get("settings/schema")
    assert {field["name"] for field in schema["train"]} == saved["train"].keys()
    assert {field["name"] for field in schema["dataset"]} == saved["dataset"].keys()


def test_pictures_come_and_go(world: World) -> None:
    def upload(*files: tuple[str, bytes]) -> list[str]:
        coded = [{"name": name, "content": base64.b64encode(content).decode()} for name, content in files]
        return world.post("dataset/upload", **world.ids, files=coded)["problems"]

    assert upload(("ねこ.png", world.png()), ("ねこ.txt", "白い猫".encode())) == []
    assert len(upload(("notes.exe", b"MZ"))) == 1
    pictures = {picture["file"]: picture for picture in world.get("dataset", **world.ids)["pictures"]}
    assert pictures["ねこ.png"]["caption"] == "白い猫"
    assert pictures["ねこ.png"]["is_waiting"]
    assert world.post("dataset/caption", **world.ids, file="3_cat/a.png", caption="二匹の猫") == {}
    pictures = {picture["file"]: picture for picture in world.get("dataset", **world.ids)["pictures"]}
    assert pictures["3_cat/a.png"]["caption"] == "二匹の猫"
    undo = world.post("dataset/remove", **world.ids, file="3_cat/a.png")
    assert [picture["file"] for picture in world.get("dataset", **world.ids)["pictures"]] == ["ねこ.png"]
    world.post("trash/restore", entry=undo["entry"])
    assert len(world.get("dataset", **world.ids)["pictures"]) == 2


def test_a_picture_is_replaced(world: World, monkeypatch: Any) -> None:
    def replace(name: str, content: bytes) -> Any:
        coded = base64.b64encode(content).decode()
        return world.ask(
            "POST", "dataset/replace", json={**world.ids, "file": "3_cat/a.png", "name": name, "content": coded}
        )

    undo = replace("new.png", world.png(size=(30, 20))).json()
    (picture,) = world.get("dataset", **world.ids)["pictures"]
    assert (picture["file"], picture["width_px"], picture["caption"]) == ("3_cat/a.png", 30, "a cat")
    world.post("trash/restore", entry=undo["entry"])
    assert world.get("dataset", **world.ids)["pictures"][0]["width_px"] == 400
    answer = replace("猫.txt", b"no picture")
    assert (answer.status_code, answer.json()["error"]) == (400, "DatasetError")
    assert answer.json()["message"].startswith("猫.txt can't be used: it is not a picture")
    monkeypatch.setattr("lora_train.api.uploading.UPLOAD_LIMIT_BYTES", 10)
    assert "at most 64 MB" in replace("new.png", world.png()).json()["message"]
    assert world.get("dataset", **world.ids)["pictures"][0]["width_px"] == 400


def test_one_file_over_the_limit_does_not_keep_the_others_out(world: World, monkeypatch: Any) -> None:
    monkeypatch.setattr("lora_train.api.uploading.UPLOAD_LIMIT_BYTES", 5_000)
    files = [
        {"name": name, "content": base64.b64encode(content).decode()}
        for name, content in (("large.png", bytes(6_000)), ("b.png", world.png()))
    ]
    problems = world.post("dataset/upload", **world.ids, files=files)["problems"]
    assert len(problems) == 1
    assert "large.png" in problems[0]
    assert "b.png" in [picture["file"] for picture in world.get("dataset", **world.ids)["pictures"]]


def test_captions_go_to_the_pictures_that_they_came_with(world: World) -> None:
    """Another picture has the name already: the new one gets a number, and its caption the same."""
    for color in ("red", "blue"):
        files = [
            {"name": name, "content": base64.b64encode(content).decode()}
            for name, content in (("n.png", world.png(color=color)), ("n.txt", color.encode()))
        ]
        assert world.post("dataset/upload", **world.ids, files=files) == {"problems": []}
    pictures = {picture["file"]: picture["caption"] for picture in world.get("dataset", **world.ids)["pictures"]}
    assert (pictures["n.png"], pictures["n-2.png"]) == ("red", "blue")


def test_files_of_the_server_are_taken_from_local_pages_alone(world: World) -> None:
    path = world.root / "外.png"
    path.write_bytes(world.png())
    assert world.post("dataset/server-files", **world.ids, paths=[str(path)]) == {"problems": []}
    assert "外.png" in [picture["file"] for picture in world.get("dataset", **world.ids)["pictures"]]
    problems = world.post("dataset/server-files", **world.ids, paths=[str(world.root), str(world.root / "none.png")])
    assert len(problems["problems"]) == 2
    assert "this dataset itself lies in it" in problems["problems"][0]
    folder = world.root / "外 pictures" / "sub"
    folder.mkdir(parents=True)
    folder.joinpath("中.png").write_bytes(world.png(color="blue"))
    folder.joinpath("中.txt").write_text("blue", encoding="utf-8")
    assert world.post("dataset/server-files", **world.ids, paths=[str(folder.parent)]) == {"problems": []}
    pictures = {picture["file"]: picture for picture in world.get("dataset", **world.ids)["pictures"]}
    assert pictures["中.png"]["caption"] == "blue"
    world.host.is_local = False
    answer = world.ask("POST", "dataset/server-files", json={**world.ids, "paths": [str(path)]})
    assert answer.status_code == 400
    assert "Upload" in answer.json()["hint"]


def test_a_dataset_is_updated(world: World) -> None:
    content = base64.b64encode(world.png()).decode()
    world.post("dataset/upload", **world.ids, files=[{"name": "b.png", "content": content}])
    job = world.post("dataset/update", **world.ids)["job"]
    until = time.monotonic() + 60
    while (status := world.get("jobs/status", job=job))["state"] in ("waiting", "running"):
        assert time.monotonic() < until, status
        time.sleep(0.1)
    assert status["state"] == "finished", status
    assert not any(picture["is_waiting"] for picture in world.get("dataset", **world.ids)["pictures"])
    assert world.ask("POST", "dataset/update/stop", json=world.ids).status_code == 400


def test_the_health_of_a_dataset(world: World) -> None:
    """The check is done by a real worker."""
    report = world.get("dataset/health", **world.ids)
    assert [picture["file"] for picture in report["pictures"]] == ["3_cat/a.png"]
    assert report["pictures"][0]["bucket_px"] == [576, 448]  # 400 x 300 is 1.33, that is 1.29
    assert "few_pictures" in [finding["kind"] for finding in report["findings"]]
    assert (report["missing_facts"], report["check"]) == (1, None)
    job = world.post("dataset/check", **world.ids)["job"]
    until = time.monotonic() + 60
    while (status := world.get("jobs/status", job=job))["state"] in ("waiting", "running"):
        assert time.monotonic() < until, status
        time.sleep(0.1)
    assert (status["state"], status["result"]) == ("finished", {"unknown": 0}), status
    report = world.get("dataset/health", **world.ids)
    assert (report["missing_facts"], report["check"]["state"]) == (0, "finished")
    blurred = next(finding for finding in report["findings"] if finding["kind"] == "blurred")
    assert blurred["pictures"] == [{"file": "3_cat/a.png", "number": 0.0, "lost_share": None}]  # it is all red
    assert world.ask("GET", "dataset/health", params={**world.ids, "version": "none"}).status_code == 400


def test_a_training_waits_and_is_moved_and_cancelled(world: World) -> None:
    world.post("settings", **world.ids, train={"base_model": "demo"})
    assert "demo" in [choice["path"] for choice in world.get("base-models")]
    assert world.get("base-model", name="demo")["family"].startswith("Stable Diffusion 1")
    found = [BaseModelChoice("new", "/new.safetensors")]
    world.host.refresh_base_models = lambda: setattr(world.host, "base_models", lambda: found)
    assert world.post("base-models/refresh")[0] == {"name": "new", "path": "/new.safetensors"}
    assert world.get("forecast", **world.ids)["total_steps"] > 0
    jobs = [world.post("trains", **world.ids)["job"] for _ in range(2)]
    assert [entry["job"] for entry in world.get("queue")] == jobs
    assert world.post("queue/move", job=jobs[1], place=1) == {}
    assert [entry["job"] for entry in world.get("queue")] == jobs[::-1]
    assert world.get("jobs/status", job=jobs[0])["state"] == "waiting"
    for job in jobs:
        assert world.post("queue/cancel", job=job) == {}
    assert world.get("queue") == []
    assert world.post("jobs/resume", job=jobs[0]) == {}
    assert [entry["job"] for entry in world.get("queue")] == jobs[:1]
    world.post("queue/cancel", job=jobs[0])
    for path in ("jobs/pause", "jobs/stop"):
        assert world.ask("POST", path, json={"job": world.train}).status_code == 400, "it ended long ago"


def test_a_training_that_can_not_begin_tells_everything(world: World) -> None:
    empty = world.post("versions", project=world.ids["project"], name="empty")
    world.post("settings", **empty, train={"base_model": "/none.safetensors"})
    answer = world.ask("POST", "trains", json=empty)
    assert answer.status_code == 400
    problems = " ".join(answer.json()["problems"])
    assert "none.safetensors" in problems
    assert "pictures" in problems


def test_a_finished_training(world: World) -> None:
    [train] = world.get("trains", **world.ids)
    assert (train["job"], train["status"]["state"]) == (world.train, "finished")
    assert train["loras"][0]["file"] == "猫-v1.safetensors"
    status = world.get("jobs/status", job=world.train)
    assert (status["step"], status["state"]) == (2, "finished")
    assert "hello from the worker" in world.get("jobs/log", job=world.train)["log"]
    first = world.get("jobs/events", job=world.train)
    assert [event["kind"] for event in first["events"]] == ["started", "step", "saved", "sampled", "finished"]
    assert world.get("jobs/events", job=world.train, offset=first["offset"]) == {
        "events": [],
        "offset": first["offset"],
    }
    undo = world.post("jobs/delete", job=world.train)
    assert world.get("trains", **world.ids) == []
    world.post("trash/restore", entry=undo["entry"])
    assert len(world.get("trains", **world.ids)) == 1


def test_a_lora_is_published_and_taken_back(world: World) -> None:
    lora = {"job": world.train, "lora": "猫-v1.safetensors"}
    assert world.post("loras/publish", **lora) == {"name": "猫-v1"}
    assert (world.host.loras / "猫-v1.safetensors").is_file()
    assert world.get("trains", **world.ids)[0]["loras"][0]["published"] == "猫-v1"
    undo = world.post("loras/unpublish", **lora)
    assert not list(world.host.loras.glob("*.safetensors"))
    world.post("trash/restore", entry=undo["entry"])
    assert (world.host.loras / "猫-v1.safetensors").is_file()
    undo = world.post("loras/delete", **lora)
    assert world.get("trains", **world.ids)[0]["loras"] == []
    world.post("trash/restore", entry=undo["entry"])
    assert len(world.get("trains", **world.ids)[0]["loras"]) == 1


def test_previews_are_drawn_on_demand(world: World) -> None:
    assert world.ask("POST", "jobs/previews", json={"job": world.train}).status_code == 400, "it has its previews"
    (world.train_dir / "samples" / "猫-v1-grid.png").unlink()
    job = world.post("jobs/previews", job=world.train)["job"]
    assert [(entry["job"], entry["kind"]) for entry in world.get("queue")] == [(job, "preview")]
    assert world.get("jobs/status", job=job)["state"] == "waiting"


def test_the_rest_of_the_answers(world: World) -> None:
    version = world.get("version")
    assert (version["host"], version["api"]) == ("tested host", 1)
    assert world.get("live", **world.ids, smoothing="0.5", unknown="x") == {"busy": False}
    unset = dict.fromkeys(
        ("parts", "seen", "filter", "mode", "order", "pictures", "gallery", "cards", "grids", "compare"), ""
    )
    assert world.asked == [{**world.ids, "train": "", "smoothing": "0.5", **unset, "token": TOKEN}]
    answer = world.ask("GET", "projects")
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["content-type"] == "application/json"


def test_who_writes_captions_is_asked_and_answered(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads go to an address of this machine where nobody listens, and fail."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    choices = world.get("captioners", **world.ids)
    assert choices["must_ask"]
    assert [entry["choice"] for entry in choices["captioners"]] == ["wd14", "wd14", "blip"]
    assert world.ask("POST", "captions/make", json=world.ids).status_code == 400
    assert world.ask("POST", "captioners/answer", json={"choice": "all"}).status_code == 422
    assert world.post("captioners/answer", choice="none") == {"job": ""}
    job = world.post("captioners/answer", choice="blip")["job"]
    assert world.post("captioners/download", model="blip-image-captioning-base")["job"] == job
    until = time.monotonic() + 60
    while (status := world.get("jobs/status", job=job))["state"] in ("waiting", "running"):
        assert time.monotonic() < until, status
        time.sleep(0.1)
    assert (status["state"], status["error"]) == ("failed", "ModelError")
    choices = world.get("captioners", **world.ids)
    assert (choices["answer"], choices["must_ask"]) == ("blip", False)
    assert choices["captioners"][2]["download"]["message"] == status["message"]
    assert world.ask("POST", "captions/stop", json=world.ids).status_code == 400
    body = {**world.ids, "files": ["3_cat/a.png"], "policy": "everywhere"}
    assert world.ask("POST", "captions/make", json=body).status_code == 422


def test_presets(world: World) -> None:
    names = [entry["name"] for entry in world.get("presets")]
    assert names[:2] == ["character", "style"]
    shown = world.get("presets/show", name="style", family="sdxl")
    assert shown["family_label"] == "SDXL"
    assert all(row["why"] for row in shown["rows"])
    assert world.ask("GET", "presets/show", params={"name": "style", "family": "flux"}).status_code == 422
    assert world.ask("GET", "presets/show", params={"name": "nobody"}).json()["error"] == "ConfigError"

    before = world.get("settings", **world.ids)["train"]
    assert world.post("presets/apply", **world.ids, name="style")["changed"][0]["before"] == before["rank"]
    assert world.get("presets/state", **world.ids)["name"] == "style"
    assert world.get("settings", **world.ids)["train"]["rank"] == 32
    world.post("presets/undo", **world.ids)
    assert world.get("settings", **world.ids)["train"] == before
    assert world.ask("POST", "presets/undo", json=world.ids).json()["error"] == "WorkspaceError"


def test_own_presets_are_shared(world: World) -> None:
    assert world.post("presets/save", **world.ids, name="自作")["is_own"]
    answer = world.ask("GET", "presets/file", params={"name": "自作"})
    assert "attachment" in answer.headers["content-disposition"]
    coded = base64.b64encode(answer.content).decode()
    assert world.post("presets/import", name="x.json", content=coded) == {"name": "自作-2", "problems": []}
    refused = world.ask("POST", "presets/import", json={"name": "x.json", "content": base64.b64encode(b"{}").decode()})
    assert (refused.status_code, refused.json()["error"]) == (400, "WorkspaceError")
    assert world.post("presets/rename", name="自作-2", new_name="Other")["name"] == "Other"
    undo = world.post("presets/delete", name="Other")
    assert [entry["name"] for entry in world.get("presets") if entry["is_own"]] == ["自作"]
    world.post("trash/restore", entry=undo["entry"])
    assert [entry["name"] for entry in world.get("presets") if entry["is_own"]] == ["Other", "自作"]
    assert world.ask("GET", "presets/file", params={"name": "../page"}).status_code == 400
    assert world.ask("POST", "presets/delete", json={"name": "style"}).status_code == 400
