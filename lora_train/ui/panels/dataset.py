"""Step 1: pictures come in, are cropped and captioned, and are looked at."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

from lora_train.core.config import TrainSettings
from lora_train.core.dataset_settings import DatasetSettings
from lora_train.core.errors import ConfigError
from lora_train.core.settings import setting_fields
from lora_train.ui.compat import Updates, make, uploaded_name, uploaded_path
from lora_train.ui.form import setting_control
from lora_train.ui.page import Page, Values


class DatasetPanel:
    """The gallery is a live part; what is dropped on *Upload Dataset* is taken over at once."""

    def __init__(self, page: Page) -> None:
        self.page = page
        page.add_heading("1", "Dataset")
        with make(gr.Row, equal_height=False, elem_classes=["train-tools-panel"]):
            with make(gr.Column, scale=3, min_width=320):
                page.add_live("dataset")
            with make(gr.Column, scale=2, min_width=320):
                self.upload = make(
                    gr.File, label="Upload Dataset", file_count="multiple", elem_id="train_tools_dataset_upload"
                )
                fields = {field.name: field for field in setting_fields(DatasetSettings)}
                with make(gr.Row):
                    sizes = [setting_control(fields.pop(name), "dataset", panel="dataset") for name in _SIZES]
                others = [setting_control(field, "dataset", panel="dataset") for field in fields.values()]
                repeats = next(field for field in setting_fields(TrainSettings) if field.name == "repeats")
                self.controls = [*sizes, *others, setting_control(repeats, "train", panel="dataset")]
                self.update = make(
                    gr.Button, value="Update Dataset", variant="primary", elem_id="train_tools_dataset_update"
                )
                page.add_settings("dataset", self.controls)  # below, so that the button stays where it is

    def bind(self) -> None:
        page = self.page
        page.on(self.upload.upload, self._take, [self.upload], {self.upload, *page.live_parts("dataset", "sum")})
        own = [control.component for control in self.controls]
        page.on(self.update.click, self._update, own, page.live_parts("dataset", "sum"))

    def _take(self, values: Values) -> Updates:
        selection = self.page.selection(values)
        given = values[self.upload] or []
        files = [(uploaded_name(file), Path(uploaded_path(file))) for file in given]
        problems = self.page.app.datasets.add(selection.project, selection.version, files)
        drawn = self.page.redraw(selection, "dataset", "sum")
        message = {self.page.message: self.page.message_html("\n".join(problems), kind="error")} if problems else {}
        return {self.upload: None, **drawn, **message}

    def _update(self, values: Values) -> Updates:
        """What stands on the page is what is done, also where its saving was missed."""
        selection = self.page.selection(values)
        problems = self.page.save(values)
        if problems:
            raise ConfigError(problems)
        self.page.app.datasets.start_update(selection.project, selection.version)
        return self.page.redraw(selection, "dataset", "sum")


_SIZES = ("width_px", "height_px")
