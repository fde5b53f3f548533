"""No name and no path of a caller leads out of the workspace, and an open page takes no path of the server at all."""

from __future__ import annotations

import base64
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

sys.path.insert(0, str(Path(__file__).parents[1] / "assets"))

from path_corpus import path_corpus

from lora_train.api.route import Route
from lora_train.api.routes import ROUTES
from lora_train.api.shapes import Upload

_ASK_FOR_PATHS = ("dataset/server-files", "base-model")
"""Which a page that this machine alone can reach may be given."""


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method}-{route.path}")
def test_no_name_leads_out(
    world: Any,
    outside: Path,
    watched: Any,
    tree: Callable[..., Any],
    without_workers: None,
    share: Callable[[int], int],
    count: Callable[[str, int], None],
    route: Route[Any, Any],
) -> None:
    names, choose = path_corpus(outside), random.Random(route.path)
    named = [(field, name) for field in _named_fields(route.takes) for name in names]
    chosen = choose.sample(named, share(len(named))) if named else []
    surroundings = tree(world.root, (world.root / "workspace",))
    watched.seen.clear()
    for field, name in chosen:
        world.host.is_local = route.path not in _ASK_FOR_PATHS and choose.random() < 0.3
        answer = _ask(world, route, {field: name})
        assert answer.status_code < 500, (field, name[:80], answer.text[:300])
        assert b"secret words" not in answer.content
        assert watched.seen == [], (field, name[:80])
        if answer.status_code == 200 and route.path.endswith("rename"):
            world.ids = answer.json()
    assert tree(world.root, (world.root / "workspace",)) == surroundings
    watched.watch(None)
    for path in (world.root / "workspace").rglob("*"):
        assert len(path.name.encode()) <= 255
        assert path.is_symlink() == (path.name == "link")
    count("names", len(chosen))


def _named_fields(takes: type[msgspec.Struct]) -> list[str]:
    """The fields of a route that are texts, lists of texts, or files with a name."""
    kinds = get_type_hints(takes)
    return [name for name, kind in kinds.items() if kind is str or get_args(kind)[:1] in ((str,), (Upload,))]


def _ask(world: Any, route: Route[Any, Any], given: dict[str, str]) -> Any:
    """A call that is right but for what is given."""
    kinds = get_type_hints(route.takes)
    known: dict[str, Any] = {**_right_values(world), **given}
    sent: dict[str, Any] = {}
    for name in kinds:
        if name not in known:
            continue
        value, inner = known[name], get_args(kinds[name])
        if inner[:1] == (Upload,):
            content = base64.b64encode(world.png()).decode()
            value = [{"name": value, "content": content}]
        elif inner[:1] == (str,):
            value = [value]
        sent[name] = value
    if route.method == "GET":
        return world.ask("GET", route.path, params=sent)
    return world.ask("POST", route.path, json=sent)


def _right_values(world: Any) -> dict[str, Any]:
    return {
        **world.ids,
        "job": world.train,
        "other": world.train,
        "lora": "猫-v1.safetensors",
        "file": "3_cat/a.png",
        "files": "a.png",
        "name": "cat.png",
        "new_name": "y",
        "content": base64.b64encode(world.png()).decode(),
        "class_name": "cat",
        "prompt": "a cat",
        "count": 1,
        "caption": "a cat",
        "choice": "none",
        "place": 1,
        "weight": 1.0,
        "private": False,
        "paths": "x",
        "operation": {"kind": "dedupe"},
        **dict.fromkeys(("folder", "model", "entry", "sweep"), "x"),
    }
