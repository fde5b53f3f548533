"""The trainings of a version: what one would do, begun, listed, stopped, paused, resumed, deleted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from lora_train.app.base_models import BaseModels
from lora_train.app.datasets import Datasets
from lora_train.app.fit_snapshot import Fit
from lora_train.app.fitting import Fitting
from lora_train.app.forecasting import Forecasting
from lora_train.app.in_use import InUse
from lora_train.app.loras import Loras, previews_of
from lora_train.app.optimizers import Optimizers
from lora_train.app.paces import with_tried_pace
from lora_train.app.planning import (
    PlannedTrain,
    capacity,
    check_disk,
    check_training,
    plan_job,
    with_absolute_paths,
    with_threads,
)
from lora_train.app.snapshot import CurvePoint, Forecast, TrainSnapshot, Undo, Validation
from lora_train.app.version_settings import effective_of, train_settings
from lora_train.app.watching import Watch
from lora_train.core.assets import resolve_base_model
from lora_train.core.config import TrainSettings
from lora_train.core.diagnosis import without_folders
from lora_train.core.errors import ConfigError, JobError, WorkspaceError
from lora_train.core.events import KILLED, EventWriter, Failed, read_events
from lora_train.core.host import Host
from lora_train.core.jobs import JobFolder, JobStatus, Request, StatusReader
from lora_train.core.limits import lift_reached_limits
from lora_train.core.memory import read_memory
from lora_train.core.original import finished_train, read_facts
from lora_train.core.sd_script_args import Effective
from lora_train.core.specs import SamplesSpec, TrainSpec
from lora_train.core.workspace import Version, Workspace
from lora_train.launch import launcher
from lora_train.launch.queue import JobQueue

_MOST_CURVE_POINTS = 400
_LOG_LINES = 40
_MOST_EVENTS_BYTES = 2**20


class Training:
    def __init__(
        self,
        workspace: Workspace,
        host: Host,
        jobs: JobQueue,
        datasets: Datasets,
        loras: Loras,
        in_use: InUse,
        watch: Watch,
    ) -> None:
        self._workspace = workspace
        self._host = host
        self._jobs = jobs
        self._datasets = datasets
        self._loras = loras
        self._in_use = in_use
        self._watch = watch
        self.base_models = BaseModels(host)
        self.optimizers = Optimizers()
        self.fitting = Fitting(host, jobs)
        self._forecasting = Forecasting(workspace.root, datasets, self.base_models, self.optimizers, self.fitting)

    # --- before ---

    def forecast(self, project: str, version: str) -> Forecast:
        """What *Begin Train* would do now, from the saved settings and the trained set.

        Raises WorkspaceError for an unknown version; everything else that is wrong stands in `problems`.
        """
        found = self._workspace.find_version(project, version)
        return self._forecasting.forecast(found, *effective_of(found))

    def forecast_of(self, version: Version, effective: Effective) -> Forecast:
        """`forecast` for other settings than the version's."""
        return self._forecasting.forecast(version, effective)

    def fit_of(self, job: JobFolder) -> Fit | None:
        """What a training that was just planned is expected to need; waits for the driver's answer where it is asked.

        None where it can't be told.
        """
        self.fitting.wait()
        found = self._workspace.version_of(job.path)
        return self.forecast(found.project.path.name, found.path.name).fit

    def begin(self, project: str, version: str) -> str:
        """Write a training job and put it into the queue; the job's id.

        Raises ConfigError with all that stands in the way at once, WorkspaceError for an unknown version or a disk
        that is too full.
        """
        before = train_settings(self._workspace.find_version(project, version))
        forecast = self.forecast(project, version)  # it may take its time, and others would wait
        with self._workspace.changing():
            found = self._workspace.find_version(project, version)
            settings = train_settings(found)
            if settings != before:
                forecast = self.forecast(project, version)
            problems = forecast.problems + self.not_now(found)
            if problems:
                raise ConfigError(problems)
            facts = check_training(settings)
            check_disk(self._workspace.root, settings, facts)
            job = self._workspace.id_of(self.plan(found, settings).job.path)
            self._jobs.add(job)
            return job

    def not_now(self, version: Version) -> list[str]:
        """Why no training of a version can begin at the moment, whatever its settings are."""
        problems: list[str] = []
        if self._datasets.is_updating(version):
            problems.append("The dataset is being updated: wait a moment.")
        if self._in_use.is_drawing(version):
            problems.append("Regularisation pictures are being drawn: wait for the end, or stop it.")
        return problems

    def plan(self, version: Version, settings: TrainSettings, publish_to: Path | None = None) -> PlannedTrain:
        """Write a training job for settings that were found right; nothing runs yet.

        Its LoRA is published to `publish_to`, or else to where the host has its own. Raises as `check_training`.
        """
        from lora_train.data.captions import common_tag

        dataset = self._datasets.scan(version, settings)
        words = common_tag([picture.caption for picture in dataset.pictures if not picture.is_regularisation])
        settings = _with_preview_prompt(with_absolute_paths(settings), words or version.project.info().name)
        facts = check_training(settings)
        return plan_job(
            version,
            dataset,
            with_threads(settings, facts),
            facts,
            lora_root=publish_to or self._host.lora_root(),
            publish_to=publish_to or (self._host.lora_dir() if self._host.auto_publish() else None),
        )

    # --- while and after ---

    def list(self, project: str, version: str) -> list[TrainSnapshot]:
        """Newest first. Raises WorkspaceError for an unknown version."""
        trains_dir = self._workspace.find_version(project, version).trains_dir
        folders = trains_dir.iterdir() if trains_dir.is_dir() else ()
        trains: list[TrainSnapshot] = []
        for path in folders:
            try:
                trains.append(self._snapshot(JobFolder(path)))
            except (JobError, OSError):  # no train, damaged, or just deleted: the others are shown all the same
                continue
        return sorted(trains, key=lambda train: train.created, reverse=True)

    def choose(self, trains: list[TrainSnapshot], wanted: str) -> TrainSnapshot | None:
        """The train whose progress is shown: the one asked for, else the running one, else what happened last."""
        asked_for = [train for train in trains if train.job == wanted]
        running = [train for train in trains if train.status.state == "running" or train.place == 0]
        latest = sorted(trains, key=lambda train: max(train.status.last_event_t, train.created), reverse=True)
        return next(iter([*asked_for, *running, *latest]), None)

    def stop(self, job: str) -> None:
        """Finish the step, save LoRA and state, end; a waiting job leaves the queue. Raises JobError for other jobs."""
        self._ask(job, "stop")

    def pause(self, job: str) -> None:
        """Finish the step, save the state, free the card. Raises JobError where none runs."""
        self._ask(job, "pause")

    def kill(self, job: str) -> None:
        """End the worker at once; at most the steps since the last state are lost. Raises JobError where none runs."""
        folder = self._job(job)
        if self._cancel(job):
            return
        # In this order: its first word may come in between.
        if self._jobs.is_starting(job) and not launcher.is_alive(folder):
            folder.request("stop")  # it has not done anything yet, and will not
            return
        if not launcher.is_alive(folder):
            raise JobError(f"{folder.path.name} is not running.")
        launcher.kill_worker(folder)
        if StatusReader(folder).read().state == "running":  # else it came to its end by itself just then
            events = EventWriter(folder.events_path)
            events.write(Failed(KILLED, "Ended at once, as asked for.", "Resume goes on from the last saved state."))
            events.close()

    def resume(self, job: str) -> None:
        """Put an ended training back into the queue.

        Raises JobError for one that is finished, waits or runs, ConfigError while its pictures are made anew.
        """
        folder = self._folder(job)
        spec = self._spec(folder)
        if self._watch.status(folder).state == "finished":
            raise JobError(f"{spec.name} is finished.", "Begin a new training to go on learning.")
        check_training(spec.settings)
        if launcher.is_alive(folder):
            raise JobError(f"{spec.name} is running already.")
        with self._workspace.changing():
            if problems := self.not_now(self._workspace.version_of(folder.path)):
                raise ConfigError(problems)
            if not self._jobs.is_starting(job):
                folder.clear_requests()
                lift_reached_limits(folder.path, self._watch.status(folder).step)
            self._jobs.add(job)

    def delete(self, job: str) -> Undo:
        """Move an ended training with its LoRAs to the trash; published copies stay. Raises JobError while it runs."""
        folder = self._any_folder(job)
        if launcher.is_alive(folder):  # started from the command line
            raise JobError(f"{folder.path.name} is running.", "Stop it first.")
        with self._workspace.changing():
            self._in_use.require_idle(folder.path, folder.path.name)
            return Undo(folder.path.name, self._workspace.trash.put(folder.path.name, [folder.path]))

    def draw_previews(self, job: str) -> str:
        """Queue a job that draws the previews of every LoRA that has none; its id. Raises JobError where none lacks."""
        folder = self._folder(job)
        spec = self._spec(folder)
        saved = [file for file in self._watch.status(folder).saved if (folder.path / file).is_file()]
        lacking = [file for file in saved if not previews_of(folder, Path(file).stem)]
        if not lacking:
            raise JobError("Every LoRA of this training has its previews.")
        if self._in_use.is_drawn_for(folder.path):
            raise JobError("Previews of this training are being drawn, or wait for the card.")
        drawing = JobFolder(self._workspace.new_job_dir("previews"))
        relative = Path(*[".."] * 2, *folder.path.relative_to(self._workspace.root).parts)
        wanted = msgspec.structs.replace(spec.settings, generate_previews=True)
        settings = _with_preview_prompt(wanted, spec.concept)
        drawing.create(SamplesSpec(train=relative.as_posix(), loras=tuple(lacking), settings=settings))
        drawing_id = self._workspace.id_of(drawing.path)
        self._jobs.add(drawing_id)
        return drawing_id

    def curve(self, job: str) -> list[CurvePoint]:
        """Loss and learning rate over the steps. Raises JobError or WorkspaceError for what is no training."""
        points = self._watch.curve(self._any_folder(job), _MOST_CURVE_POINTS)
        return [CurvePoint(point.step, point.loss, point.lr) for point in points]

    def validations(self, job: str) -> list[Validation]:
        """The losses on the held-out pictures, in the order of steps. Raises as `curve`."""
        found = self._watch.validations(self._any_folder(job))
        return [Validation(point.step, point.loss, point.base_loss) for point in found]

    def log(self, job: str) -> str:
        """The end of the worker's log, without the names of folders where the page is open to others.

        Raises JobError or WorkspaceError for what is no job.
        """
        tail = self._job(job).log_tail(_LOG_LINES)
        return tail if self._host.takes_paths() else without_folders(tail)

    def events(self, job: str, offset: int) -> tuple[list[dict[str, Any]], int]:
        """The events from a byte offset on, as many as stand in a megabyte, and the offset to go on from.

        Raises as `log` does.
        """
        found, end = read_events(self._job(job).events_path, max(0, offset), _MOST_EVENTS_BYTES)
        return [msgspec.to_builtins(event) for event in found], end

    def file_path(self, job: str, file: str) -> Path:
        """A LoRA or preview of a training. Raises WorkspaceError for any other file."""
        folder = self._any_folder(job)
        samples = (path.relative_to(folder.path).as_posix() for path in folder.samples_dir.rglob("*.png"))
        if file not in (*self._watch.status(folder).saved, *samples) or not (folder.path / file).is_file():
            raise WorkspaceError(f"There is no file {file!r} in {folder.path.name}.", "Refresh the page.")
        return folder.path / file

    # --- details ---

    def _snapshot(self, folder: JobFolder) -> TrainSnapshot:
        if (done := finished_train(folder.path)) is not None:
            return self._original_snapshot(folder, done)
        spec = self._spec(folder)
        job = self._workspace.id_of(folder.path)
        memory = read_memory(folder.path)
        status = with_tried_pace(self._watch.status(folder), memory)
        place = self._jobs.place_of(job)
        if place is not None and (place > 0 or self._jobs.is_starting(job)):
            phase = "waiting for the WebUI's picture" if place == 0 and self._host.is_waiting_for_picture() else ""
            status = msgspec.structs.replace(status, state="waiting", phase=phase, message="", hint="")
        settings = spec.settings
        loras = self._loras.entries(folder, status)
        return TrainSnapshot(
            job=job,
            name=spec.name,
            status=status,
            place=place,
            base_model=resolve_base_model(settings.base_model).name,
            family=self._loras.family_label(folder, loras),
            summary=(
                f"{settings.optimizer} {settings.learning_rate:g} · {capacity(settings)} · "
                f"batch {settings.batch_size} · epochs {settings.epochs}"
            ),
            created=spec.created,
            loras=loras,
            is_private=self._loras.is_private(folder),
            memory=memory,
        )

    def _original_snapshot(self, folder: JobFolder, status: JobStatus) -> TrainSnapshot:
        """Of a train that the original extension made: its folder's name tells how."""
        facts = read_facts(folder.path.name)
        return TrainSnapshot(
            job=self._workspace.id_of(folder.path),
            name=folder.path.name,
            status=status,
            base_model=facts.base_model,
            summary=facts.summary,
            created=status.last_event_t,
            loras=self._loras.entries(folder, status),
            is_original=True,
            is_private=self._loras.is_private(folder),
        )

    def _job(self, job: str) -> JobFolder:
        """Any job's folder. Raises WorkspaceError or JobError where there is none."""
        folder = JobFolder(self._workspace.find_job(job))
        if finished_train(folder.path) is None:
            self._watch.spec(folder)
        return folder

    def _folder(self, job: str) -> JobFolder:
        """A training's folder. Raises WorkspaceError or JobError for what is none."""
        folder = JobFolder(self._workspace.find_job(job))
        if finished_train(folder.path) is not None:
            raise JobError(
                f"{folder.path.name} was trained by the original extension, which kept the LoRAs alone.",
                "Begin a new training to go on learning.",
            )
        self._spec(folder)
        return folder

    def _any_folder(self, job: str) -> JobFolder:
        """As `_folder`, also of one that the original extension trained."""
        folder = JobFolder(self._workspace.find_job(job))
        return folder if finished_train(folder.path) is not None else self._folder(job)

    def _spec(self, folder: JobFolder) -> TrainSpec:
        """Raises JobError for what is no training."""
        spec = self._watch.spec(folder)
        if not isinstance(spec, TrainSpec):
            raise JobError(f"{folder.path.name} is no training.")
        return spec

    def _ask(self, job: str, what: Request) -> None:
        folder = self._job(job)
        if self._cancel(job):
            return
        if not self._jobs.is_starting(job) and not launcher.is_alive(folder):  # in this order, as in `kill`
            raise JobError(f"{folder.path.name} is not running.")
        folder.request(what)

    def _cancel(self, job: str) -> bool:
        """Take the job out of the queue if it waits there."""
        if (self._jobs.place_of(job) or 0) < 1:
            return False
        try:
            self._jobs.cancel(job)
        except JobError:
            if (self._jobs.place_of(job) or 0) > 0:
                raise
            return False  # its turn has just come
        return True


def _with_preview_prompt(settings: TrainSettings, words: str) -> TrainSettings:
    """Previews want a prompt: without one, what calls the LoRA up."""
    if settings.preview_prompts or not settings.generate_previews:
        return settings
    return msgspec.structs.replace(settings, preview_prompts=(settings.trigger_word or words,))
