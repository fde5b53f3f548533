"""What the page's script polls: the live parts of the page as HTML, those alone that it does not show yet."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, get_args

import msgspec

from lora_train.app.asked_at_once import AskedAtOnce
from lora_train.app.captions import FilterMode, RowOrder
from lora_train.app.snapshot import Forecast, Selection, Snapshot
from lora_train.core.errors import ConfigError, TrainToolsError
from lora_train.ui import view
from lora_train.ui.chart import SMOOTHING
from lora_train.ui.html import page_wanted, sentences

if TYPE_CHECKING:
    from lora_train.app import App


class Live:
    """What the page's script polls; pages that show the same are answered together."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._asked: AskedAtOnce[dict[str, Any]] = AskedAtOnce()

    def __call__(self, query: Mapping[str, str]) -> dict[str, Any]:
        """As `live`."""
        shown = {key: value for key, value in query.items() if key != "seen"}
        told = self._asked.of(tuple(sorted(shown.items())), lambda: live(self._app, shown))
        return _unseen(told, query)


def live(app: App, query: Mapping[str, str]) -> dict[str, Any]:
    """The live parts for the project, version and train of `query`, by name, and what else a page has to know.

    `query["seen"]` lists the marks of the parts that the page shows already; those that are still the same are left
    out. All else of `query` is as `fragments` takes it.
    """
    with app.datasets.glancing():
        snapshot = app.snapshot(query.get("project", ""), query.get("version", ""), query.get("train", ""))
        everything = _fragments(app, query, snapshot.selection, lambda: snapshot)
    told = {
        "fragments": everything,
        "marks": {name: mark(name, html) for name, html in everything.items()},
        "busy": _is_busy(app, snapshot),
        "loras_revision": snapshot.loras_revision,
        "selection": msgspec.to_builtins(snapshot.selection),
    }
    return _unseen(told, query)


def fragments(app: App, query: Mapping[str, str]) -> dict[str, str]:
    """The live parts for the project, version and train of `query`, by name.

    `query["parts"]` lists those that are in sight, with commas; without it all are made. `query["token"]` goes into the
    addresses of pictures.
    """
    project, version = query.get("project", ""), query.get("version", "")
    with app.datasets.glancing():
        snapshot = cache(lambda: app.snapshot(project, version, query.get("train", "")))
        return _fragments(app, query, app.existing(project, version), snapshot)


def _fragments(
    app: App, query: Mapping[str, str], shown: Selection, snapshot: Callable[[], Snapshot]
) -> dict[str, str]:
    token = query.get("token", "")
    makers: dict[str, Callable[[], str]] = {
        "dataset": lambda: view.dataset_html(snapshot(), token, query.get("gallery", "")),
        "sum": lambda: view.sum_html(_forecast(app, shown)),
        "optimizers": lambda: _optimizers(app, shown),
        "preset": lambda: _preset(app, shown),
        "presets": lambda: view.own_presets_html(app.presets.list(), token),
        "progress": lambda: view.progress_html(snapshot(), _smoothing(query), token),
        "queue": lambda: view.queue_html(snapshot()),
        "results": lambda: _results(app, snapshot(), query, token),
        "sweep_sum": lambda: _sweep_sum(app, shown),
        "sweeps": lambda: _sweeps(app, shown),
        "judge": lambda: _judge(app, snapshot(), token),
        "captioning": lambda: _captioning(app, shown),
        "captions": lambda: _captions(app, shown, query, token),
        "health": lambda: _health(app, shown, token),
        "regularisation": lambda: _regularisation(app, shown),
        "doctor": lambda: view.doctor_html(app.doctor.snapshot(), token),
        "grids_sum": lambda: _grids_sum(app, snapshot()),
        "grids": lambda: _grids(app, shown, query, token),
        "tasks": lambda: view.tasks_html(app.tasks.entries()),
    }
    wanted = query["parts"].split(",") if query.get("parts") else list(makers)
    return {name: make() for name, make in makers.items() if name in wanted}


def _unseen(told: dict[str, Any], query: Mapping[str, str]) -> dict[str, Any]:
    """Without the parts that the page shows as they are."""
    seen = set(query.get("seen", "").split(","))
    fragments = {name: html for name, html in told["fragments"].items() if told["marks"][name] not in seen}
    return {**told, "fragments": fragments}


