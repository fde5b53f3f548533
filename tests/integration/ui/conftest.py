"""An open page without a browser, for tests of the tab on the installed gradio."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lora_train.app import App
from lora_train.core.workspace import Workspace


class Browser:
    """One open page without a browser: keeps the values of all components, and calls handlers with them."""

    def __init__(self, app: App) -> None:
        from lora_train.ui import tab

        self.blocks = tab.build(app, token="secret", localize=False)
        self.by_id = {block.elem_id: block for block in self.blocks.blocks.values() if getattr(block, "elem_id", None)}
        self.values = {block: getattr(block, "value", None) for block in self.blocks.blocks.values()}
        self.visible = {block: getattr(block, "visible", True) for block in self.blocks.blocks.values()}

    def __getitem__(self, name: str) -> Any:
        return self.values[self.by_id[f"train_tools_{name}"]]

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

    def _call(self, block_id: int, event: str) -> dict[Any, Any]:
        functions = self.blocks.fns.values() if isinstance(self.blocks.fns, dict) else self.blocks.fns
        for function, triggers in zip(functions, _triggers(self.blocks), strict=True):
            if (block_id, event) in triggers and function.fn is not None:
                updates = function.fn({block: self.values[block] for block in function.inputs})
                assert set(updates) <= set(function.outputs), "gradio refuses an update of what is no output"
                return updates
        raise AssertionError(f"nothing is bound to {event}")


def _triggers(blocks: Any) -> list[list[tuple[int, str]]]:
    """(component, event) pairs of every handler, in gradio 3 and later ones."""
    if isinstance(blocks.fns, dict):
        return [[tuple(target) for target in function.targets] for function in blocks.fns.values()]
    return [
        [(target, entry["trigger"]) for target in entry["targets"] or [blocks._id]] for entry in blocks.dependencies
    ]


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
