"""Handlers with many outputs, whose values travel as one text that the browser puts into its places.

gradio makes, checks and keeps every output by itself: for each of the 210 that show a version gradio 6 takes half a
millisecond on the server, more than all that the handler does.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from typing import Any

import gradio as gr

from lora_train.ui.compat import Component, Updates, make, on

_FEWEST = 12
"""Of fewer outputs each goes its own way."""
_KINDS = (gr.Textbox, gr.Number, gr.Checkbox, gr.HTML, gr.Column, gr.Row, gr.Accordion)
"""What the browser shows as we give it. Of the others the server has to know the update: a choice is checked there."""
_PUT = """(text) => {
    const told = text ? JSON.parse(text) : {};
    const isNew = told.answer !== window.trainToolsAnswer;
    window.trainToolsAnswer = told.answer;
    return %s.map((id) => (isNew && id in told.values ? told.values[id] : { __type__: "update" }));
}"""


class Carrier:
    """The hidden text of a page."""

    def __init__(self) -> None:
        self._text = make(gr.Textbox, value="", visible=False)

    def on(
        self,
        trigger: Callable[..., Any],
        handler: Callable[[Any], Updates],
        inputs: set[Component],
        outputs: set[Component],
        *,
        keeps_latest: bool = False,
    ) -> None:
        """Bind a quick handler to an event, as `compat.on`."""
        carried = [component for component in outputs if isinstance(component, _KINDS)]
        if len(carried) < _FEWEST:
            on(trigger, handler, inputs, outputs, keeps_latest=keeps_latest)
            return

        def answer(values: Any) -> Updates:
            return self._packed(handler(values), set(carried))

        others = outputs.difference(carried) | {self._text}
        put = _PUT % json.dumps([component._id for component in carried])
        for event in on(trigger, answer, inputs, others, keeps_latest=keeps_latest):
            on(event.then, None, [self._text], carried, js=put)

    def _packed(self, updates: Updates, carried: set[Component]) -> Updates:
        """Those that are carried in one; an answer is put into its places once, however often it is looked at."""
        values = {str(component._id): _put(value) for component, value in updates.items() if component in carried}
        if not values:
            return updates
        others = {component: value for component, value in updates.items() if component not in carried}
        return {**others, self._text: json.dumps({"answer": secrets.token_hex(8), "values": values})}


def _put(value: Any) -> Any:
    """A value, or an update in the browser's form: `gr.update` of gradio 3 says that it is a `generic_update`."""
    return {**value, "__type__": "update"} if isinstance(value, dict) else value
