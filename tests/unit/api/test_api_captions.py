"""The caption editor over HTTP."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

pytestmark = pytest.mark.compat

World = Any
FILE = "3_cat/a.png"


def test_captions_are_seen_edited_and_undone(world: World) -> None:
    view = world.get("captions", **world.ids, filter="-dog", order="most tokens")
    assert [(row["file"], row["caption"], row["tokens"]) for row in view["rows"]] == [(FILE, "a cat", 2)]
    assert (view["total"], view["undo"], view["tags"]) == (1, None, [{"tag": "a cat", "pictures": 1}])

    edit = {"operation": {"kind": "add", "tags": "猫, smile", "place": "start"}}
    preview = world.post("captions/preview", **world.ids, **edit)
    assert preview == [{"file": FILE, "before": "a cat", "after": "猫, smile, a cat"}]
    assert world.get("captions", **world.ids)["rows"][0]["caption"] == "a cat"

    scope = {"kind": "filtered", "filter": "a cat, -dog", "mode": "or"}
    result = world.post("captions/edit", **world.ids, **edit, scope=scope)
    assert result == {"what": "Add tags", "detail": "猫, smile", "changed": 1, "problems": []}
    view = world.get("captions", **world.ids)
    assert view["rows"][0]["tags"] == ["猫", "smile", "a cat"]
    assert (view["undo"]["what"], view["undo"]["pictures"], view["redo"]) == ("Add tags", 1, None)

    assert world.post("captions/undo", **world.ids)["changed"] == 1
    assert world.get("dataset", **world.ids)["pictures"][0]["caption"] == "a cat"
    assert world.post("captions/redo", **world.ids)["changed"] == 1
    assert world.get("dataset", **world.ids)["pictures"][0]["caption"] == "猫, smile, a cat"
    world.post("dataset/caption", **world.ids, file=FILE, caption="one")
    assert world.get("captions", **world.ids)["undo"]["what"] == "Caption"


@pytest.mark.parametrize(
    "operation",
    [
        {"kind": "add", "tags": "x"},
        {"kind": "remove", "tags": "x"},
        {"kind": "replace", "find": "x", "replacement": "y", "within": "caption expression"},
        {"kind": "prepend", "text": "x"},
        {"kind": "append", "text": "x", "joined_by": " "},
        {"kind": "sort", "by": "frequency"},
        {"kind": "dedupe"},
        {"kind": "trigger first"},
        {"kind": "set", "text": "x"},
    ],
)
def test_every_kind_of_edit_is_taken(world: World, operation: dict[str, str]) -> None:
    world.post("settings", **world.ids, train={"trigger_word": "sks"})
    for scope in ({"kind": "all"}, {"kind": "chosen", "files": [FILE]}):
        world.post("captions/preview", **world.ids, operation=operation, scope=scope)


def test_what_can_not_be_is_told(world: World) -> None:
    def told(status: int, path: str, **body: Any) -> str:
        answer = world.ask("POST", path, json={**world.ids, **body})
        assert answer.status_code == status, answer.text
        return answer.json()["message"]

    assert "nothing to undo" in told(400, "captions/undo")
    wrong = {"kind": "replace", "find": "a(", "within": "tag expression"}
    assert "character 2" in told(400, "captions/edit", operation=wrong)
    assert "no picture" in told(
        400, "captions/edit", operation={"kind": "dedupe"}, scope={"kind": "chosen", "files": ["../x"]}
    )
    assert "burn" in told(422, "captions/edit", operation={"kind": "burn"})
    assert "operation" in told(422, "captions/preview")
    answer = world.ask("GET", "captions", params={**world.ids, "filter": '"a'})
    assert (answer.status_code, answer.json()["error"]) == (400, "ConfigError")
    assert world.ask("GET", "captions", params={**world.ids, "mode": "xor"}).status_code == 422


def test_what_a_picture_is_trained_with(world: World) -> None:
    world.post("settings", **world.ids, train={"base_model": "demo", "trigger_word": "sks", "repeats": 2, "epochs": 2})
    told = world.get("captions/trained-text", **world.ids, file=FILE, epoch=2)
    assert (told["fixed"], told["view_count"], told["is_exact"]) == ("sks, a cat", 2, True)
    assert [chunk["tokens"] for chunk in told["plain"]["chunks"]] == [["sks", ",", "a", "cat"]]
    assert [view["text"] for view in told["views"]] == ["sks, a cat"] * 2
    answer = world.ask("GET", "captions/trained-text", params={**world.ids, "file": FILE, "epoch": 3})
    assert answer.status_code == 400
