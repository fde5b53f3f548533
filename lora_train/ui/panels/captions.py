"""The caption editor: a filter, what to do with the captions that it shows, and undo."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Any

import gradio as gr
import msgspec

from lora_train.app.captions import AllPictures, ChosenPictures, EditResult, FilteredPictures, Operation, Scope
from lora_train.app.snapshot import Selection
from lora_train.core.errors import ConfigError
from lora_train.ui.compat import Component, Updates, make, triggers_of_a_hand
from lora_train.ui.page import Page, Values
from lora_train.ui.view_captions import changes_html

_MODES = {"all of these": "and", "any of these": "or"}
_ORDERS = {
    "by name": "name",
    "by caption": "caption",
    "longest first": "most tokens",
    "shortest first": "fewest tokens",
}
_SCOPES = ("all pictures", "those that the filter shows", "chosen pictures")
_JOINTS = {"with a comma": ", ", "with a blank": " "}
_PLACES = {"at the end": "end", "at the start": "start", "after the trigger word": "after trigger"}
_SORTS = {"A to Z": "alphabet", "most frequent first": "frequency", "shortest tag first": "length"}
_WITHIN = {
    "whole tags": "tag",
    "any text": "text",
    "regular expression in tags": "tag expression",
    "regular expression in captions": "caption expression",
}


@dataclass(frozen=True)
class _Edit:
    """One thing to do: the edit that it is, and the names that its fields have there."""

    kind: str
    text: str = ""
    replacement: str = ""
    way: str = ""
    ways: Mapping[str, str] = field(default_factory=dict)
    """What the person chooses from -> the value of the field `way`."""


_EDITS: dict[str, _Edit] = {
    "Add tags": _Edit("add", text="tags", way="place", ways=_PLACES),
    "Remove tags": _Edit("remove", text="tags"),
    "Replace": _Edit("replace", text="find", replacement="replacement", way="within", ways=_WITHIN),
    "Prepend text": _Edit("prepend", text="text", way="joined_by", ways=_JOINTS),
    "Append text": _Edit("append", text="text", way="joined_by", ways=_JOINTS),
    "Sort tags": _Edit("sort", way="by", ways=_SORTS),
    "Remove repeated tags": _Edit("dedupe"),
    "Trigger word first": _Edit("trigger first"),
    "Set captions": _Edit("set", text="text"),
}
_FIRST_EDIT = "Add tags"
_WRITE_HELP = "Lets the captioner that is ticked above describe these pictures, by its policy."
_FILTER_HELP = "Tags with commas. A minus in front: without it. Between stars: any text. Between slashes: expression."


class CaptionsPanel:
    def __init__(self, page: Page) -> None:
        self.page = page
        with (
            make(gr.Accordion, label="Caption editor", open=False, elem_id="train_tools_captions"),
            make(gr.Row, equal_height=False, elem_classes=["train-tools-panel"]),
        ):
            with make(gr.Column, scale=3, min_width=320):
                self._add_filter()
                page.add_live("captions", is_folded=True)
            with make(gr.Column, scale=2, min_width=320):
                self._add_edit()
        page.add_filler(self._fill, self.changes, self.filter, self.chosen, self.state)

    def _add_filter(self) -> None:
        with make(gr.Row):
            self.filter = _text("filter", "Filter", _FILTER_HELP)
        with make(gr.Row):
            self.mode = _choice("mode", "Show pictures with", _MODES)
            self.order = _choice("order", "Order", _ORDERS)
        # Read by the script, which asks for the same captions; the other is written by it.
        self.state = make(gr.HTML, value=_state_html("", "and", "name"), elem_classes=["train-tools-hidden"])
        self.chosen = make(
            gr.Textbox, value="[]", elem_id="train_tools_captions_chosen", elem_classes=["train-tools-hidden"]
        )

    def _add_edit(self) -> None:
        with make(gr.Row):
            self.edit = _choice("edit", "What to do", _EDITS)
            self.way = _choice("way", "How", _EDITS[_FIRST_EDIT].ways)
        self.text = _text("text", "Tags or text", "What is added, removed or looked for.")
        self.replacement = _text("replacement", "Replacement", "Empty: what is found is removed.", visible=False)
        self.scope = _choice("scope", "Which pictures", _SCOPES)
        with make(gr.Row):
            self.preview = _button("preview", "Preview")
            self.apply = _button("apply", "Apply", "primary")
        with make(gr.Row):
            self.undo = _button("undo", "Undo")
            self.redo = _button("redo", "Redo")
        self.write = _button("write", "Write captions")
        make(gr.HTML, value=f'<p class="train-tools-help">{_WRITE_HELP}</p>')
        self.changes = make(
            gr.HTML, value="", elem_id="train_tools_captions_changes", elem_classes=["train-tools-slot"]
        )

    def bind(self) -> None:
        page = self.page
        shown = [self.filter, self.mode, self.order]
        filtered = {self.state, *page.live_parts("captions")}
        for component in shown:
            for trigger in triggers_of_a_hand(component):
                page.on(trigger, self._show, shown, filtered, is_typing=True)
        page.on(self.edit.input, self._show_fields, [self.edit], [self.way, self.text, self.replacement])
        form = [self.edit, self.way, self.text, self.replacement, self.scope, self.chosen, *shown]
        page.on(self.preview.click, self._preview, form, [self.changes])
        drawn = {self.changes, *page.live_parts("captions", "dataset", "health", "sum")}
        page.on_press(self.apply, self._apply, form, drawn)
        page.on_press(self.undo, self._undo, shown, drawn)
        page.on_press(self.redo, self._redo, shown, drawn)
        scoped = [self.scope, self.chosen, *shown]
        page.on_press(self.write, self._write, scoped, page.live_parts("captioning"))

    def _fill(self, _: Selection) -> Updates:
        return {self.changes: "", self.filter: "", self.chosen: "[]", self.state: _state_html("", "and", "name")}

    # --- what is shown ---

    def _view(self, values: Values) -> dict[str, str]:
        """The filter as the page's script would ask for it."""
        return {
            "filter": values[self.filter] or "",
            "mode": _MODES.get(values[self.mode] or "", "and"),
            "order": _ORDERS.get(values[self.order] or "", "name"),
        }

    def _show(self, values: Values) -> Updates:
        view = self._view(values)
        drawn = self.page.redraw(self.page.selection(values), "captions", **view)
        return {self.state: _state_html(**view), **drawn}

    def _show_fields(self, values: Values) -> Updates:
        edit = _EDITS[values[self.edit] or _FIRST_EDIT]
        ways = list(edit.ways)
        return {
            self.way: gr.update(choices=ways, value=ways[0] if ways else None, visible=bool(ways)),
            self.text: gr.update(visible=bool(edit.text)),
            self.replacement: gr.update(visible=bool(edit.replacement)),
        }

    # --- what is done ---

    def _operation(self, values: Values) -> Operation:
        edit = _EDITS[values[self.edit] or _FIRST_EDIT]
        way = edit.ways.get(values[self.way] or "", next(iter(edit.ways.values()), ""))
        given = {edit.text: values[self.text] or "", edit.replacement: values[self.replacement] or "", edit.way: way}
        return msgspec.convert({"kind": edit.kind, **{name: text for name, text in given.items() if name}}, Operation)

    def _scope(self, values: Values) -> Scope:
        if values[self.scope] == _SCOPES[2]:
            files = self._chosen(values)
            if not files:
                raise ConfigError(["No picture is chosen: tick some in the list."])
            return ChosenPictures(files)
        if values[self.scope] == _SCOPES[1]:
            view = self._view(values)
            return FilteredPictures(view["filter"], "or" if view["mode"] == "or" else "and")
        return AllPictures()

    def _chosen(self, values: Values) -> list[str]:
        try:
            files: list[Any] = json.loads(values[self.chosen] or "[]")
        except ValueError:
            return []
        return [file for file in files if isinstance(file, str)]

    def _preview(self, values: Values) -> Updates:
        shown = self.page.selection(values)
        changes = self.page.app.captions.preview(
            shown.project, shown.version, self._operation(values), self._scope(values)
        )
        return {self.changes: changes_html(changes)}

    def _apply(self, values: Values) -> Updates:
        shown = self.page.selection(values)
        result = self.page.app.captions.edit(shown.project, shown.version, self._operation(values), self._scope(values))
        return self._done(values, result)

    def _undo(self, values: Values) -> Updates:
        shown = self.page.selection(values)
        return self._done(values, self.page.app.captions.undo(shown.project, shown.version))

    def _redo(self, values: Values) -> Updates:
        shown = self.page.selection(values)
        return self._done(values, self.page.app.captions.redo(shown.project, shown.version))

    def _done(self, values: Values, result: EditResult) -> Updates:
        drawn = self.page.redraw(
            self.page.selection(values), "captions", "dataset", "health", "sum", **self._view(values)
        )
        updates: Updates = {self.changes: "", **drawn}
        if result.problems:
            updates[self.page.message] = self.page.message_html("\n".join(result.problems), kind="error")
        else:
            updates[self.page.message] = self.page.counted_html(result.changed, "caption changed.", "captions changed.")
        return updates

    def _write(self, values: Values) -> Updates:
        shown = self.page.selection(values)
        scope = self._scope(values)
        files: tuple[str, ...] = ()
        if isinstance(scope, ChosenPictures):
            files = tuple(scope.files)
        elif isinstance(scope, FilteredPictures):
            view = self.page.app.captions.view(shown.project, shown.version, scope.filter, scope.mode)
            files = tuple(row.file for row in view.rows if not row.is_regularisation)
            if not files:
                raise ConfigError(["The filter shows no picture."])
        self.page.app.captioning.start(shown.project, shown.version, files)
        return self.page.redraw(shown, "captioning")


def _state_html(filter: str, mode: str, order: str) -> str:
    attributes = f'data-filter="{escape(filter)}" data-mode="{escape(mode)}" data-order="{escape(order)}"'
    return f'<div id="train_tools_captions_state" hidden {attributes}></div>'


def _text(name: str, label: str, info: str, *, visible: bool = True) -> Component:
    return make(
        gr.Textbox,
        value="",
        label=label,
        info=info,
        max_lines=1,
        interactive=True,
        visible=visible,
        elem_id=f"train_tools_captions_{name}",
        min_width=160,
    )


def _choice(name: str, label: str, choices: Any) -> Component:
    return make(
        gr.Dropdown,
        choices=list(choices),
        value=next(iter(choices)),
        label=label,
        interactive=True,
        elem_id=f"train_tools_captions_{name}",
        min_width=140,
    )


def _button(name: str, text: str, variant: str = "secondary") -> Component:
    return make(gr.Button, value=text, variant=variant, elem_id=f"train_tools_captions_{name}", min_width=80)
