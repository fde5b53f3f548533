"""What a page sends as a name or a path leads no handler of it out of the workspace, whatever control it comes from."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("gradio")
sys.path.insert(0, str(Path(__file__).parents[1] / "assets"))

from http_page import Page
from path_corpus import path_corpus

CALLS = 4000


@pytest.fixture
def page(open_page: Callable[..., Any], world: Any) -> Page:
    """An open page of a server that others reach, over a version with a picture and a finished training."""
    client = open_page(is_local=False, workspace=world.root / "workspace")
    return Page(SimpleNamespace(port=client.base_url.port, cpu_s=lambda: 0.0))  # type: ignore[arg-type]


def test_no_handler_is_led_out(
    page: Page,
    world: Any,
    outside: Path,
    watched: Any,
    tree: Callable[..., Any],
    without_workers: None,
    share: Callable[[int], int],
    count: Callable[[str, int], None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    names, choose = path_corpus(outside), random.Random("paths")
    asked = [
        (handler, component)
        for handler in page.handlers
        if handler.get("backend_fn")
        for component in handler["inputs"]
        if isinstance(page.values.get(component), str | None)
    ]
    assert len({page.names[component] for _, component in asked}) > 50, "the page has that many controls of text"
    surroundings, first = tree(world.root, (world.root / "workspace",)), dict(page.values)
    watched.seen.clear()
    for handler, component in choose.choices(asked, k=share(CALLS)):
        page.values = {**first, component: (name := choose.choice(names))}
        told = (page.names[component], handler["targets"], name[:80])
        answer = page.send(handler)
        assert answer.status in (200, 422, 500), told  # gradio itself refuses what is none of a list's choices
        assert b"secret words" not in answer.body, told
        assert watched.seen == [], told
    assert tree(world.root, (world.root / "workspace",)) == surroundings
    assert "lora_train" not in capfd.readouterr().err, "a traceback through a handler of ours"
    count("calls", share(CALLS))
