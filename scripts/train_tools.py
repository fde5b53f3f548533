"""Train Tools in a WebUI: registers the tab, the settings section and the routes.

The host runs this file again at every "Reload UI". What must outlive that is kept in the package, which stays.
"""

from __future__ import annotations

from typing import Any

from modules import script_callbacks  # the host's

from lora_train.hosts.broken import broken_tab, notice  # needs nothing that may be missing

try:  # here and not later: only while this file is imported is its extension's folder on sys.path
    from lora_train import api
    from lora_train.hosts import forge, webui
    from lora_train.ui import live, tab
except Exception as error:  # whatever it is, the host must start, and the tab say what to do
    reason = error
    script_callbacks.on_ui_tabs(lambda: broken_tab(reason))
else:
    host = webui.the_host(forge.Forge if forge.is_forge() else webui.WebUI)
    webui.find_again(host)

    def build_tab() -> list[tuple[Any, str, str]]:
        import gradio as gr

        try:
            page = tab.build(webui.the_app(host), token=api.TOKEN, localize=False)
        except Exception as error:  # as above
            return broken_tab(error)
        if lacking := notice():
            with gr.Blocks(analytics_enabled=False) as blocks:
                gr.HTML(lacking).do_not_save_to_config = True
                page.render()
            page = blocks
        return [(page, "Train Tools", "train_tools")]

    def start(demo: Any, server: Any) -> None:
        """The page, or the API without a page, is up; after "Reload UI" with a new server."""
        app = webui.the_app(host)
        gate = api.PageGate(webui.api_credentials, lambda: demo is not None)
        api.add_routes(server, app, gate, live.Live(app))
        webui.keep_private(demo, app)
        host.guard_again()
        app.start_background()

    script_callbacks.on_ui_settings(webui.register_settings)
    script_callbacks.on_ui_tabs(build_tab)
    script_callbacks.on_app_started(start)
