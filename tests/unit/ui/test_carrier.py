"""What is bound with many outputs, and what its answers look like; the browser's half is seen by tests/browser."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

pytest.importorskip("gradio")

import gradio as gr

from lora_train.ui.carrier import Carrier
from lora_train.ui.compat import Component, Updates

pytestmark = pytest.mark.compat


class Bound:
    """A button whose handler answers with what it is told to, for a dropdown and so many texts."""

    def __init__(self, texts: int) -> None:
        self.answer: Updates = {}
        with gr.Blocks() as blocks:
            carrier = Carrier()
            self.button = gr.Button("Go")
            self.choice = gr.Dropdown(["a", "b"])
            self.texts = [gr.Textbox() for _ in range(texts)]
            carrier.on(self.button.click, lambda _: self.answer, {self.choice}, {self.choice, *self.texts})
        functions = blocks.fns.values() if isinstance(blocks.fns, dict) else blocks.fns
        self.press = next(iter(functions)).fn
        self.dependencies: list[Mapping[str, Any]] = blocks.get_config_file()["dependencies"]

    def carried(self, updates: Updates) -> dict[int, Any]:
        (text,) = (value for component, value in updates.items() if component not in (self.choice, *self.texts))
        return {int(number): value for number, value in json.loads(text)["values"].items()}


def numbers(components: list[Component]) -> set[int]:
    return {component._id for component in components}


def test_many_outputs_are_few_for_gradio() -> None:
    bound = Bound(40)
    press, put = bound.dependencies
    assert len(press["outputs"]) == 2, "the choice, which the server checks, and the text of all others"
    assert bound.choice._id in press["outputs"]
    assert set(put["outputs"]) == numbers(bound.texts)
    assert put["trigger_after"] == press.get("id", 0)
    assert put["inputs"] == [number for number in press["outputs"] if number != bound.choice._id]
    assert not put["backend_fn"], "the browser does it by itself"


def test_values_and_updates_are_carried() -> None:
    bound = Bound(40)
    first, second, *_ = bound.texts
    bound.answer = {first: "猫 </script>", second: gr.update(visible=False), bound.choice: "b"}
    updates = bound.press({})
    assert updates[bound.choice] == "b"
    carried = bound.carried(updates)
    assert carried[first._id] == "猫 </script>"
    assert carried[second._id] == {"visible": False, "__type__": "update"}
    assert set(carried) == numbers([first, second]), "what is not answered stays as it is"


def test_equal_answers_are_two() -> None:
    """What a person changed between them is set back."""
    bound = Bound(40)
    bound.answer = {bound.texts[0]: "same"}
    once, again = bound.press({}), bound.press({})
    assert bound.carried(once) == bound.carried(again)
    assert once != again


def test_an_answer_that_carries_nothing_leaves_the_text() -> None:
    bound = Bound(40)
    assert bound.press({}) == {}
    bound.answer = {bound.choice: "b"}
    assert bound.press({}) == {bound.choice: "b"}


def test_few_outputs_go_their_own_way() -> None:
    bound = Bound(3)
    (press,) = bound.dependencies
    assert set(press["outputs"]) == numbers([bound.choice, *bound.texts])
    bound.answer = {bound.texts[0]: "x"}
    assert bound.press({}) == bound.answer
