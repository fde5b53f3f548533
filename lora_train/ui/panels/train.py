"""Step 2: the settings of a training, what they amount to, and how it goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from lora_train.app import App
from lora_train.core.config import TrainSettings
from lora_train.core.errors import ConfigError
from lora_train.core.settings import SettingField, setting_fields
from lora_train.ui.compat import Updates, make
from lora_train.ui.form import (
    ABSENT,
    SettingControl,
    label_of,
    labels,
    optimizer_label,
    refresh_button,
    setting_control,
)
from lora_train.ui.page import Page, Values
from lora_train.ui.panels.presets import PresetPanel
from lora_train.ui.panels.sweep import SweepPanel

FIRST = (
    ("clip_skip", "save_every_epochs"),
    ("batch_size", "epochs"),
    ("learning_rate", "optimizer"),
    ("rank", "alpha"),
    ("generate_previews",),
)
"""What the tutorial needs, row by row, below the base model."""

GROUPS = (
    (
        "Learning rate and optimizer",
        "How fast it learns, and how that changes over the run.",
        (
            *(("train_text_encoder", "text_encoder_lr"), ("train_sdxl_text_encoders",)),
            *(("lr_scheduler", "lr_cycles"), ("lr_warmup_steps", "gradient_accumulation_steps")),
            *(("max_grad_norm", "weight_decay"), ("ema_decay",), ("optimizer_args",), ("sd_script_args",)),
        ),
    ),
    (
        "Network",
        "How much the LoRA can hold, and in which parts of the model.",
        (
            *(("continue_from",), ("conv_rank", "conv_alpha"), ("input_rank", "input_alpha")),
            *(("middle_rank", "middle_alpha"), ("output_rank", "output_alpha")),
            ("text_encoder_rank", "text_encoder_alpha"),
            *(("network_dropout", "rank_dropout"), ("module_dropout", "scale_weight_norms")),
        ),
    ),
    (
        "Captions",
        "How captions are read, and which of their tags are learned.",
        (
            *(("trigger_word", "prune_common_tags"), ("shuffle_captions", "keep_tags")),
            ("caption_dropout", "max_tokens"),
        ),
    ),
    (
        "Loss and noise",
        "What training pays attention to: large shapes or details, brightness, odd pictures, masks.",
        (
            *(("min_snr_gamma", "debiased_estimation"), ("masked_loss", "prior_loss_weight")),
            *(("loss",), ("huber_schedule", "huber_c")),
            *(("noise_offset", "seed"), ("multires_noise_iterations", "multires_noise_discount")),
            *(("min_timestep", "max_timestep"), ("timestep_sampling",), ("logit_mean", "logit_std")),
            ("prediction", "zero_terminal_snr"),
        ),
    ),
    (
        "Resolution and memory",
        "For other picture sizes, for small cards, and for training without one.",
        (
            *(("resolution", "bucket_step_px"), ("upscale_limit", "flip")),
            *(("fit_to_gpu",), ("gradient_checkpointing", "precision"), ("base_weights", "offload_share")),
            *(("cuda_graphs", "compile_blocks"), ("device", "cpu_threads"), ("vae",)),
        ),
    ),
    (
        "Validation",
        "Pictures that are not trained show whether the training still learns, or only learns by heart.",
        (("hold_out",), ("validate_every_steps", "early_stopping_patience")),
    ),
    (
        "Previews",
        "Pictures that are drawn with every saved LoRA, to choose the best by eye.",
        (
            *(("preview_prompts",), ("preview_negative_prompt",), ("preview_weights", "preview_sampler")),
            *(("preview_steps", "preview_cfg_scale"), ("preview_seed", "preview_size_px")),
            ("judge_when_finished", "judge_encoder"),
        ),
    ),
    (
        "Output",
        "What the LoRA file holds, and how often work in progress is kept.",
        (("private_use", "private_metadata"), ("save_precision", "state_every_s")),
    ),
)
"""The rest, in closed accordions: title, one line of help, settings row by row, those together that depend on each
other. `repeats` and the steps aimed at stand in the dataset panel.
"""


_PATHS = ("vae", "judge_encoder")
"""Typed by hand, which only people at the machine itself may do."""


@dataclass(frozen=True, eq=False)
class BaseModelControl(SettingControl):
    """The choice of a checkpoint: names are shown, paths are saved."""

    app: App

    def update(self, value: str) -> Any:
        names, shown = list(self._labels()), self.shown(value)
        if shown is not None and shown not in names:  # gradio 4 refuses what is no choice
            names.append(shown)
        return gr.update(choices=names, value=shown)

    def shown(self, value: str) -> str | None:
        return (label_of(self._labels(), value) or value) if value else None

    def meant(self, given: Any) -> str:
        """The path; a text that is no choice is a path itself, where the host lets people name files."""
        path = self._labels().get(given or "", "")
        return path or (str(given or "").strip() if self.app.host.takes_paths() else "")

    def _labels(self) -> dict[str, str]:
        return labels((choice.name, choice.path) for choice in self.app.base_models.offered())


@dataclass(frozen=True, eq=False)
class OptimizerControl(SettingControl):
    """The choice of an optimizer, by `optimizer_label`."""

    app: App

    def labels(self) -> list[str]:
        return [self.shown(name) for name in self.field.choices]

    def update(self, value: Any) -> Any:
        return gr.update(choices=self.labels(), value=self.shown(value))

    def shown(self, value: Any) -> str:
        return optimizer_label(value)

    def meant(self, given: Any) -> Any:
        return str(given or "").removesuffix(ABSENT)


class TrainPanel:
    def __init__(self, page: Page) -> None:
        self.page = page
        self._fields = {field.name: field for field in setting_fields(TrainSettings)}
        page.add_heading("2", "Train")
        with make(gr.Row, equal_height=False, elem_classes=["train-tools-panel"]):
            with make(gr.Column, scale=3, min_width=320):
                controls = self._add_form()
            with make(gr.Column, scale=2, min_width=320):
                page.add_live("model")
                page.add_settings("train", controls)  # above the sum, which stands for what was right last
                page.add_live("sum")
                self.begin = make(gr.Button, value="Begin Train", variant="primary", elem_id="train_tools_train_begin")
                self.sweep = SweepPanel(page)
                page.add_live("progress")
                page.add_live("queue")

    def _add_form(self) -> list[SettingControl]:
        self.presets = PresetPanel(self.page)
        with make(gr.Row, elem_classes=["train-tools-with-tool"]):
            self.base_model = self._base_model()
            self.base_model_refresh = refresh_button("train_base_model")
        controls: list[SettingControl] = [self.base_model]
        for names in FIRST:
            controls += self._row(names)
            if "optimizer" in names:
                self.page.add_live("optimizers")
        for title, help_, rows in GROUPS:
            with make(gr.Accordion, label=title, open=False, elem_classes=["train-tools-group"]):
                make(gr.HTML, value=f'<p class="train-tools-help">{help_}</p>')
                for names in rows:
                    controls += self._row(names)
        self.presets.add_own()
        return controls

    def _row(self, names: tuple[str, ...]) -> list[SettingControl]:
        with make(gr.Row):
            return [self._control(name) for name in names]

    def _control(self, name: str) -> SettingControl:
        if name == "optimizer":
            return self._optimizer()
        takes_paths = self.page.app.host.takes_paths()
        options = {"interactive": False} if name in _PATHS and not takes_paths else {}
        return setting_control(self._fields[name], "train", panel="train", **options)

    def _optimizer(self) -> OptimizerControl:
        field, app = self._fields["optimizer"], self.page.app
        control = OptimizerControl("train", field, None, app)
        value, choices = control.shown(field.default), control.labels()
        made = setting_control(field, "train", panel="train", value=value, choices=choices)
        return OptimizerControl("train", field, made.component, app)

    def _base_model(self) -> BaseModelControl:
        field: SettingField = self._fields["base_model"]
        app = self.page.app
        control = setting_control(
            field,
            "train",
            panel="train",
            value=None,
            choices=[choice.name for choice in app.base_models.offered()],
            allow_custom_value=app.host.takes_paths(),
            scale=8,
        )
        return BaseModelControl("train", field, control.component, app)

    def bind(self) -> None:
        page = self.page
        listed = {self.base_model.component, *page.live_parts("model", "sum", "preset")}
        page.on(self.base_model_refresh.click, self._refresh_models, [], listed)
        self.presets.bind()
        drawn = page.live_parts("sum", "model", "progress", "queue", "results")
        page.on_press(self.begin, self._begin, page.controls(), drawn)
        self.sweep.bind()

    def _refresh_models(self, values: Values) -> Updates:
        app, selection = self.page.app, self.page.selection(values)
        app.host.refresh_base_models()
        saved = app.settings.train(selection.project, selection.version)["base_model"]
        return {
            self.base_model.component: self.base_model.update(saved),
            **self.page.redraw(selection, "model", "sum", "preset"),
        }

    def _begin(self, values: Values) -> Updates:
        """What stands on the page is what is trained, also where its saving was missed."""
        selection = self.page.selection(values)
        problems = self.page.save(values)
        if problems:
            raise ConfigError(problems)
        self.page.app.training.begin(selection.project, selection.version)
        return self.page.redraw(selection, "sum", "model", "progress", "queue", "results")
