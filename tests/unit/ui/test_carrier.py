"""What is bound with many outputs, and what its answers look like; the browser's half is seen by tests/browser."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from typing import Any

import pytest

pytest.importorskip("gradio")

import gradio as gr

from lora_train.ui.carrier import Carrier
from lora_train.ui.compat import Component, Updates

pytestmark = pytest.mark.compat


class Bound:
    """A button whose handler answers with what it is told to, for a dropdown and so many texts; and another like it."""

    def __init__(self, texts: int) -> None:
        self.answer: Updates = {}
        with gr.Blocks() as blocks:
            carrier = Carrier()
            self.button = gr.Button("Go")
            self.choice = gr.Dropdown(["a", "b"])
            self.other = gr.Button("Other")
            self.texts = [gr.Textbox() for _ in range(texts)]
            outputs = {self.choice, self.other, *self.texts}
            for button in (self.button, self.other):
                carrier.on(button.click, lambda _: self.answer, {self.choice}, outputs)
        functions = blocks.fns.values() if isinstance(blocks.fns, dict) else blocks.fns
        self.press = next(iter(functions)).fn
        self.dependencies: list[Mapping[str, Any]] = blocks.get_config_file()["dependencies"]

    def carried(self, updates: Updates) -> dict[int, Any]:
        (text,) = (value for component, value in updates.items() if component not in (self.choice, self.other))
        return {int(number): value for number, value in json.loads(text)["values"].items()}


def numbers(components: list[Component]) -> set[int]:
    return {component._id for component in components}


def test_many_outputs_are_few_for_gradio() -> None:
    bound = Bound(40)
    press, put, *_ = bound.dependencies
    direct = numbers([bound.choice, bound.other])
    assert len(press["outputs"]) == 3, "the button, the choice, which the server checks, and the text of all"
    assert direct < set(press["outputs"])
    assert set(put["outputs"]) == numbers([bound.choice, *bound.texts])
    assert put["trigger_after"] == press.get("id", 0)
    assert put["inputs"] == [number for number in press["outputs"] if number not in direct]
    assert not put["backend_fn"], "the browser does it by itself"


@pytest.mark.skipif(shutil.which("node") is None, reason="runs what the browser runs: needs node")
def test_every_answer_is_put_into_its_places_once() -> None:
    """Also of two that come before the first is put, as they do where the browser draws both at once."""
    bound = Bound(40)
    puts = [told for told in bound.dependencies if not told["backend_fn"]]
    choice = bound.choice._id
    texts = [json.dumps({"answer": name, "values": {str(choice): name}}) for name in ("first", "second")]
    turns = [(0, texts[0]), (1, texts[1]), (0, texts[0]), (0, ""), (1, texts[0])]
    calls = ", ".join(f"puts[{number}]({json.dumps(text)})" for number, text in turns)
    script = f"globalThis.window = {{}}; const puts = [{', '.join(put['js'] for put in puts)}]; "
    done = subprocess.run(
        ["node", "-e", f"{script} console.log(JSON.stringify([{calls}]))"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    place = [put["outputs"].index(choice) for put in puts]
    shown = [answer[place[number]] for (number, _), answer in zip(turns, json.loads(done.stdout), strict=True)]
    same = {"__type__": "update"}
    assert shown == ["first", "second", same, same, "first"]
    assert {len(answer) for answer in json.loads(done.stdout)} == {41}


def test_values_and_updates_are_carried() -> None:
    bound = Bound(40)
    first, second, *_ = bound.texts
    bound.answer = {first: "猫 </script>", second: gr.update(visible=False), bound.choice: "b"}
    updates = bound.press({})
    assert bound.choice not in updates
    carried = bound.carried(updates)
    assert carried[first._id] == "猫 </script>"
    assert carried[second._id] == {"visible": False, "__type__": "update"}
    assert carried[bound.choice._id] == "b"
    assert len(carried) == 3, "what is not answered stays as it is"


def test_the_server_knows_choices_and_the_value_goes_with_all_others() -> None:
    bound = Bound(40)
    bound.answer = {bound.texts[0]: "v2", bound.choice: gr.update(choices=["c", "d"], value="d")}
    updates = bound.press({})
    assert updates[bound.choice]["choices"] == ["c", "d"]
    assert "value" not in updates[bound.choice]
    assert bound.carried(updates)[bound.choice._id] == {"value": "d", "__type__": "update"}


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
    bound.answer = {bound.other: "b"}
    assert bound.press({}) == {bound.other: "b"}


def test_few_outputs_go_their_own_way() -> None:
    bound = Bound(3)
    press, _ = bound.dependencies
    assert set(press["outputs"]) == numbers([bound.choice, bound.other, *bound.texts])
    bound.answer = {bound.texts[0]: "x"}
    assert bound.press({}) == bound.answer
