"""What the page's script polls: the live parts of the page as HTML, those alone that it does not show yet."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from lora_train.app.snapshot import Forecast, Selection
from lora_train.core.errors import ConfigError, TrainToolsError
from lora_train.ui import view
from lora_train.ui.chart import SMOOTHING

if TYPE_CHECKING:
    from lora_train.app import App


def live(app: App, query: Mapping[str, str]) -> dict[str, Any]:
    """The live parts for the project, version and train of `query`, by name.

    `query["parts"]` lists those that are in sight, with commas; without it all are made. `query["seen"]` lists the
    marks of the parts that the page shows already; those that are still the same are left out. `query["token"]` goes
    into the addresses of pictures.
    """
    token = query.get("token", "")
    snapshot = app.snapshot(query.get("project", ""), query.get("version", ""), query.get("train", ""))
    makers: dict[str, Callable[[], str]] = {
        "dataset": lambda: view.dataset_html(snapshot, token),
        "sum": lambda: view.sum_html(_forecast(app, snapshot.selection)),
        "progress": lambda: view.progress_html(snapshot, _smoothing(query), token),
        "queue": lambda: view.queue_html(snapshot),
        "results": lambda: view.results_html(snapshot, token),
    }
    wanted = query["parts"].split(",") if query.get("parts") else list(makers)
    everything = {name: make() for name, make in makers.items() if name in wanted}
    marks = {name: mark(name, html) for name, html in everything.items()}
    seen = set(query.get("seen", "").split(","))
    update = snapshot.dataset.update
    return {
        "fragments": {name: html for name, html in everything.items() if marks[name] not in seen},
        "marks": marks,
        "busy": bool(snapshot.queue) or (update is not None and update.state in ("waiting", "running")),
        "loras_revision": snapshot.loras_revision,
        "selection": msgspec.to_builtins(snapshot.selection),
    }


def mark(name: str, html: str) -> str:
    """A short text that changes with the content of the part `name`."""
    return f"{name}-{hashlib.sha1(html.encode('utf-8'), usedforsecurity=False).hexdigest()[:12]}"


def _forecast(app: App, selection: Selection) -> Forecast:
    if not selection.version:
        return Forecast()
    try:
        return app.training.forecast(selection.project, selection.version)
    except ConfigError as error:
        return Forecast(problems=error.problems)
    except TrainToolsError as error:
        return Forecast(problems=[f"{error.message}\n{error.hint}"])


def _smoothing(query: Mapping[str, str]) -> float:
    """What the person chose; anything else than a number from 0 up to 1 is the default."""
    try:
        smoothing = float(query.get("smoothing", ""))
    except ValueError:
        return SMOOTHING
    return smoothing if 0 <= smoothing < 1 else SMOOTHING
