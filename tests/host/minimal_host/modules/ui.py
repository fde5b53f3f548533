"""The page: txt2img, the tabs of extensions, settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from modules import call_queue, lora, processing, script_callbacks, shared
from modules.ui_config import UiConfig

_COMPONENTS: dict[type, type] = {str: gr.Textbox, int: gr.Number, float: gr.Number, bool: gr.Checkbox}


def create_ui() -> gr.Blocks:
    shared.builds += 1
    shared.reset_options()
    script_callbacks.call("ui_settings")
    lora.list_available_networks()
    txt2img, settings = _txt2img(), _settings()
    tabs = [(txt2img, "txt2img", "txt2img"), *script_callbacks.ui_tabs(), (settings, "Settings", "settings")]
    config = UiConfig(Path(shared.cmd_opts.data_dir, "ui-config.json"))
    for block, _, tab_id in tabs:
        config.add(block, tab_id)
    config.save()
    with gr.Blocks(analytics_enabled=False, title="Minimal WebUI") as demo, gr.Tabs(elem_id="tabs"):
        for block, title, tab_id in tabs:
            with gr.Tab(title, id=tab_id, elem_id=f"tab_{tab_id}"):
                block.render()
    return demo


def _txt2img() -> gr.Blocks:
    def draw(prompt: str, negative_prompt: str, seed: float) -> tuple[Any, str]:
        p = processing.StableDiffusionProcessingTxt2Img(prompt, negative_prompt, int(seed))
        done = processing.process_images(p)
        return done.images, f"<p>{done.info}</p>"

    def refresh() -> str:
        lora.list_available_networks()
        return lora.cards_html()

    with gr.Blocks(analytics_enabled=False) as blocks:
        prompt = gr.Textbox(label="Prompt", lines=3, elem_id="txt2img_prompt")
        negative_prompt = gr.Textbox(label="Negative prompt", lines=1, elem_id="txt2img_neg_prompt")
        seed = gr.Number(label="Seed", value=1, elem_id="txt2img_seed")
        generate = gr.Button("Generate", variant="primary", elem_id="txt2img_generate")
        gallery = gr.Gallery(label="Output", elem_id="txt2img_gallery")
        info = gr.HTML(elem_id="html_info_txt2img")
        call = call_queue.wrap_gradio_gpu_call(draw, extra_outputs=[None])
        generate.click(call, [prompt, negative_prompt, seed], [gallery, info])
        with gr.Accordion("Lora", open=True):
            cards = gr.HTML(lora.cards_html(), elem_id="txt2img_lora_cards")
            for name in ("txt2img_lora_extra_refresh", "txt2img_lora_extra_refresh_internal"):
                button = gr.Button("Refresh", elem_id=name, elem_classes=["hidden"] if "internal" in name else [])
                button.do_not_save_to_config = True
                button.click(refresh, [], [cards])
    return blocks


def _settings() -> gr.Blocks:
    """A setting without a section, or of a type that has no widget, ends the start."""
    keys = list(shared.opts.data_labels)

    def apply(*values: Any) -> str:
        changed = [key for key, value in zip(keys, values, strict=True) if shared.opts.set(key, value)]
        shared.opts.save(shared.config_path())
        return f"{len(changed)} settings changed: {', '.join(changed)}."

    with gr.Blocks(analytics_enabled=False) as blocks:
        submit = gr.Button("Apply settings", variant="primary", elem_id="settings_submit")
        restart = gr.Button("Reload UI", elem_id="settings_restart_gradio")
        result = gr.HTML(elem_id="settings_result")
        widgets = []
        for key, info in shared.opts.data_labels.items():
            section_id, title = info.section[:2]  # None: a TypeError, as in the hosts
            component = info.component or _COMPONENTS[type(info.default)]
            arguments = info.component_args() if callable(info.component_args) else info.component_args or {}
            with gr.Group(elem_id=f"settings_{section_id}_{key}"):
                gr.HTML(f"<h4>{title}</h4>")
                value = getattr(shared.opts, key)
                widgets.append(component(label=info.label, value=value, elem_id=f"setting_{key}", **arguments))
                gr.HTML(info.comment_after)
        submit.click(apply, widgets, [result])
        restart.click(shared.state.request_restart, [], [])
    for widget in (submit, restart, *widgets):
        widget.do_not_save_to_config = True
    return blocks
