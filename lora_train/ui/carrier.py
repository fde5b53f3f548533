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

from lora_train.ui.compat import Component, Updates, make, may_get_choices, on

_FEWEST = 12
"""Of fewer outputs each goes its own way."""
_KINDS = (gr.Textbox, gr.Number, gr.Checkbox, gr.Dropdown, gr.HTML, gr.Column, gr.Row, gr.Accordion)
"""What the browser shows as we give it."""
_PUT = """(text) => {
    const { answer, values = {} } = text ? JSON.parse(text) : {};
    const taken = (window.trainToolsTaken ??= {});
    const isNew = answer !== taken[%(text)d];
    taken[%(text)d] = answer;
    return %(carried)s.map((id) => (isNew && id in values ? values[id] : { __type__: "update" }));
}"""


class Carrier:
    """The hidden texts of a page: one for each handler, so that answers which come at once do not meet."""

    def __init__(self) -> None:
        self._place = make(gr.Column, visible=False)

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
        direct = {component for component in outputs if not isinstance(component, _KINDS) or may_get_choices(component)}
        if len(carried) < _FEWEST:
            on(trigger, handler, inputs, outputs, keeps_latest=keeps_latest)
            return

        with self._place:
            text = make(gr.Textbox, value="", visible=False)

        def answer(values: Any) -> Updates:
            return _packed(handler(values), set(carried), text)

        put = _PUT % {"text": text._id, "carried": json.dumps([component._id for component in carried])}
        for event in on(trigger, answer, inputs, direct | {text}, keeps_latest=keeps_latest):
            on(event.then, None, [text], carried, js=put)


def _packed(updates: Updates, carried: set[Component], text: Component) -> Updates:
    """Those that are carried in one; an answer is put into its places once, however often it is looked at. The values
    of dropdowns are carried too, though not their choices: values of two versions never stand on the page together.
    """
    values: dict[str, Any] = {}
    direct: Updates = {}
    for component, value in updates.items():
        if component not in carried:
            direct[component] = value
            continue
        if isinstance(value, dict):
            if "choices" in value:
                direct[component] = gr.update(choices=value["choices"])
            # In the browser's form: `gr.update` of gradio 3 says that it is a `generic_update`.
            value = {**{name: told for name, told in value.items() if name != "choices"}, "__type__": "update"}
        values[str(component._id)] = value
    return {**direct, text: json.dumps({"answer": secrets.token_hex(8), "values": values})} if values else direct
