"""The choice of an optimizer: those that are not installed say so, and mean the same."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("gradio")

import gradio as gr

from lora_train.core.settings import setting_fields
from lora_train.ui import form
from lora_train.ui.form import setting_control
from lora_train.ui.panels.train import OptimizerControl

pytestmark = pytest.mark.compat

FIELD = next(field for field in setting_fields() if field.name == "optimizer")


@pytest.fixture
def control(monkeypatch: pytest.MonkeyPatch) -> OptimizerControl:
    monkeypatch.setattr(form, "is_absent", lambda name: name == "Prodigy")
    app: Any = SimpleNamespace()
    return OptimizerControl("train", FIELD, None, app)


def test_absent_ones_say_so(control: OptimizerControl) -> None:
    labels = control.labels()
    assert len(labels) == len(FIELD.choices)
    assert [label for label in labels if "not installed" in label] == ["Prodigy (not installed)"]


@pytest.mark.parametrize("name", ["AdamW", "Prodigy", "AdamW8bit"])
def test_what_is_shown_means_what_is_saved(control: OptimizerControl, name: str) -> None:
    assert control.shown(name) in control.labels(), "gradio 4 refuses what is no choice"
    assert control.meant(control.shown(name)) == name
    assert control.meant(name) == name, "chosen before the package was taken away"


def test_the_component_takes_the_labels(control: OptimizerControl) -> None:
    """Also when another version is shown, and a package has come in the meantime."""
    with gr.Blocks():
        made = setting_control(FIELD, "train", panel="train", value="AdamW", choices=control.labels())
    shown = [choice if isinstance(choice, str) else choice[0] for choice in made.component.choices]
    assert shown == control.labels()
    update = control.update("Prodigy")
    assert (update["value"], update["choices"]) == ("Prodigy (not installed)", control.labels())
