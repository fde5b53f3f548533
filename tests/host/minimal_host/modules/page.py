"""Puts scripts, styles and the chosen language into the page, whatever gradio made it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from modules import paths, scripts, shared

ASSETS = "minimal-host/asset"


def assets() -> list[Path]:
    """What the page takes from extensions, after the host's own script."""
    own = Path(paths.script_path, "host.js")
    styles = [root / "style.css" for root in scripts.extensions() if (root / "style.css").is_file()]
    return [own, *scripts.extension_files("javascript", ".js"), *styles]


def _head() -> bytes:
    words: dict[str, str] = {}
    language = shared.opts.localization
    for file in scripts.extension_files("localizations", ".json"):
        if file.stem == language:
            words |= json.loads(file.read_text(encoding="utf-8"))
    settings = {key: getattr(shared.opts, key) for key in shared.opts.data_labels}
    text = json.dumps({"localization": words, "opts": settings}, ensure_ascii=False).replace("<", "\\u003c")
    tags = [f"<script>Object.assign(window, {text});</script>"]
    for number, file in enumerate(assets()):
        url = f"{ASSETS}/{number}?{file.stat().st_mtime_ns}"
        is_style = file.suffix == ".css"
        tags.append(f'<link rel="stylesheet" href="{url}">' if is_style else f'<script src="{url}"></script>')
    return "".join(tags).encode("utf-8")


class IntoHead:
    """An ASGI middleware: the front page gets our tags at the end of its head."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"] != "/":
            await self._app(scope, receive, send)
            return
        plain = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
        start: dict[str, Any] = {}
        body = b""

        async def collect(message: Any) -> None:
            nonlocal body
            if message["type"] == "http.response.start":
                start.update(message)
                return
            body += message.get("body", b"")
            if message.get("more_body"):
                return
            if b"</head>" in body:
                body = body.replace(b"</head>", _head() + b"</head>", 1)
            headers = [(name, value) for name, value in start["headers"] if name != b"content-length"]
            start["headers"] = [*headers, (b"content-length", str(len(body)).encode())]
            await send(start)
            await send({"type": "http.response.body", "body": body})

        await self._app({**scope, "headers": plain}, receive, collect)


class UnderPath:
    """What a reverse proxy does for `--subpath`: only addresses below it exist, and the app doesn't see it."""

    def __init__(self, app: Any, prefix: str) -> None:
        self._app = app
        self._prefix = prefix

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] in ("http", "websocket"):
            path = scope["path"]
            if path.startswith(f"{self._prefix}/"):
                path = path[len(self._prefix) :]
                scope = {**scope, "path": path, "raw_path": path.encode("utf-8")}
        await self._app(scope, receive, send)
