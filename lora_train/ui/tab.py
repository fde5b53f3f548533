"""The page as one `gr.Blocks`: a tab inside a WebUI's own, or the whole of the standalone page."""

from __future__ import annotations

import html

import gradio as gr

from lora_train.app import App
from lora_train.app.snapshot import Selection
from lora_train.ui.compat import Updates, make
from lora_train.ui.html import BASE
from lora_train.ui.page import Page, Values
from lora_train.ui.panels.captions import CaptionsPanel
from lora_train.ui.panels.dataset import DatasetPanel
from lora_train.ui.panels.doctor import add_doctor
from lora_train.ui.panels.previews import PreviewsPanel
from lora_train.ui.panels.project import ProjectPanel
from lora_train.ui.panels.regularisation import RegularisationPanel
from lora_train.ui.panels.results import add_results
from lora_train.ui.panels.train import TrainPanel


def build(app: App, *, token: str, localize: bool) -> gr.Blocks:
    """The page. `token` opens our routes to its script; `localize`: the script translates it, as no host does."""
    with gr.Blocks(analytics_enabled=False) as blocks:
        page = Page(app, token)
        with make(gr.Column, elem_id="train_tools_page", elem_classes=["train-tools-page"]):
            make(gr.HTML, value=_app_html(token, localize), elem_classes=["train-tools-hidden"])
            page.add_shown()
            project = ProjectPanel(page)
            page.add_message()
            with make(gr.Column, visible=False) as body:
                dataset = DatasetPanel(page)
                captions = CaptionsPanel(page)
                regularisation = RegularisationPanel(page)
                train = TrainPanel(page)
                add_results(page)
                previews = PreviewsPanel(page)
            add_doctor(page)

        def show_body(selection: Selection) -> Updates:
            return {body: gr.update(visible=bool(selection.version))}

        def load(_: Values) -> Updates:
            return page.fill(app.projects.selection())

        page.add_filler(show_body, body)
        project.bind()
        dataset.bind()
        captions.bind()
        regularisation.bind()
        train.bind()
        previews.bind()
        page.bind_tasks()
        page.save_as_changed()
        page.on(blocks.load, load, [], page.everything())
    for block in blocks.blocks.values():
        block.do_not_save_to_config = True  # pyright: ignore[reportAttributeAccessIssue]  (the host's word)
    return blocks


def _app_html(token: str, localize: bool) -> str:
    return (
        f'<div id="train_tools_app" hidden data-token="{html.escape(token)}" data-base="{BASE}" '
        f'data-localize="{int(localize)}"></div>'
    )
