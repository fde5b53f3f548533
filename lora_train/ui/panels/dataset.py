"""Step 1: pictures come in, are cropped and captioned, and are looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
import msgspec

from lora_train.app.snapshot import Selection
from lora_train.core.caption_settings import CaptionSettings
from lora_train.core.config import TrainSettings
from lora_train.core.dataset_settings import DatasetSettings
from lora_train.core.errors import ConfigError
from lora_train.core.settings import SettingField, setting_fields
from lora_train.ui.compat import Component, Updates, make, make_upload, uploaded_name, uploaded_path
from lora_train.ui.form import Section, SettingControl, setting_control
from lora_train.ui.page import Page, Values

_SCHEMAS: dict[Section, type[msgspec.Struct]] = {
    "dataset": DatasetSettings,
    "caption": CaptionSettings,
    "train": TrainSettings,
}

_FIRST = (("width_px", "height_px"), ("as_is", "flip"), ("caption_action",))
"""What the tutorial needs, row by row; the number of repetitions stands below."""

_CROPS = {
    "split": (("split_threshold", "split_overlap"),),
    "focal_crop": (("focal_face_weight", "focal_entropy_weight"), ("focal_edges_weight", "focal_debug")),
    "multicrop": (
        ("multicrop_min_side_px", "multicrop_max_side_px"),
        ("multicrop_min_area_px", "multicrop_max_area_px"),
        ("multicrop_objective", "multicrop_threshold"),
    ),
}
"""Ways to crop: the tick that opens the settings below it."""

_CAPTIONERS = (("use_wd14",), ("use_blip", "use_deepbooru"))
_CAPTIONING = (
    (
        "Tags (WD14)",
        ("wd14_threshold", "wd14_character_threshold"),
        ("underscores_to_blanks", "wd14_rating"),
        ("sort_by_score", "max_tags"),
        ("excluded_tags",),
        ("wd14_model",),
    ),
    (
        "Sentences (BLIP)",
        ("blip_prompt", "blip_beams"),
        ("blip_min_length", "blip_max_length"),
        ("blip_model", "device"),
    ),
)
"""How captioners work: a heading, then settings row by row."""

_PATHS = ("wd14_model", "blip_model")


class DatasetPanel:
    """The gallery is a live part; what is dropped on *Upload Dataset* is taken over at once."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self._fields = {
            (section, field.name): field for section, schema in _SCHEMAS.items() for field in setting_fields(schema)
        }
        self.controls: list[SettingControl] = []
        self._opened: dict[SettingControl, Component] = {}
        page.add_heading("1", "Dataset")
        with make(gr.Row, equal_height=False, elem_classes=["train-tools-panel"]):
            with make(gr.Column, scale=3, min_width=320):
                page.add_live("dataset")
                with make(gr.Accordion, label="Health check", open=False, elem_id="train_tools_health"):
                    page.add_live("health", is_folded=True)
            with make(gr.Column, scale=2, min_width=320):
                self._add_form()
        page.add_filler(self._open_ticked, *self._opened.values())

    def _add_form(self) -> None:
        self.upload = make_upload("Upload Dataset", "train_tools_dataset_upload")
        self._add_rows("dataset", _FIRST)
        self._add_rows("train", (("repeats", "aimed_steps"),))
        with make(gr.Accordion, label="Cropping", open=False, elem_classes=["train-tools-group"]):
            _help("What becomes of pictures of another shape; without any of these the middle is kept.")
            for tick, rows in _CROPS.items():
                opener = self._add("dataset", tick)
                with make(gr.Column, visible=False, elem_classes=["train-tools-opened"]) as self._opened[opener]:
                    self._add_rows("dataset", rows)
        with make(gr.Accordion, label="Captioning", open=False, elem_classes=["train-tools-group"]):
            _help("What describes pictures that have no caption. With none ticked the best that is there is taken.")
            self._add_rows("caption", (*_CAPTIONERS, ("policy",)))
            for heading, *rows in _CAPTIONING:
                make(gr.HTML, value=f'<h3 class="train-tools-subheading">{heading}</h3>')
                self._add_rows("caption", rows)
        self.page.add_live("captioning")
        self.update = make(gr.Button, value="Update Dataset", variant="primary", elem_id="train_tools_dataset_update")
        self.page.add_settings("dataset", self.controls)  # below, so that the button stays where it is

    def _add_rows(self, section: Section, rows: Any) -> None:
        for names in rows:
            with make(gr.Row):
                for name in names:
                    self._add(section, name)

    def _add(self, section: Section, name: str) -> SettingControl:
        field: SettingField = self._fields[section, name]
        is_locked = name in _PATHS and not self.page.app.host.takes_paths()
        options = {"interactive": False} if is_locked else {}
        panel = "caption" if section == "caption" else "dataset"
        control = setting_control(field, section, panel=panel, **options)
        self.controls.append(control)
        return control

    def bind(self) -> None:
        page = self.page
        drawn = page.live_parts("dataset", "captioning", "sum")
        page.on_press(self.upload, self._take, [self.upload], {self.upload, *drawn}, trigger=self.upload.upload)
        own = [control.component for control in self.controls]
        page.on_press(self.update, self._update, own, drawn)
        for opener, opened in self._opened.items():
            reveal = _following(opener.component, opened)
            page.on(opener.component.input, reveal, [opener.component], [opened], keeps_message=True)

    def _open_ticked(self, selection: Selection) -> Updates:
        """The settings of the ways to crop that are ticked."""
        if not selection.version:
            return {}
        saved = self.page.app.settings.dataset(selection.project, selection.version)
        return {opened: gr.update(visible=saved[opener.field.name]) for opener, opened in self._opened.items()}

    def _take(self, values: Values) -> Updates:
        selection = self.page.selection(values)
        given = values[self.upload] or []
        files = [(uploaded_name(file), Path(uploaded_path(file))) for file in given]
        problems = self.page.app.datasets.add(selection.project, selection.version, files)
        drawn = self.page.redraw(selection, "dataset", "captioning", "sum")
        message = {self.page.message: self.page.message_html("\n".join(problems), kind="error")} if problems else {}
        return {self.upload: None, **drawn, **message}

    def _update(self, values: Values) -> Updates:
        """What stands on the page is what is done, also where its saving was missed."""
        selection = self.page.selection(values)
        problems = self.page.save(values)
        if problems:
            raise ConfigError(problems)
        app = self.page.app
        is_open = app.captioning.choices(selection.project, selection.version).must_ask
        if is_open and app.datasets.needs_captions(selection.project, selection.version):
            raise ConfigError(["Choose first what is to describe the pictures: the question stands above."])
        app.datasets.start_update(selection.project, selection.version)
        return self.page.redraw(selection, "dataset", "captioning", "sum")


def _help(text: str) -> None:
    make(gr.HTML, value=f'<p class="train-tools-help">{text}</p>')


def _following(tick: Component, opened: Component) -> Any:
    def follow(values: Values) -> Updates:
        return {opened: gr.update(visible=bool(values[tick]))}

    return follow
