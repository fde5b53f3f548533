"""An open page without a browser, for tests of the tab on the installed gradio."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from lora_train.app import App
from lora_train.core.workspace import Workspace

WAIT_S = 60.0
EMPTY = re.compile(r'<div class="train-tools-live" data-live="(\w+)"></div><!-- \d+ -->')
_BEGUN = re.compile(r'id="train_tools_begun" hidden data-task="([0-9a-f]*)"')


class Browser:
    """One open page without a browser: keeps the values of all components, and calls handlers with them.

    What the page's script does is done here: it takes what came of a press later, and draws what stands in accordions.
    """

    def __init__(self, app: App) -> None:
        from lora_train.ui import tab

        self.app = app
        self.taken = {""}
        self.blocks = tab.build(app, token="secret", localize=False)
        self.by_id = {block.elem_id: block for block in self.blocks.blocks.values() if getattr(block, "elem_id", None)}
        self.values = {block: getattr(block, "value", None) for block in self.blocks.blocks.values()}
        self.visible = {block: getattr(block, "visible", True) for block in self.blocks.blocks.values()}

    def __getitem__(self, name: str) -> Any:
        from lora_train.ui.live import live

        value = self.values[self.by_id[f"train_tools_{name}"]]
        if isinstance(value, str) and (empty := EMPTY.fullmatch(value)):
            shown = self.app.projects.selection()
            query = {"project": shown.project, "version": shown.version, "parts": empty[1]}
            return live(self.app, query)["fragments"][empty[1]]
        return value

    def is_visible(self, name: str) -> bool:
        block = self.by_id[f"train_tools_{name}"]
        while block is not None and self.visible.get(block, True):
            block = block.parent
        return block is None

    def type(self, name: str, value: Any) -> None:
        """A person changes a control."""
        self.values[self.by_id[f"train_tools_{name}"]] = value
        self.take(self.answer(name, "input"))

    def press(self, name: str, **typed: Any) -> None:
        for field, value in typed.items():
            self.values[self.by_id[f"train_tools_{field}"]] = value
        self.take(self.answer(name, "click"))

    def choose(self, name: str, value: str) -> None:
        self.type(f"{name}_choice", value)

    def begin_story(self, project: str = "Kätzchen 猫") -> None:
        self.press("project_create")
        self.press("project_create_ok", project_name=project)
        self.press("version_create_ok")

    def load(self) -> None:
        self.take(self.answer_to_load())

    def answer_to_load(self) -> dict[Any, Any]:
        return self._call(self.blocks._id, "load")

    def answer(self, name: str, event: str) -> dict[Any, Any]:
        """What the server answers now; `take` may bring it onto the page later."""
        return self._call(self.by_id[f"train_tools_{name}"]._id, event)

    def take(self, updates: dict[Any, Any]) -> None:
        for block, value in updates.items():
            if isinstance(value, dict) and "__type__" in value:  # gr.update
                self.values[block] = value.get("value", self.values[block])
                self.visible[block] = value.get("visible", self.visible[block])
            else:
                self.values[block] = value
        self._take_what_came_later()

    def _take_what_came_later(self) -> None:
        (begun,) = {match for value in self.values.values() for match in _BEGUN.findall(str(value))}
        until = time.monotonic() + WAIT_S
        while begun not in self.taken:
            assert time.monotonic() < until
            if all(task.has_ended for task in self.app.tasks.entries() if task.id == begun):
                self.taken.add(begun)
                self.take(self.answer("take", "click"))
            time.sleep(0.01)

    def _call(self, block_id: int, event: str) -> dict[Any, Any]:
        functions = self.blocks.fns.values() if isinstance(self.blocks.fns, dict) else self.blocks.fns
        for function, triggers in zip(functions, _triggers(self.blocks), strict=True):
            if (block_id, event) in triggers and function.fn is not None:
                updates = function.fn({block: self.values[block] for block in function.inputs})
                assert set(updates) <= set(function.outputs), "gradio refuses an update of what is no output"
                return self._unpacked(updates)
        raise AssertionError(f"nothing is bound to {event}")

    def _unpacked(self, updates: dict[Any, Any]) -> dict[Any, Any]:
        """With what the browser puts into its places by itself (see `ui.carrier`)."""
        carried = [json.loads(value)["values"] for value in updates.values() if str(value).startswith('{"answer": ')]
        for number, value in [pair for told in carried for pair in told.items()]:
            block = self.blocks.blocks[int(number)]
            updates[block] = {**updates.get(block, {}), **value} if isinstance(value, dict) else value
        return updates


def _triggers(blocks: Any) -> list[list[tuple[int, str]]]:
    """(component, event) pairs of every handler, in gradio 3 and later ones."""
    if isinstance(blocks.fns, dict):
        return [[tuple(target) for target in function.targets] for function in blocks.fns.values()]
    return [
        [(target, entry["trigger"]) for target in entry["targets"] or [blocks._id]] for entry in blocks.dependencies
    ]


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine leaves no parts to the script."""
    from lora_train.ui import page

    monkeypatch.setattr(page, "SOON_S", WAIT_S)


@pytest.fixture
def app(tmp_path: Path) -> App:
    return App(Workspace(tmp_path / "workspace"))


@pytest.fixture
def browser(app: App) -> Browser:
    browser = Browser(app)
    browser.load()
    return browser


@pytest.fixture
def open_browser() -> type[Browser]:
    """For another page of the same App."""
    return Browser
