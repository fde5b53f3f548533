"""From the lists of a sweep to the runs they make: settings, steps, time, disk, and what stands in the way of each."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from lora_train.app.paces import expected_judging_s, expected_pace
from lora_train.app.planning import disk_needed, with_absolute_paths
from lora_train.app.presets import Presets
from lora_train.app.snapshot import Forecast
from lora_train.app.sweep_snapshot import PlanRow, SweepForecast
from lora_train.app.training import Training
from lora_train.app.version_settings import effective_of, sweep_settings
from lora_train.core.config import TrainSettings
from lora_train.core.errors import ConfigError, TrainToolsError
from lora_train.core.halving import RunCost, Rung, deadline, halving_plan, seconds_of, trial_rung
from lora_train.core.judgement import PICTURES, WEIGHTS, pictures_to_draw
from lora_train.core.sd_script_args import effective_settings
from lora_train.core.settings import check_settings
from lora_train.core.sweep_record import SweepRun
from lora_train.core.sweeps import Combination, combinations
from lora_train.core.workspace import Version

USED_OF_TIME = 0.9
"""No training goes as fast as the last one did to the second."""


class Run(NamedTuple):
    """A run that could begin, unless it has problems."""

    label: str
    preset: str
    settings: TrainSettings
    values: dict[str, Any]
    total_steps: int
    problems: list[str]
    warnings: list[str]
    held_out: int
    """Pictures by which runs can be compared."""
    s_per_step: float | None
    start_s: float | None
    judge_s: float
    """Expected for judging it at the end of a rung; 0 where that is not wanted, or nobody knows."""
    disk_bytes: int


class Plan(NamedTuple):
    runs: list[Run]
    rungs: list[Rung]
    forecast: SweepForecast


def plan_sweep(version: Version, training: Training, presets: Presets, root: Path) -> Plan:
    """What the version's sweep would do now. What is wrong with it stands in the forecast's problems."""
    sweep = sweep_settings(version)
    forecast = SweepForecast()
    try:
        chosen = combinations(sweep)
        if sweep.finish_by.strip():
            forecast.finish_by = deadline(sweep.finish_by, time.time())
    except ConfigError as error:
        forecast.problems = error.problems
        return Plan([], [], forecast)
    if len(chosen) < 2:
        forecast.problems = ["Give two values or more in one of the lists: each combination becomes a run."]
        return Plan([], [], forecast)
    maker = _RunMaker(version, training, presets, root, judges=sweep.judge, is_timed=bool(forecast.finish_by))
    runs = maker.runs(chosen)
    forecast.problems = problems_by_label(runs)
    forecast.labels = [run.label for run in runs]
    forecast.total_steps = sum(run.total_steps for run in runs)
    forecast.disk_bytes = sum(run.disk_bytes for run in runs)
    forecast.warnings = list(dict.fromkeys(warning for run in runs for warning in run.warnings))
    if len(runs) < 2 and not forecast.problems:
        forecast.problems = ["All these runs are the same training: change one of the lists."]
    if forecast.problems:
        return Plan(runs, [], forecast)
    if forecast.finish_by and not sweep.judge and not all(run.held_out for run in runs):
        forecast.warnings.append(
            "No pictures are held out: runs are compared by training loss, which says little. The judge can compare."
        )
    rungs = _rungs(runs, forecast)
    forecast.plan = plan_rows(rungs, [run.total_steps for run in runs])
    forecast.seconds = seconds_of(rungs) if rungs else None
    return Plan(runs, rungs, forecast)


def plan_rows(rungs: Sequence[Rung], total_steps: Sequence[int]) -> list[PlanRow]:
    """The rungs as steps of runs that have so many in all."""
    rows: list[PlanRow] = []
    for rung in rungs:
        limits = [rung.limit(steps) for steps in total_steps]
        rows.append(PlanRow(rung.runs, min(limits), max(limits), rung.share >= 1, rung.seconds))
    return rows


def costs_of(runs: Sequence[SweepRun | Run], done_steps: Sequence[int], total_steps: Sequence[int]) -> list[RunCost]:
    """Of runs whose paces are all known; empty where one is not."""
    costs: list[RunCost] = []
    for run, done, total in zip(runs, done_steps, total_steps, strict=True):
        if run.s_per_step is None or run.start_s is None:
            return []
        costs.append(
            RunCost(total_steps=total, done_steps=done, s_per_step=run.s_per_step, start_s=run.start_s + run.judge_s)
        )
    return costs


def problems_by_label(runs: Sequence[Run]) -> list[str]:
    """What stands in the way of all runs once, and of single ones behind their labels."""
    everywhere = [problem for problem in runs[0].problems if _is_everywhere(problem, runs)]
    single = [f"{run.label}: {problem}" for run in runs for problem in run.problems if problem not in everywhere]
    return [*everywhere, *single]


def _is_everywhere(problem: str, runs: Sequence[Run]) -> bool:
    return all(problem in run.problems for run in runs)


def _rungs(runs: Sequence[Run], forecast: SweepForecast) -> list[Rung]:
    steps = [run.total_steps for run in runs]
    costs = costs_of(runs, [0] * len(runs), steps)
    if not forecast.finish_by:
        known = [run.total_steps * run.s_per_step + (run.start_s or 0.0) for run in runs if run.s_per_step is not None]
        total_s = sum(known) if len(known) == len(runs) else None
        return [Rung(runs=len(runs), share=1.0, seconds=total_s)]
    if not costs:
        forecast.warnings.append(
            "Nobody knows yet how fast these runs go on this machine: each makes a few steps first, and then the plan "
            "is made."
        )
        return [trial_rung(steps)]
    rungs = halving_plan(costs, USED_OF_TIME * (forecast.finish_by - time.time()))
    if not rungs:
        forecast.problems.append(
            "Finish by: there is no time for a single step of each run until then; try fewer runs or a later time."
        )
    elif rungs[-1].share < 1:
        forecast.warnings.append("There is no time for any run to come to its end: the last one is stopped before.")
    return rungs


class _RunMaker:
    """Resolves combinations into settings, and forecasts each."""

    def __init__(
        self, version: Version, training: Training, presets: Presets, root: Path, *, judges: bool, is_timed: bool
    ) -> None:
        self._version = version
        self._training = training
        self._presets = presets
        self._root = root
        self._judges = judges
        self._is_timed = is_timed
        self._base, self._told = effective_of(version)
        self._forecasts: dict[TrainSettings, Forecast] = {}

    def runs(self, chosen: Sequence[Combination]) -> list[Run]:
        """Those that are the same training as an earlier one are left out."""
        found: dict[TrainSettings, Run] = {}
        for combination in chosen:
            run = self._run(combination)
            found.setdefault(run.settings, run)
        return list(found.values())

    def _run(self, combination: Combination) -> Run:
        problems = [*self._told]
        values: dict[str, Any] = {}
        if combination.preset:
            try:
                values, _ = self._presets.under(combination.preset, _model_of(combination), self._base.settings)
            except TrainToolsError as error:
                problems.append(f"{error.message}\n{error.hint}".strip())
        with_preset, wrong = check_settings(values, self._base.settings)
        effective = effective_settings(with_preset)
        settings, wrong_lists = check_settings(combination.values, effective.settings)
        problems += [*wrong, *effective.problems, *wrong_lists]
        problems += self._training.optimizers.problems(settings.optimizer, settings.device)
        return self._with_costs(
            combination, settings, [*dict.fromkeys([*problems, *self._forecast(settings).problems])]
        )

    def _forecast(self, settings: TrainSettings) -> Forecast:
        """Of everything but the optimizer: the same for runs that differ only in what changes no steps."""
        shared = msgspec.structs.replace(
            settings, learning_rate=1e-4, optimizer="AdamW", optimizer_args=(), rank=1, alpha=1.0, clip_skip=1
        )
        if shared not in self._forecasts:
            effective = self._base._replace(settings=shared)
            self._forecasts[shared] = self._training.forecast_of(self._version, effective)
        return self._forecasts[shared]

    def _with_costs(self, combination: Combination, settings: TrainSettings, problems: list[str]) -> Run:
        pace = expected_pace(self._root, with_absolute_paths(settings))
        disk_bytes = 0
        if not problems:
            _, facts = self._training.base_models.check(settings)
            assert facts is not None  # or there was a problem
            disk_bytes = disk_needed(settings, facts).total_bytes
        forecast = self._forecast(settings)
        before = msgspec.structs.asdict(self._base.settings)
        changed = {name: value for name, value in msgspec.structs.asdict(settings).items() if before[name] != value}
        judge_s = 0.0
        if self._judges and self._is_timed:
            count = pictures_to_draw(1, len(WEIGHTS), PICTURES)
            judge_s = expected_judging_s(self._root, with_absolute_paths(settings), count) or 0.0
        elif self._judges:
            settings = msgspec.structs.replace(settings, judge_when_finished=True)
        return Run(
            label=combination.label,
            preset=combination.preset,
            settings=settings,
            values=changed,
            total_steps=forecast.total_steps,
            problems=problems,
            warnings=[*forecast.warnings],
            held_out=forecast.held_out,
            s_per_step=pace.s_per_step if pace else None,
            start_s=pace.start_s if pace else None,
            judge_s=judge_s,
            disk_bytes=disk_bytes,
        )


def _model_of(combination: Combination) -> dict[str, Any]:
    return {name: value for name, value in combination.values.items() if name == "base_model"}
