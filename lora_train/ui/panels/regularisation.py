"""Regularisation pictures: uploaded or drawn by the base model, class by class, and what they do to the steps."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

from lora_train.app.snapshot import Selection
from lora_train.core.errors import ConfigError
from lora_train.ui.compat import Component, Updates, make, make_upload, triggers_of_a_hand, uploaded_name, uploaded_path
from lora_train.ui.page import Page, Values
from lora_train.ui.view_regularisation import effect_html

_HELP = (
    "Ordinary pictures of the same class keep the base model from forgetting it. An epoch shows as many of them as "
    "training pictures, so they double the steps."
)
_COUNT = 20


class RegularisationPanel:
    def __init__(self, page: Page) -> None:
        self.page = page
        with make(gr.Accordion, label="Regularisation pictures", open=False, elem_id="train_tools_regularisation"):
            make(gr.HTML, value=f'<p class="train-tools-help">{_HELP}</p>')
            with make(gr.Row, equal_height=False, elem_classes=["train-tools-panel"]):
                with make(gr.Column, scale=3, min_width=320):
                    page.add_live("regularisation", is_folded=True)
                    self.more = make(gr.HTML, value="", elem_classes=["train-tools-slot"])
                with make(gr.Column, scale=2, min_width=320):
                    self._add_form()
        page.add_filler(self._fill, self.class_name, self.prompt, self.negative_prompt, self.more)

    def _add_form(self) -> None:
        with make(gr.Row):
            self.class_name = _text("class_name", "Class", "One word, such as: person.")
            self.count = make(
                gr.Number,
                value=_COUNT,
                precision=0,
                label="How many",
                info="1 to 1000; about as many as there are training pictures.",
                interactive=True,
                elem_id="train_tools_regularisation_count",
                min_width=120,
            )
        self.prompt = _text("prompt", "Class prompt", "What is drawn, such as: a photo of a person.")
        self.negative_prompt = _text("negative_prompt", "Class negative prompt", "What the pictures should avoid.")
        self.generate = make(
            gr.Button,
            value="Draw with the base model",
            elem_id="train_tools_regularisation_generate",
            variant="primary",
        )
        self.upload = make_upload("Upload class pictures", "train_tools_regularisation_upload")

    def bind(self) -> None:
        page = self.page
        own = [self.class_name, self.count, self.prompt, self.negative_prompt]
        drawn = {self.more, *page.live_parts("regularisation", "queue", "sum", "dataset")}
        page.on_press(self.generate, self._generate, own, drawn)
        page.on_press(
            self.upload, self._take, [self.upload, self.class_name], {self.upload, *drawn}, trigger=self.upload.upload
        )
        for trigger in triggers_of_a_hand(self.count):
            page.on(trigger, self._show_more, [self.count], [self.more], is_typing=True)

    def _fill(self, _: Selection) -> Updates:
        return {self.class_name: "", self.prompt: "", self.negative_prompt: "", self.more: ""}

    def _show_more(self, values: Values) -> Updates:
        """What so many would do; nothing while the number is being typed."""
        try:
            count = self._count(values)
        except ConfigError:
            return {self.more: ""}
        shown = self.page.selection(values)
        return {self.more: effect_html(self.page.app.regularisation.estimate(shown.project, shown.version, count))}

    def _count(self, values: Values) -> int:
        try:
            return int(values[self.count])
        except (TypeError, ValueError, OverflowError):
            raise ConfigError(["How many: type a whole number from 1 to 1000."]) from None

    def _generate(self, values: Values) -> Updates:
        shown = self.page.selection(values)
        self.page.app.regularisation.generate(
            shown.project,
            shown.version,
            values[self.class_name] or "",
            values[self.prompt] or "",
            values[self.negative_prompt] or "",
            self._count(values),
        )
        return self._drawn(values)

    def _take(self, values: Values) -> Updates:
        shown = self.page.selection(values)
        files = [(uploaded_name(file), Path(uploaded_path(file))) for file in values[self.upload] or []]
        updates: Updates = {self.upload: None}
        problems = self.page.app.regularisation.add(shown.project, shown.version, values[self.class_name] or "", files)
        if problems:
            updates[self.page.message] = self.page.message_html("\n".join(problems), kind="error")
        return {**updates, **self._drawn(values)}

    def _drawn(self, values: Values) -> Updates:
        drawn = self.page.redraw(self.page.selection(values), "regularisation", "queue", "sum", "dataset")
        return {self.more: "", **drawn}


def _text(name: str, label: str, info: str) -> Component:
    return make(
        gr.Textbox,
        value="",
        label=label,
        info=info,
        max_lines=1,
        interactive=True,
        elem_id=f"train_tools_regularisation_{name}",
        min_width=160,
    )
