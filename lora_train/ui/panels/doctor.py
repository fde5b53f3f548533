"""The last of the page: whether the installation works."""

from __future__ import annotations

import gradio as gr

from lora_train.ui.compat import make
from lora_train.ui.page import Page


def add_doctor(page: Page) -> None:
    with make(gr.Accordion, label="Installation", open=False, elem_id="train_tools_doctor"):
        page.add_live("doctor", is_folded=True)
