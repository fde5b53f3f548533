"""Where extensions hook in. What a callback raises is reported, and the next one runs."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

tabs_s = 0.0
"""Processor time that the extensions took to build their tabs: what it costs on a machine with nothing else to do."""

_callbacks: dict[str, list[tuple[str, Callable[..., Any]]]] = {}


def _registrar(category: str) -> Callable[..., None]:
    def register(callback: Callable[..., Any], *, name: str | None = None) -> None:
        file = sys._getframe(1).f_code.co_filename
        _callbacks.setdefault(category, []).append((file, callback))

    return register


on_before_ui = _registrar("before_ui")
on_ui_settings = _registrar("ui_settings")
on_ui_tabs = _registrar("ui_tabs")
on_app_started = _registrar("app_started")
on_before_reload = _registrar("before_reload")
on_script_unloaded = _registrar("script_unloaded")
on_model_loaded = _registrar("model_loaded")


def call(category: str, *args: Any) -> list[Any]:
    """The results of all callbacks of a category, in the order of registration."""
    results = []
    for file, callback in _callbacks.get(category, []):
        try:
            results.append(callback(*args))
        except Exception:
            print(f"*** Error executing callback {category} for {file}")
            traceback.print_exc()
    return results


def ui_tabs() -> list[Any]:
    """All tabs, strung together as they come: whoever returns a bare triple gives three things that are no tabs."""
    global tabs_s
    start, tabs = time.thread_time(), []
    for result in call("ui_tabs"):
        tabs += result or []
    tabs_s = time.thread_time() - start
    return tabs


def clear() -> None:
    _callbacks.clear()
