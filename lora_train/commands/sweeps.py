"""`lora-train sweep`: every combination of some values, trained one after the other."""

from __future__ import annotations

import argparse
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from lora_train.commands.arguments import add_command, add_settings, add_version, app_of, selection_of, values_of
from lora_train.commands.console import Result, line_of, tell, train_to_the_end
from lora_train.core.errors import ConfigError

if TYPE_CHECKING:
    from lora_train.app import App
    from lora_train.app.sweep_snapshot import SweepForecast
    from lora_train.core.jobs import JobFolder
    from lora_train.launch.launcher import Worker

_POLL_S = 0.1
_LISTS = {
    "learning_rates": "comma list",
    "optimizers": "comma list of names",
    "ranks": "comma list",
    "alphas": "comma list",
    "batch_sizes": "comma list",
    "clip_skips": "comma list",
}


def add_commands(commands: Any) -> None:
    """Put the commands of this file among the others."""
    sweep = add_command(commands, "sweep", _sweep, "train every combination of some values, one after the other")
    add_version(sweep)
    for name, help_ in _LISTS.items():
        sweep.add_argument(f"--{name.replace('_', '-')}", dest=name, metavar="LIST", default="", help=help_)
    for name in ("presets", "base_models"):
        flag = f"--{name.removesuffix('s').replace('_', '-')}"
        sweep.add_argument(flag, dest=name, metavar="X", action="append", default=[], help="may be given several times")
    sweep.add_argument(
        "--finish-by", metavar="HH:MM", default="", help="drop the weaker half again and again, to be ready by then"
    )
    sweep.add_argument("--plan", action="store_true", help="tell what would be done, and begin nothing")
    sweep.add_argument("--publish-to", metavar="DIR", help="copy the LoRAs here as cards (models/Lora)")
    add_settings(sweep, [])


def _sweep(options: argparse.Namespace) -> Result:
    app = app_of(options)
    project, version = selection_of(app, options)
    values = {name: getattr(options, name) for name in (*_LISTS, "presets", "base_models", "finish_by")}
    values["base_models"] = [_path(app, given) for given in options.base_models]
    if problems := app.settings.save(project, version, train=values_of(options), sweep=values):
        raise ConfigError(problems)
    forecast = app.sweeps.forecast(project, version)
    _tell_plan(forecast)
    if options.plan:
        return {"forecast": msgspec.to_builtins(forecast), "exit_code": 2 if forecast.problems else 0}
    publish_to = Path(options.publish_to).absolute() if options.publish_to else None
    sweep = app.sweeps.begin(project, version, is_queued=False, publish_to=publish_to)
    tell("Ctrl-C stops all of them, after saving.")
    cards = app.sweeps.cards()
    if len(cards) > 1:
        _work_off_on(cards, app, sweep)
    else:
        _work_off(app, sweep)
    return _result(app, sweep, options)


def _path(app: App, given: str) -> str:
    """A base model as it is saved: names of the list stand for their paths."""
    paths = {choice.name: choice.path for choice in app.base_models.offered()}
    return paths.get(given) or (str(Path(given).absolute()) if Path(given).exists() else given)


def _tell_plan(forecast: SweepForecast) -> None:
    for label in forecast.labels:
        tell(f"  {label}")
    for problem in (*forecast.problems, *forecast.warnings):
        tell(problem)
    if forecast.problems:
        return
    time = "unknown time" if forecast.seconds is None else f"at most {forecast.seconds / 60:.1f} min"
    size = f"up to {forecast.disk_bytes / 1e6:.0f} MB"
    tell(f"{len(forecast.labels)} runs, {forecast.total_steps} steps to all ends, {time}, {size}")
    if forecast.finish_by:
        tell(f"Finish by {datetime.fromtimestamp(forecast.finish_by):%Y-%m-%d %H:%M}")
        for number, row in enumerate(forecast.plan, start=1):
            time = "" if row.seconds is None else f", at most {row.seconds / 60:.1f} min"
            tell(f"  rung {number}: {row.runs} runs up to step {row.steps_to}{time}")


def _work_off(app: App, sweep: str) -> None:
    """Run one after the other, as the sweep says; a failed one does not stop the rest."""
    job = app.sweeps.take_next(sweep)
    while job is not None:
        label = next(row.label for row in app.sweeps.snapshot(sweep).rows if row.name == job.path.name)
        tell(f"{label}: {job.path}")
        _, is_interrupted = train_to_the_end(app, job)
        app.publish_result(job)
        if is_interrupted:
            app.sweeps.stop_all(sweep)
            return
        job = app.sweeps.take_next(sweep, job)


def _work_off_on(cards: list[str], app: App, sweep: str) -> None:
    """The same with a run on each card at a time. Ctrl-C asks all to stop and save; a second one ends them at once."""
    at_work: dict[str, tuple[JobFolder, Worker]] = {}
    ended: JobFolder | None = None
    is_interrupted = False
    while True:
        try:
            for card in cards:
                if card not in at_work and (job := app.sweeps.take_next(sweep, ended)) is not None:
                    tell(f"Card {card}: {job.path}")
                    at_work[card] = (job, _begun(app, job, card))
            if not at_work:
                return
            card = _first_to_end(at_work)
            ended, worker = at_work.pop(card)
            tell(f"Card {card}: {line_of(app.status(ended, worker))}")
            app.publish_result(ended)
        except KeyboardInterrupt:
            if is_interrupted:
                for job, _ in at_work.values():
                    app.kill(job)
            else:
                tell("\nStopping after these steps, and saving. Ctrl-C again ends them at once.")
                app.sweeps.stop_all(sweep)
            is_interrupted = True


def _begun(app: App, job: JobFolder, card: str) -> Worker:
    """Its worker, once it tells that it runs: until then the sweep takes the run for one that is over."""
    worker = app.start(job, card=card)
    while not worker.has_begun(job) and worker.poll() is None:
        time.sleep(_POLL_S)
    return worker


def _first_to_end(at_work: dict[str, tuple[JobFolder, Worker]]) -> str:
    while True:
        for card, (_, worker) in at_work.items():
            if worker.poll() is not None:
                return card
        time.sleep(_POLL_S)


def _result(app: App, sweep: str, options: argparse.Namespace) -> Result:
    snapshot = app.sweeps.snapshot(sweep)
    for note in snapshot.notes:
        tell(note)
    if not options.json:
        for row in snapshot.rows:
            loss = "" if row.status.loss is None else f"  loss {row.status.loss:.4f}"
            best = "  best" if row.is_best else ""
            print(f"{row.label:32} {row.status.state:9} step {row.status.step}{loss}  {row.lora}{best}")
    failed = any(row.status.state == "failed" for row in snapshot.rows)
    return {"sweep": msgspec.to_builtins(snapshot), "exit_code": int(failed)}
