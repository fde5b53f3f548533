"""The tab that stands in for ours when it can't be shown: what happened, and how to mend it.

Nothing of ours is imported but `packages`, and nothing of others but gradio, which every WebUI has.
"""

from __future__ import annotations

import html
import sys
import traceback
from typing import Any

from lora_train.core import packages

OLDEST_PYTHON = (3, 10)


def what_to_do(error: BaseException) -> tuple[str, str, str]:
    """What happened, what to do, and the command that does it ("" where there is none)."""
    if sys.version_info < OLDEST_PYTHON:
        return (
            f"This WebUI runs on Python {sys.version.split()[0]}; Train Tools needs Python 3.10 or newer.",
            "Install the WebUI again with Python 3.10.",
            "",
        )
    name = (getattr(error, "name", None) or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    missing = [other for other in packages.ADDED if other in (name, *packages.not_found())]
    if missing:
        plural = "packages that it needs are" if len(missing) > 1 else "a package that it needs is"
        return (
            f"Train Tools can't start: {plural} not installed ({', '.join(missing)}).",
            "Close the WebUI, run this command, and start the WebUI again.",
            packages.pip_command(missing),
        )
    hint = getattr(error, "hint", "")
    if hint:
        return f"Train Tools can't start: {error}", hint, ""
    return (
        f"Train Tools can't start: {type(error).__name__}: {error}",
        "Update the extension (Extensions, Check for updates) and start the WebUI again. If that doesn't help, "
        "report it with the details below.",
        "",
    )


def notice() -> str:
    """HTML that tells above the tab what training itself still lacks; empty where nothing does.

    What is broken, and not only missing, is known from the last start's `install.py`.
    """
    verdict = dict.fromkeys(packages.not_found(), "missing") or packages.read_verdict() or {}
    if not verdict:
        return ""
    return _panel("Training can't start yet.", " ".join(packages.advice(verdict)), "")


def broken_tab(error: BaseException) -> list[tuple[Any, str, str]]:
    """The host's triple for a tab that tells what is wrong."""
    import gradio as gr

    traceback.print_exception(type(error), error, error.__traceback__)
    details = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    content = _panel(*what_to_do(error)) + (
        f'<details><summary>Details</summary><pre style="overflow-x: auto">{html.escape(details)}</pre></details>'
    )
    with gr.Blocks(analytics_enabled=False) as blocks:
        part = gr.HTML(content, elem_id="train_tools_broken")
    part.do_not_save_to_config = True  # type: ignore[attr-defined]  (read by the host, ui-config.json)
    return [(blocks, "Train Tools", "train_tools")]


def _panel(what: str, hint: str, command: str) -> str:
    lines = [f"<p><strong>{html.escape(what)}</strong></p>", f"<p>{html.escape(hint)}</p>"]
    if command:
        lines.append(f'<pre style="user-select: all; overflow-x: auto">{html.escape(command)}</pre>')
    return f'<div class="train-tools-broken" role="alert">{"".join(lines)}</div>'
