"""Below *Begin Train*: lists of values whose combinations are trained one after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr

from lora_train.core.errors import ConfigError
from lora_train.core.settings import SettingField, setting_fields
from lora_train.core.sweep_settings import SweepSettings
from lora_train.ui.compat import Updates, make
from lora_train.ui.form import SettingControl, label_of, labels, optimizer_label, setting_control
from lora_train.ui.page import Page, Values

_HELP = (
    "Every combination of these values becomes a run of its own, with the settings above for everything else; an empty "
    "list keeps the setting above."
)
_ROWS = (
    ("learning_rates", "optimizers"),
    ("ranks", "alphas"),
    ("batch_sizes", "clip_skips"),
    ("presets",),
    ("base_models",),
    ("finish_by", "judge"),
)


@dataclass(frozen=True, eq=False)
class SeveralControl(SettingControl):
    """A choice of several: names are shown, `offered` has what is saved for each."""

    offered: Callable[[], dict[str, str]]

    def update(self, value: Any) -> Any:
        shown = self.shown(value)
        names = list(self.offered())
        names += [name for name in shown if name not in names]  # gradio 4 refuses what is no choice
        return gr.update(choices=names, value=shown)

    def shown(self, value: Any) -> list[str]:
        offered = self.offered()
        return [label_of(offered, str(one)) or str(one) for one in value]

    def meant(self, given: Any) -> list[str]:
        offered = self.offered()
        return [offered.get(str(name), str(name)) for name in given or ()]


class SweepPanel:
    def __init__(self, page: Page) -> None:
        self.page = page
        self._fields = {field.name: field for field in setting_fields(SweepSettings)}
        with make(gr.Accordion, label="Sweep", open=False, elem_classes=["train-tools-group"]):
            make(gr.HTML, value=f'<p class="train-tools-help">{_HELP}</p>')
            controls: list[SettingControl] = []
            for names in _ROWS:
                with make(gr.Row):
                    controls += [self._control(self._fields[name]) for name in names]
            page.add_settings("sweep", controls)
            page.add_live("sweep_sum", is_folded=True)
            self.begin = make(gr.Button, value="Begin sweep", elem_id="train_tools_sweep_begin")

    def bind(self) -> None:
        drawn = self.page.live_parts("sweep_sum", "sweeps", "progress", "queue", "results")
        self.page.on_press(self.begin, self._begin, self.page.controls(), drawn)

    def _control(self, field: SettingField) -> SettingControl:
        app = self.page.app
        offers: dict[str, Callable[[], dict[str, str]]] = {
            "optimizers": lambda: {optimizer_label(name): name for name in field.choices},
            "presets": lambda: {entry.name: entry.name for entry in app.presets.list() if not entry.problem},
            "base_models": lambda: labels((choice.name, choice.path) for choice in app.base_models.offered()),
        }
        if field.name not in offers:
            return setting_control(field, "sweep", panel="sweep")
        offered = offers[field.name]
        made = setting_control(field, "sweep", panel="sweep", value=[], choices=list(offered()), multiselect=True)
        return SeveralControl("sweep", field, made.component, offered)

    def _begin(self, values: Values) -> Updates:
        """What stands on the page is what is trained, also where its saving was missed."""
        selection = self.page.selection(values)
        problems = self.page.save(values)
        if problems:
            raise ConfigError(problems)
        self.page.app.sweeps.begin(selection.project, selection.version)
        return self.page.redraw(selection, "sweep_sum", "sweeps", "progress", "queue", "results")
