"""The page on its own: `lora-train ui`, on whatever gradio is installed, with folders instead of a WebUI."""

from __future__ import annotations

import inspect
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_train.core.assets import page_folder
from lora_train.core.errors import ConfigError, JobError, TrainToolsError
from lora_train.core.heap import collect_less_garbage, keep_one_heap
from lora_train.core.host import BaseModelChoice, NoHost

if TYPE_CHECKING:
    from lora_train.app import App

LOCAL_HOSTS = ("127.0.0.1", "localhost")

_LAST_PORT = 65535
_SUFFIXES = (".safetensors", ".ckpt")
_FILE_BY_PATH = re.compile(r"(/gradio_api)?/(file[=/]|proxy=)")
"""Addresses of gradio's own routes that hand out what the caller names."""
_LOAD_SCRIPT = """() => {
    const load = () => {
        const script = document.createElement("script");
        script.src = "./train-tools/v1/page.js";
        script.dataset.trainTools = "";
        script.onerror = () => { script.remove(); setTimeout(load, 1000); };
        document.head.append(script);
    };
    if (!document.querySelector("script[data-train-tools]")) load();
}"""
"""The routes come a moment after the page: until then it is tried again."""


class Standalone(NoHost):
    """A host of two folders: checkpoints are looked for below one, LoRAs are published to the other."""

    name = "standalone"

    def __init__(self, *, models: Path | None, lora_dir: Path | None, is_local: bool) -> None:
        self._models = models
        self._lora_dir = lora_dir
        self._is_local = is_local
        self._found: list[BaseModelChoice] = []
        self.refresh_base_models()

    def base_models(self) -> list[BaseModelChoice]:
        return self._found

    def refresh_base_models(self) -> None:
        """Names are paths below the folder, so that no two are the same."""
        folder = self._models
        if folder is None:
            return
        paths = sorted(path for path in _files_below(folder) if _is_checkpoint(path))
        self._found = [BaseModelChoice(path.relative_to(folder).as_posix(), str(path.absolute())) for path in paths]

    def lora_dir(self) -> Path | None:
        return self._lora_dir

    def lora_root(self) -> Path | None:
        return self._lora_dir

    def auto_publish(self) -> bool:
        return self._lora_dir is not None

    def refresh_loras(self) -> None:
        pass

    def takes_paths(self) -> bool:
        return self._is_local

    def is_waiting_for_picture(self) -> bool:
        return False

    def parked(self, device: str) -> AbstractContextManager[None]:  # noqa: ARG002  (nothing to park)
        return nullcontext()


def _files_below(folder: Path) -> Iterator[Path]:
    """Links to folders are followed, each folder once; what can't be read is left out."""
    known: set[str] = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(root)) in known:
            folders.clear()
            continue
        known.add(real)
        yield from (Path(root, file) for file in files)


def _is_checkpoint(path: Path) -> bool:
    name = path.name.lower()
    is_vae = any(name.endswith(f".vae{suffix}") for suffix in _SUFFIXES)
    return path.suffix.lower() in _SUFFIXES and not is_vae and path.is_file()


def serve(app: App, *, port: int, share: bool, auth: tuple[str, str] | None, host: str) -> None:
    """Show the page until Ctrl+C.

    Raises TrainToolsError without gradio, ConfigError for a port that can't be, JobError for one that is taken.
    """
    if not 1 <= port <= _LAST_PORT:
        raise ConfigError([f"--port: {port} is not a whole number from 1 to {_LAST_PORT}"])
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio  # noqa: F401  (asked for here, with a sentence, before anything else needs it)
    except ImportError as error:
        raise TrainToolsError(
            f"The page needs gradio: {error}.", f'Install it with: "{sys.executable}" -m pip install gradio'
        ) from None
    keep_one_heap()
    page, address = _open(app, port=port, share=share, auth=auth, host=host)
    app.start_background()
    collect_less_garbage()
    print(f"Train Tools: {address}\nCtrl+C closes the page; trainings go on without it.", flush=True)  # noqa: T201
    try:
        while True:
            time.sleep(1)  # an endless wait could not be interrupted on Windows
    except KeyboardInterrupt:
        print("Closed. A training that runs goes on; open the page again to see it.", flush=True)  # noqa: T201
    finally:
        app.stop_background()
        page.close(verbose=False)