def _is_busy(app: App, snapshot: Snapshot) -> bool:
    """Whether the page is to look often."""
    update = snapshot.dataset.update
    is_updating = update is not None and update.state in ("waiting", "running")
    return bool(snapshot.queue) or is_updating or app.doctor.snapshot().is_running


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


def _sweep_sum(app: App, shown: Selection) -> str:
    return view.sweep_sum_html(app.sweeps.forecast(shown.project, shown.version)) if shown.version else ""


def _sweeps(app: App, shown: Selection) -> str:
    return view.sweeps_html(app.sweeps.list(shown.project, shown.version)) if shown.version else ""


def _optimizers(app: App, selection: Selection) -> str:
    if not selection.version:
        return ""
    chosen = app.settings.effective(selection.project, selection.version)
    return view.optimizers_html(app.optimizers.entries(chosen.device, chosen.optimizer), chosen.optimizer)


def _preset(app: App, shown: Selection) -> str:
    return view.preset_html(app.presets.state(shown.project, shown.version), shown) if shown.version else ""


def _captioning(app: App, shown: Selection) -> str:
    if not shown.version:
        return ""
    is_needed = app.datasets.needs_captions(shown.project, shown.version)
    return view.captioning_html(app.captioning.choices(shown.project, shown.version), shown, is_needed=is_needed)


def _captions(app: App, shown: Selection, query: Mapping[str, str], token: str) -> str:
    """The captions that the filter of the page shows; what is wrong with a filter stands in their place."""
    if not shown.version:
        return ""
    mode: FilterMode = "or" if query.get("mode") == "or" else "and"
    order: RowOrder = next((name for name in get_args(RowOrder) if name == query.get("order")), "name")
    try:
        captions = app.captions.view(shown.project, shown.version, query.get("filter", ""), mode, order)
    except ConfigError as error:
        return sentences(error.problems, "train-tools-error")
    return view.captions_html(captions, shown, token)


def _health(app: App, shown: Selection, token: str) -> str:
    if not shown.version:
        return ""
    return view.health_html(app.health.report(shown.project, shown.version), shown, token)


def _regularisation(app: App, shown: Selection) -> str:
    if not shown.version:
        return ""
    snapshot = app.regularisation.snapshot(shown.project, shown.version)
    listed = view.regularisation_html(snapshot, shown)
    if not snapshot.classes:
        return listed
    return listed + view.effect_html(app.regularisation.estimate(shown.project, shown.version, 0))


def _grids_sum(app: App, snapshot: Snapshot) -> str:
    shown = snapshot.selection
    if not shown.version:
        return ""
    return view.grids_sum_html(app.grids.forecast(shown.project, shown.version, snapshot.trains))


def _grids(app: App, shown: Selection, query: Mapping[str, str], token: str) -> str:
    if not shown.version:
        return ""
    page = app.grids.page(shown.project, shown.version, page_wanted(query.get("grids", "")))
    return view.grids_html(page, token, query.get("pictures", ""))


def _judge(app: App, snapshot: Snapshot, token: str) -> str:
    if snapshot.shown is None:
        return ""
    judge = app.judging.snapshot(snapshot.shown.job)
    return view.judge_html(judge, snapshot.shown, snapshot.selection, token)


def _results(app: App, snapshot: Snapshot, query: Mapping[str, str], token: str) -> str:
    history = _history(app, snapshot, query, token)
    return view.results_html(snapshot, token, history, query.get("cards", ""))


def _history(app: App, snapshot: Snapshot, query: Mapping[str, str], token: str) -> str:
    """The row of the shown train, and how the one that was chosen beside it differs."""
    shown = snapshot.shown
    if shown is None:
        return ""
    others = [(train.job, train.name) for train in snapshot.trains if train.job != shown.job]
    compared = query.get("compare", "") if any(query.get("compare") == job for job, _ in others) else ""
    try:
        row = view.history_row(shown.job, app.history.note(shown.job, others), compared, token)
        return row + (view.comparison_html(app.history.compare(shown.job, compared)) if compared else "")
    except TrainToolsError as error:  # deleted just now
        return sentences([error.message])


def _smoothing(query: Mapping[str, str]) -> float:
    """What the person chose; anything else than a number from 0 up to 1 is the default."""
    try:
        smoothing = float(query.get("smoothing", ""))
    except ValueError:
        return SMOOTHING
    return smoothing if 0 <= smoothing < 1 else SMOOTHING
