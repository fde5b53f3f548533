"""Settings as controls: the schema says what there is, this says how it is shown and what a person's answer means."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import gradio as gr

from lora_train.core.config import Optimizer
from lora_train.core.optimizers import is_absent
from lora_train.core.settings import SettingField
from lora_train.ui.compat import Component, make, make_fixed_choice
from lora_train.ui.html import number_text

Section = Literal["train", "dataset", "caption", "preview", "sweep"]

ABSENT = " (not installed)"
_HELP = {"clip_skip": "2 if training anime model"}
"""Shorter words than the schema's, where the tutorial's reader knows them."""


@dataclass(frozen=True, eq=False)
class SettingControl:
    """One setting on the page: where it is kept, and the component that shows it."""

    section: Section
    field: SettingField
    component: Component

    def shown(self, value: Any) -> Any:
        """A setting's value as its component shows it."""
        kind = self.field.kind
        if kind == "choice":
            return str(value)
        if kind == "float":
            return number_text(value)
        if kind == "texts":
            return "\n".join(value)
        if kind == "choices":
            return list(value)
        if kind in ("ints", "floats"):
            return ", ".join(number_text(number) for number in value)
        return value

    def update(self, value: Any) -> Any:
        """What a handler answers to show a setting's value."""
        return self.shown(value)

    def meant(self, given: Any) -> Any:
        """What the component holds, as a value for `App.settings.save`, which checks it."""
        if given is None:  # an emptied number
            return ""
        if isinstance(given, float) and given.is_integer():  # as gradio 3 hands over every number
            return int(given)
        if self.field.kind == "choice":
            return next((choice for choice in self.field.choices if str(choice) == given), given)
        return given.strip() if isinstance(given, str) and self.field.kind != "texts" else given


def setting_control(field: SettingField, section: Section, *, panel: str, **options: Any) -> SettingControl:
    """The control of a setting; its id is `train_tools_<panel>_<name>`. `options` go to the component as they are."""
    shared = {
        "label": field.label,
        "info": _HELP.get(field.name, field.help),
        "elem_id": f"train_tools_{panel}_{field.name}",
        "interactive": True,
        "min_width": 120,
        **options,
    }
    blank = SettingControl(section, field, None)
    return SettingControl(section, field, _component(field, {"value": blank.shown(field.default), **shared}))


def _component(field: SettingField, options: dict[str, Any]) -> Component:
    if field.kind == "choices":
        return make(gr.Dropdown, **{"choices": list(field.choices), "multiselect": True, **options})
    if "choices" in options:
        return make(gr.Dropdown, **options)
    if field.kind == "choice":
        return make_fixed_choice([str(choice) for choice in field.choices], **options)
    if field.kind == "bool":
        return make(gr.Checkbox, elem_classes=["train-tools-check"], **options)
    if field.kind == "int":  # without its range, which gradio would enforce at every digit that is typed
        return make(gr.Number, **options)
    if field.kind == "texts":
        return make(gr.Textbox, lines=3, **options)
    # Fractions are text: number fields of gradio 3 know no step smaller than 1.
    return make(gr.Textbox, **{"max_lines": 1, **options})


def optimizer_label(name: Optimizer) -> str:
    """An optimizer as lists show it: those that can't be chosen yet say so. (No gradio can disable a single choice.)"""
    return f"{name}{ABSENT if is_absent(name) else ''}"


def refresh_button(name: str) -> Component:
    """The small button beside a list."""
    return make(
        gr.Button,
        value="↻",
        elem_id=f"train_tools_{name}_refresh",
        elem_classes=["train-tools-tool"],
        min_width=40,
        scale=0,
    )


def labels(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Name for a dropdown -> id, from (name, id) pairs; a name that two of them have gets its id behind it.

    Dropdowns of gradio 3.41 hold texts alone, no (name, value) pairs.
    """
    found: dict[str, str] = {}
    for name, identifier in pairs:
        found[f"{name} ({identifier})" if name in found else name] = identifier
    return found


def label_of(choices: dict[str, str], identifier: str) -> str | None:
    """The name of an id in a dropdown; None where it is not in there."""
    return next((name for name, known in choices.items() if known == identifier), None)
