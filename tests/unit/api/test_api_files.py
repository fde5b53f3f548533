"""Pictures and LoRAs as they are answered, and that no id, name or file leads out of the workspace."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from PIL import Image

pytestmark = pytest.mark.compat

World = Any


# --- files ---


def test_a_picture_of_the_dataset(world: World) -> None:
    full = world.ask("GET", "dataset/picture", params={**world.ids, "file": "3_cat/a.png"})
    assert full.content == world.png()
    assert full.headers["content-type"] == "image/png"
    assert full.headers["x-content-type-options"] == "nosniff"
    assert full.headers["cache-control"] == "private"
    small = world.ask("GET", "dataset/picture", params={**world.ids, "file": "3_cat/a.png", "size": "thumb"})
    assert small.headers["content-type"] == "image/jpeg"
    assert small.headers["x-content-type-options"] == "nosniff"
    assert Image.open(io.BytesIO(small.content)).size == (320, 240)
    again = world.ask(
        "GET",
        "dataset/picture",
        {"If-None-Match": small.headers["etag"]},
        params={**world.ids, "file": "3_cat/a.png", "size": "thumb"},
    )
    assert (again.status_code, again.content) == (304, b"")


def test_a_waiting_picture(world: World) -> None:
    content = base64.b64encode(world.png(color="blue")).decode()
    world.post("dataset/upload", **world.ids, files=[{"name": "b.png", "content": content}])
    query = {**world.ids, "file": "b.png", "waiting": "1"}
    assert world.ask("GET", "dataset/picture", params=query).content == world.png(color="blue")
    assert world.ask("GET", "dataset/picture", params={**query, "waiting": "0"}).status_code == 400


def test_files_of_a_training(world: World) -> None:
    def get(file: str, **query: str) -> Any:
        return world.ask("GET", "jobs/file", params={"job": world.train, "file": file, **query})

    lora = get("猫-v1.safetensors", download="1")
    assert lora.content == world.lora_bytes()
    assert lora.headers["content-type"] == "application/octet-stream"
    assert lora.headers["content-disposition"] == "attachment; filename*=utf-8''%E7%8C%AB-v1.safetensors"
    assert get("猫-v1.safetensors").headers["content-disposition"].startswith("attachment")
    picture = get("samples/猫-v1-grid.png")
    assert picture.headers["content-type"] == "image/png"
    assert picture.headers["content-disposition"].startswith("inline")
    assert picture.content == world.png()
    for other in ("notes.svg", "job.json", "worker.log", "events.jsonl"):
        assert get(other).status_code in (400, 404), other


def test_a_file_that_is_gone_is_a_404_and_nothing_else_is_shown_in_a_page(world: World, monkeypatch: Any) -> None:
    monkeypatch.setattr(world.app.training, "file_path", lambda job, file: world.train_dir / file)
    query = {"job": world.train, "file": "samples"}
    assert world.ask("GET", "jobs/file", params=query).status_code == 404
    answer = world.ask("GET", "jobs/file", params={**query, "file": "notes.svg"})
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"].startswith("attachment")


# --- nobody leaves the workspace ---

TRICKS = [
    "..",
    ".",
    "",
    "/",
    "../../secret",
    "../secret.png",
    "..\\secret.png",
    "..%2Fsecret.png",
    "%2e%2e/secret.png",
    "3_cat/../../../../../../secret.png",
    "samples/../../../../../../../../secret.png",
    "{root}/secret.png",
    "{root}/secret",
    "C:\\Windows\\win.ini",
    "C:secret.png",
    "\\\\server\\share\\secret.png",
    "//server/share",
    "a\x00b",
    "\x00",
    "3_cat/a.png\x00.txt",
    "CON",
    "projects/../../secret",
    "jobs/../../secret",
    "projects/x/versions/../../../../secret/trains/y",
    "…" * 5000,
]


@pytest.fixture
def secret(world: World) -> Callable[[], None]:
    """Something beside the workspace that nobody may see, change or delete; call it to see that all is as it was."""
    folder = world.root / "secret"
    folder.mkdir()
    picture = world.png(color="yellow")
    (world.root / "secret.png").write_bytes(picture)
    for name, content in (("job.json", b"{}"), ("worker.log", b"SECRET"), ("project.json", b'{"name": "SECRET"}')):
        folder.joinpath(name).write_bytes(content)
    (folder / "versions").mkdir()

    def outside() -> dict[str, bytes]:
        ours = world.app.workspace.root
        return {
            str(path): path.read_bytes()
            for path in world.root.rglob("*")
            if path.is_file() and not path.is_relative_to(ours)
        }

    before = outside()

    def unchanged() -> None:
        assert outside() == before

    return unchanged


IDS = {
    "project": "project",
    "version": "version",
    "file": "file",
    "job": "job",
    "lora": "lora",
    "entry": "entry",
}
POST_BODIES: dict[str, list[str]] = {
    "projects/rename": ["project", "name"],
    "projects/delete": ["project"],
    "versions": ["project", "name"],
    "versions/rename": ["project", "version", "name"],
    "versions/duplicate": ["project", "version", "name"],
    "versions/delete": ["project", "version"],
    "trash/restore": ["entry"],
    "settings": ["project", "version"],
    "dataset/update": ["project", "version"],
    "dataset/update/stop": ["project", "version"],
    "dataset/caption": ["project", "version", "file", "caption"],
    "dataset/remove": ["project", "version", "file"],
    "dataset/replace": ["project", "version", "file", "name", "content"],
    "trains": ["project", "version"],
    **{f"jobs/{what}": ["job"] for what in ("stop", "pause", "kill", "resume", "delete", "previews")},
    **{f"history/{what}": ["job"] for what in ("repeat", "use", "undo")},
    **{f"loras/{what}": ["job", "lora"] for what in ("publish", "unpublish", "delete")},
    "queue/cancel": ["job"],
}
GETS: dict[str, list[str]] = {
    **{path: ["project", "version"] for path in ("settings", "dataset", "forecast", "trains")},
    "dataset/picture": ["project", "version", "file"],
    **{path: ["job"] for path in ("jobs/log", "jobs/events", "jobs/status", "jobs/report")},
    "history/compare": ["job", "other"],
    "jobs/file": ["job", "file"],
}


def right_values(world: World, path: str) -> dict[str, str]:
    file = "猫-v1.safetensors" if path == "jobs/file" else "3_cat/a.png"
    return {
        **world.ids,
        "file": file,
        "job": world.train,
        "other": world.train,
        "lora": "猫-v1.safetensors",
        "entry": "x",
        "name": "other",
        "caption": "x",
        "content": base64.b64encode(world.png()).decode(),
    }


@pytest.mark.parametrize("path", GETS)
def test_no_address_leads_out_of_the_workspace(world: World, secret: Callable[[], None], path: str) -> None:
    for wrong in GETS[path]:
        for trick in TRICKS:
            values = {name: right_values(world, path)[name] for name in GETS[path]}
            values[wrong] = trick.replace("{root}", str(world.root))
            for extra in [{}, {"waiting": "1"}, {"size": "thumb"}] if path == "dataset/picture" else [{}]:
                answer = world.ask("GET", path, params={**values, **extra})
                assert 400 <= answer.status_code < 500, (wrong, trick, answer.status_code, answer.text)
                assert "SECRET" not in answer.text
    secret()


@pytest.mark.parametrize("path", POST_BODIES)
def test_no_body_leads_out_of_the_workspace(world: World, secret: Callable[[], None], path: str) -> None:
    for wrong in set(POST_BODIES[path]) & IDS.keys():
        for trick in TRICKS:
            values = {name: right_values(world, path)[name] for name in POST_BODIES[path]}
            values[wrong] = trick.replace("{root}", str(world.root))
            answer = world.ask("POST", path, json=values)
            assert 400 <= answer.status_code < 500, (wrong, trick, answer.status_code, answer.text)
    secret()
    assert len(world.get("projects")) == 1


@pytest.mark.parametrize("path", ["projects", "projects/rename", "versions", "versions/rename", "versions/duplicate"])
def test_a_name_stays_a_name(world: World, secret: Callable[[], None], path: str) -> None:
    """Names are free; whatever is made of them lies in the workspace."""
    for trick in TRICKS:
        values = right_values(world, path) | {"name": trick.replace("{root}", str(world.root))}
        fields = POST_BODIES.get(path, ["name"])
        answer = world.ask("POST", path, json={name: values[name] for name in fields})
        assert answer.status_code in (200, 400), (trick, answer.text)
        if answer.status_code == 200:
            world.ids = answer.json() if path != "projects" else world.ids
    secret()


def test_an_upload_stays_in_its_dataset(world: World, secret: Callable[[], None]) -> None:
    picture = base64.b64encode(world.png()).decode()
    for trick in TRICKS:
        name = trick.replace("{root}", str(world.root))
        answer = world.ask("POST", "dataset/upload", json={**world.ids, "files": [{"name": name, "content": picture}]})
        assert answer.status_code in (200, 400), (trick, answer.text)
    secret()
    for entry in world.get("dataset", **world.ids)["pictures"]:
        assert "/" not in entry["file"] or not entry["is_waiting"]


def test_selections_and_polls_of_nothing_are_no_errors(world: World) -> None:
    for trick in TRICKS:
        answer = world.ask("POST", "selection", json={"project": trick, "version": trick})
        assert answer.status_code in (200, 400), (trick, answer.text)
    assert world.get("selection")["project"] in ("", world.ids["project"])
