"""What a training would do: pictures, repeats, steps, time, whether it fits, and why it can't begin."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lora_train.app.base_models import BaseModels
from lora_train.app.datasets import Datasets
from lora_train.app.fitting import Fitting
from lora_train.app.optimizers import Optimizers
from lora_train.app.paces import expected_pace
from lora_train.app.planning import count_steps, make_plan, validation_warnings, with_absolute_paths
from lora_train.app.remembered import Remembered
from lora_train.app.snapshot import Forecast
from lora_train.core.config import TrainSettings
from lora_train.core.errors import DatasetError
from lora_train.core.families import CheckpointFacts
from lora_train.core.optimizers import optimizer_warnings
from lora_train.core.sd_script_args import Effective
from lora_train.core.workspace import Version

if TYPE_CHECKING:
    from lora_train.data.dataset import Dataset
    from lora_train.data.epochs import EpochPlanner


class Forecasting:
    """Forecasts of trainings, from settings and the trained set."""

    def __init__(
        self, root: Path, datasets: Datasets, base_models: BaseModels, optimizers: Optimizers, fitting: Fitting
    ) -> None:
        """`root`: the workspace's, where paces of earlier trainings are remembered."""
        self._root = root
        self._datasets = datasets
        self._base_models = base_models
        self._optimizers = optimizers
        self._fitting = fitting
        self._plans: Remembered[tuple[EpochPlanner, frozenset[str]]] = Remembered()

    def forecast(self, version: Version, effective: Effective, problems: Sequence[str] = ()) -> Forecast:
        """What a training of the version with these settings would do; `problems` are theirs, told with the others."""
        from lora_train.data.holding_out import held_out

        settings = effective.settings
        forecast = Forecast(
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            accumulation=settings.gradient_accumulation_steps,
            problems=[*problems, *self._optimizers.problems(settings.optimizer, settings.device)],
            overridden=effective.overridden,
            warnings=optimizer_warnings(settings),
        )
        model_problems, facts = self._base_models.check(settings)
        forecast.problems += model_problems
        if sentence := self._base_models.check_continued(settings, facts):
            forecast.problems.append(sentence)
        try:
            dataset = self._datasets.scan(version, settings)
        except DatasetError:
            forecast.problems.append(self._why_no_pictures(version))
            return forecast
        planned = facts or CheckpointFacts("sd1"), version.project.info().name
        try:
            plan, held = self._plans.of(
                dataset,
                (settings, *planned),
                lambda: (make_plan(dataset, settings, *planned), frozenset(held_out(dataset, settings))),
            )
        except DatasetError as error:  # no bucket of this resolution
            forecast.problems.append(error.message)
            return forecast
        _count(forecast, dataset, plan, held, settings)
        pace = expected_pace(self._root, with_absolute_paths(settings))
        forecast.seconds = None if pace is None else pace.s_per_step * forecast.total_steps
        if not forecast.problems:
            forecast.fit = self._fitting.fit(settings, facts, plan)
        return forecast

    def _why_no_pictures(self, version: Version) -> str:
        pictures = self._datasets.snapshot(version.project.path.name, version.path.name).pictures
        if any(entry.is_waiting for entry in pictures):
            return "The uploaded pictures are not in the dataset yet: press Update Dataset."
        return "There are no pictures yet: drop some on Upload Dataset, then press Update Dataset."


def _count(
    forecast: Forecast, dataset: Dataset, plan: EpochPlanner, held: Collection[str], settings: TrainSettings
) -> None:
    """Pictures, views and steps; `held`: the pictures that are held out."""
    training = [picture for picture in dataset.pictures if not picture.is_regularisation]
    repeats = {picture.repeats for picture in training if picture.path not in held}
    forecast.pictures, forecast.held_out = len(training) - len(held), len(held)
    forecast.repeats = min(repeats) if len(repeats) == 1 else None
    forecast.regularisation_pictures = len(dataset.pictures) - len(training)
    forecast.warnings += validation_warnings(settings, len(training), len(held))
    forecast.views_per_epoch = len(list(plan.shown(0)))
    forecast.total_steps = count_steps(plan, settings)
    if settings.repeats < 0:
        forecast.aimed_steps = settings.aimed_steps
        forecast.is_over_aim = 0 < settings.aimed_steps < forecast.total_steps and min(repeats) == 1
    views = forecast.views_per_epoch * settings.epochs
    forecast.is_exact = forecast.total_steps * settings.batch_size * settings.gradient_accumulation_steps == views