def _open(app: App, *, port: int, share: bool, auth: tuple[str, str] | None, host: str) -> tuple[Any, str]:
    """Start the server in threads of its own; returns the page and its address."""
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from lora_train import api
    from lora_train.data.archives import LARGEST_TOTAL_BYTES
    from lora_train.ui.live import Live

    page, launch_look = _page(app)
    guards = [Middleware(_Guard)]
    if auth is None:  # a site whose name is made to lead here (DNS rebinding) must not pass for this one
        guards.append(Middleware(TrustedHostMiddleware, allowed_hosts=LOCAL_HOSTS))
    options = {
        "server_name": f"[{host}]" if ":" in host else host,  # IPv6, as addresses write it
        "server_port": port,
        "share": share,
        "auth": auth,
        "prevent_thread_lock": True,
        "quiet": True,
        "show_api": False,
        "footer_links": [],
        "ssr_mode": False,
        "enable_monitoring": False,
        "max_file_size": LARGEST_TOTAL_BYTES,  # of one upload; gradio 3 has no such limit
        "app_kwargs": {"middleware": guards},
        **launch_look,
    }
    known = inspect.signature(page.launch).parameters
    try:
        server, local_url, share_url = page.launch(**{key: value for key, value in options.items() if key in known})
    except OSError:
        raise JobError(
            f"The page could not be opened on {host}, port {port}: another program uses the port, or the address is "
            "none of this machine's.",
            "Choose another --port or --host.",
        ) from None
    _close_to_other_sites(server)
    pairs = [auth] if auth else []
    api.add_routes(server, app, api.PageGate(lambda: pairs, lambda: True), Live(app))
    return page, share_url or local_url


class _Guard:
    """Closes what gradio's own routes leave open.

    It hands out files by their paths: 3.41 all those of the folder that the page was started in, and, with `..`, of the
    whole machine. The page shows what it shows by our own routes. And it takes uploads and calls that a page of another
    site has the browser send: browsers say so in `Sec-Fetch-Site` (W3C, Fetch Metadata).
    """

    def __init__(self, app: Any) -> None:
        self._next = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from starlette.responses import PlainTextResponse
        from starlette.websockets import WebSocketClose

        if scope["type"] == "http" and _FILE_BY_PATH.match(scope["path"]) is not None:
            await PlainTextResponse("Not Found", 404)(scope, receive, send)
        elif _is_of_another_site(scope):
            # Before it is accepted, the end of a WebSocket is an answer of 403 too.
            refusal = PlainTextResponse("Forbidden", 403) if scope["type"] == "http" else WebSocketClose()
            await refusal(scope, receive, send)
        else:
            await self._next(scope, receive, send)


def _is_of_another_site(scope: Any) -> bool:
    """Whether a page of another site is behind a call that may change something; no browser is behind one that says
    nothing of its site.
    """
    if scope["type"] != "websocket" and scope.get("method") in (None, "GET", "HEAD", "OPTIONS"):
        return False
    site = dict(scope["headers"]).get(b"sec-fetch-site", b"none")
    return site not in (b"same-origin", b"none")


def _close_to_other_sites(server: Any) -> None:
    """gradio lets scripts of other sites read the page, and with it the token: 3.41 those of every site."""
    server.user_middleware = [one for one in server.user_middleware if not one.cls.__name__.endswith("CORSMiddleware")]
    server.middleware_stack = server.build_middleware_stack()


def _page(app: App) -> tuple[Any, dict[str, Any]]:
    """The tab inside a page of its own, and what `launch` is told of its looks (gradio 6; before, `Blocks` was)."""
    import gradio as gr

    from lora_train import api
    from lora_train.ui import compat, tab

    fonts: dict[str, Any] = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    look: dict[str, Any] = {"theme": gr.themes.Default(**fonts)}  # the theme's own fonts would come from Google
    is_launched_with = "theme" in inspect.signature(gr.Blocks.launch).parameters
    inner = tab.build(app, token=api.TOKEN, localize=True)
    with gr.Blocks(title="Train Tools", analytics_enabled=False, **({} if is_launched_with else look)) as page:
        style = f"<style>{(page_folder() / 'style.css').read_text(encoding='utf-8')}</style>"
        compat.make(gr.HTML, value=style, elem_classes=["train-tools-hidden"])
        inner.render()
        compat.on(page.load, None, js=_LOAD_SCRIPT)
    return page, look if is_launched_with else {}
