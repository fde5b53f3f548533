"""The life of the process: start, serve, "Reload UI", end."""

from __future__ import annotations

import inspect
import threading
import time
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.middleware.gzip import GZipMiddleware

from modules import api, page, script_callbacks, scripts, sd_models, shared, ui
from modules import lora as lora  # takes its place in sys.modules
from modules.shared_cmd_options import cmd_opts


def main() -> None:
    if cmd_opts.run_installers:
        scripts.run_installers()
    shared.opts.load(shared.config_path())
    shared.reset_options()
    sd_models.list_models()
    scripts.load_scripts()
    if not cmd_opts.skip_load_model_at_start:
        threading.Thread(target=lambda: shared.sd_model, daemon=True).start()
    if cmd_opts.nowebui:
        serve_api_alone()
        return
    while True:
        app = serve_page()
        script_callbacks.call("app_started", shared.demo, app)
        _say_ready()
        shared.state.restart.wait()
        shared.state.restart.clear()
        print("Restarting UI...", flush=True)
        time.sleep(0.2)  # the answer to the click gets away
        reload()


def reload() -> None:
    """What "Reload UI" does between the old server and the new one."""
    shared.demo.close()
    script_callbacks.call("before_reload")
    script_callbacks.call("script_unloaded")
    script_callbacks.clear()
    scripts.load_scripts()
    sd_models.list_models()


def serve_page() -> FastAPI:
    script_callbacks.call("before_ui")
    shared.demo = ui.create_ui()
    shared.demo.queue(64)
    pairs = [tuple(pair.split(":", 1)) for pair in cmd_opts.gradio_auth.split(",")] if cmd_opts.gradio_auth else None
    arguments: dict[str, Any] = {
        "server_name": "127.0.0.1",
        "server_port": cmd_opts.port,
        "auth": pairs,
        "prevent_thread_lock": True,
        "allowed_paths": [cmd_opts.data_dir],
        "app_kwargs": {"docs_url": "/docs"},
        "root_path": f"/{cmd_opts.subpath}" if cmd_opts.subpath else "",
        "quiet": True,
        "ssr_mode": False,
    }
    known = inspect.signature(gr.Blocks.launch).parameters
    app, _, _ = shared.demo.launch(**{name: value for name, value in arguments.items() if name in known})
    app.user_middleware = [one for one in app.user_middleware if one.cls.__name__ != "CORSMiddleware"]
    app.middleware_stack = None
    app.add_middleware(page.IntoHead)
    app.add_middleware(GZipMiddleware, minimum_size=1000)
    if cmd_opts.subpath:
        app.add_middleware(page.UnderPath, prefix=f"/{cmd_opts.subpath}")
    api.add_routes(app)
    app.middleware_stack = app.build_middleware_stack()
    return app


def serve_api_alone() -> None:
    app = FastAPI()
    api.add_routes(app)
    script_callbacks.call("before_ui")
    script_callbacks.call("app_started", None, app)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=cmd_opts.port, log_level="warning"))
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.02)
    _say_ready()
    threading.Event().wait()


def _say_ready() -> None:
    path = f"{cmd_opts.subpath}/" if cmd_opts.subpath else ""
    print(f"ready: http://127.0.0.1:{cmd_opts.port}/{path}", flush=True)
