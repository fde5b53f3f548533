"""The presets above the settings of a training: chosen, taken back, and a person's own kept and shared."""

from __future__ import annotations

import threading
from pathlib import Path

import gradio as gr

from lora_train.app.snapshot import Selection
from lora_train.core.errors import WorkspaceError
from lora_train.core.purposes import MOST_PRESET_BYTES
from lora_train.ui.compat import Component, Updates, make, make_upload, uploaded_name, uploaded_path
from lora_train.ui.form import label_of, labels
from lora_train.ui.page import Page, Values
from lora_train.ui.view_presets import LABELS

_NONE = "None"
_HELP = "Keep the settings above under a name, for other projects and other people. No path and no prompt is in it."


class PresetPanel:
    """A preset is applied as soon as it is chosen; *None* takes it back."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self._choosing = threading.Lock()
        self._last: Values = {}
        """What the page held when a preset was chosen last."""
        self.choice = make(
            gr.Dropdown,
            choices=[_NONE],
            value=_NONE,
            label="Preset",
            info="What the LoRA is for. Sets the settings below, and tells why.",
            interactive=True,
            elem_id="train_tools_preset_choice",
        )
        page.add_live("preset")
        # The script presses it when a button of the part above has changed the settings.
        self.again = make(gr.Button, value="", elem_id="train_tools_preset_again", elem_classes=["train-tools-hidden"])
        page.add_filler(self._fill, self.choice)

    def add_own(self) -> None:
        """The accordion below the settings."""
        with make(gr.Accordion, label="Your own presets", open=False, elem_classes=["train-tools-group"]):
            make(gr.HTML, value=f'<p class="train-tools-help">{_HELP}</p>')
            with make(gr.Row, elem_classes=["train-tools-ask"]):
                self.name = make(
                    gr.Textbox,
                    value="",
                    label="Preset name",
                    max_lines=1,
                    interactive=True,
                    elem_id="train_tools_preset_name",
                    scale=3,
                )
                self.save = _button("save", "Save Preset")
            with make(gr.Row, elem_classes=["train-tools-ask"]):
                self.own = make(
                    gr.Dropdown,
                    choices=[],
                    value=None,
                    label="Your preset",
                    interactive=True,
                    elem_id="train_tools_preset_own",
                    scale=3,
                )
                self.rename = _button("rename", "Rename Preset")
                self.delete = _button("delete", "Delete Preset", variant="stop")
            self.page.add_live("presets", is_folded=True)
            self.upload = make_upload("Upload presets", "train_tools_preset_upload")
        self.page.add_filler(self._fill_own, self.own, self.name)

    def bind(self) -> None:
        page = self.page
        form = {self.choice, *page.settings_parts(), *page.live_parts("preset", "sum", "model")}
        page.on(self.choice.input, self._choose, [self.choice, *page.controls()], form)
        page.on(self.again.click, self._show_again, [], form, keeps_message=True)
        kept = {self.choice, self.own, self.name, *page.live_parts("preset", "presets")}
        for trigger in (self.save.click, self.name.submit):
            page.on(trigger, self._save, [self.name, *page.controls()], kept)
        page.on(self.rename.click, self._rename, [self.own, self.name], kept)
        page.on(self.delete.click, self._delete, [self.own], kept)
        page.on(self.upload.upload, self._take, [self.upload], {self.upload, *kept})

    # --- what is shown ---

    def _fill(self, selection: Selection) -> Updates:
        if not selection.version:
            return {}
        shown = self._labels()
        name = self.page.app.presets.state(selection.project, selection.version).name
        label = label_of(shown, name) or name
        names = [*shown] if label in shown else [*shown, label]  # deleted since; gradio 4 refuses what is no choice
        return {self.choice: gr.update(choices=names, value=label)}

    def _fill_own(self, _: Selection) -> Updates:
        own = [entry.name for entry in self.page.app.presets.list() if entry.is_own]
        return {self.own: gr.update(choices=own, value=None), self.name: ""}

    def _labels(self) -> dict[str, str]:
        entries = self.page.app.presets.list()
        return labels([(_NONE, ""), *((LABELS.get(entry.name, entry.name), entry.name) for entry in entries)])

    # --- what is done ---

    def _choose(self, values: Values) -> Updates:
        """What stands on the page is what a preset changes, also where its saving was missed.

        gradio 6 tells of a choice twice at once: the second would put back what the page held before the first.
        """
        selection, presets = self.page.selection(values), self.page.app.presets
        with self._choosing:
            name = self._labels().get(values[self.choice] or _NONE, values[self.choice])
            in_use = presets.state(selection.project, selection.version).name
            if values != self._last or name != in_use:
                self.page.save(values)
                if name:
                    presets.apply(selection.project, selection.version, name)
                elif in_use:
                    presets.undo(selection.project, selection.version)
                self._last = values
            return self._form(selection)

    def _show_again(self, values: Values) -> Updates:
        return self._form(self.page.selection(values))

    def _form(self, selection: Selection) -> Updates:
        drawn = self.page.redraw(selection, "preset", "sum", "model")
        return {**self._fill(selection), **self.page.show_settings(selection), **drawn}

    def _save(self, values: Values) -> Updates:
        selection = self.page.selection(values)
        self.page.save(values)
        self.page.app.presets.save(values[self.name] or "", selection.project, selection.version)
        return {**self._kept(selection), self.page.message: self.page.message_html("The preset is saved.")}

    def _rename(self, values: Values) -> Updates:
        self.page.app.presets.rename(_chosen(values[self.own]), values[self.name] or "")
        return self._kept(self.page.selection(values))

    def _delete(self, values: Values) -> Updates:
        undo = self.page.app.presets.delete(_chosen(values[self.own]))
        return {**self._kept(self.page.selection(values)), self.page.message: self.page.undo_html(undo)}

    def _take(self, values: Values) -> Updates:
        problems: list[str] = []
        for file in values[self.upload] or []:
            name = uploaded_name(file)
            try:
                with Path(uploaded_path(file)).open("rb") as stream:
                    problems += self.page.app.presets.take_in(name, stream.read(MOST_PRESET_BYTES + 1)).problems
            except WorkspaceError as error:
                problems.append(f"{name}: {error.message}")
        kind = "error" if problems else "info"
        told = "\n".join(problems) or "The preset is among your own now."
        kept = self._kept(self.page.selection(values))
        return {self.upload: None, **kept, self.page.message: self.page.message_html(told, kind=kind)}

    def _kept(self, selection: Selection) -> Updates:
        drawn = self.page.redraw(selection, "preset", "presets")
        return {**self._fill(selection), **self._fill_own(selection), **drawn}


def _chosen(name: str | None) -> str:
    if not name:
        raise WorkspaceError("Choose one of your own presets first.")
    return name


def _button(name: str, text: str, variant: str = "secondary") -> Component:
    return make(
        gr.Button,
        value=text,
        variant=variant,
        elem_id=f"train_tools_preset_{name}",
        elem_classes=["train-tools-head-button"],
        min_width=120,
        scale=0,
    )
