"""Previews of finished LoRAs: what is drawn with each, by lists of values, and the grids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from lora_train.app import App
from lora_train.core.errors import ConfigError
from lora_train.core.grid_settings import GridSettings
from lora_train.core.settings import setting_fields
from lora_train.ui.compat import Updates, make
from lora_train.ui.form import SettingControl, setting_control
from lora_train.ui.page import Page, Values

ROWS = (
    ("prompt",),
    ("negative_prompt",),
    ("width_px", "height_px"),
    ("batch_count", "batch_size"),
    ("samplers", "steps"),
    ("cfg_scales", "seeds"),
    ("weights", "drawn_by"),
    ("include_sub_pictures", "delete_before"),
)
_HELP = (
    "Pictures of every LoRA with the same seeds, to choose the best file and weight. Every list with more than one "
    "value becomes an axis of the grid."
)
_DELETE_HELP = "Deleting moves the grids to the trash; the previews that trainings drew themselves stay."


@dataclass(frozen=True, eq=False)
class SamplersControl(SettingControl):
    """Some of the samplers; one that is no choice any more stays chosen, and the sum says that it is unknown."""

    app: App

    def update(self, value: Any) -> Any:
        return gr.update(choices=[*dict.fromkeys((*self.app.grids.samplers(), *value))], value=self.shown(value))

    def shown(self, value: Any) -> Any:
        return [*value]


class PreviewsPanel:
    def __init__(self, page: Page) -> None:
        self.page = page
        self._fields = {field.name: field for field in setting_fields(GridSettings)}
        with make(gr.Accordion, label="Previews of all LoRAs", open=False, elem_id="train_tools_previews"):
            make(gr.HTML, value=f'<p class="train-tools-help">{_HELP}</p>')
            with make(gr.Row, equal_height=False, elem_classes=["train-tools-panel"]):
                with make(gr.Column, scale=3, min_width=320):
                    controls: list[SettingControl] = []
                    for names in ROWS:
                        with make(gr.Row):
                            controls += [self._control(name) for name in names]
                with make(gr.Column, scale=2, min_width=320):
                    page.add_settings("preview", controls)
                    page.add_live("grids_sum", is_folded=True)
                    self.generate = make(
                        gr.Button,
                        value="Generate all checkpoint preview",
                        variant="primary",
                        elem_id="train_tools_preview_generate_all",
                    )
                    self.delete = make(
                        gr.Button, value="Delete all preview image", elem_id="train_tools_preview_delete_all"
                    )
                    make(gr.HTML, value=f'<p class="train-tools-help">{_DELETE_HELP}</p>')
            page.add_live("grids", is_folded=True)
        self._controls = [control.component for control in controls]

    def _control(self, name: str) -> SettingControl:
        field, app = self._fields[name], self.page.app
        if name == "samplers":
            options = {"choices": app.grids.samplers(), "value": [*field.default], "multiselect": True}
            made = setting_control(field, "preview", panel="preview", **options)
            return SamplersControl("preview", field, made.component, app)
        options: dict[str, Any] = {"lines": 3, "max_lines": 8} if name.endswith("prompt") else {}
        if name == "drawn_by":
            options["visible"] = bool(app.host.samplers())
        return setting_control(field, "preview", panel="preview", **options)

    def bind(self) -> None:
        page = self.page
        drawn = page.live_parts("grids", "grids_sum", "queue")
        page.on_press(self.generate, self._generate, self._controls, drawn)
        page.on_press(self.delete, self._delete, [], drawn)

    def _generate(self, values: Values) -> Updates:
        """What stands on the page is what is drawn, also where its saving was missed."""
        shown = self.page.selection(values)
        if problems := self.page.save(values):
            raise ConfigError(problems)
        self.page.app.grids.begin_all(shown.project, shown.version)
        return self.page.redraw(shown, "grids", "grids_sum", "queue")

    def _delete(self, values: Values) -> Updates:
        shown = self.page.selection(values)
        undo = self.page.app.grids.delete_all(shown.project, shown.version)
        return {self.page.message: self.page.undo_html(undo), **self.page.redraw(shown, "grids", "grids_sum", "queue")}
