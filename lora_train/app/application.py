"""One method for each thing a person can do. The page, the API and the command line call nothing else.

What belongs to one subject stands in a part of its own: `projects`, `settings`, `datasets`, `captioning`, `captions`,
`health`, `regularisation`, `presets`, `base_models`, `training`, `sweeps`, `loras`, `proofs`, `judging`, `grids` and
`queue`; `tasks` are calls of them that take longer than a click. Here are the parts put together, and the jobs of the
command line.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from lora_train.app.background import Background
from lora_train.app.benching import bench_spec, count_spec
from lora_train.app.captioning import Captioning
from lora_train.app.captions import Captions
from lora_train.app.datasets import Datasets
from lora_train.app.doctor import Doctor
from lora_train.app.grid_planning import plan_grid_job
from lora_train.app.grids import Grids
from lora_train.app.health import Health
from lora_train.app.history import History
from lora_train.app.in_use import InUse
from lora_train.app.judging import Judging
from lora_train.app.loras import Loras
from lora_train.app.merging import merge_spec
from lora_train.app.planning import (
    PlannedTrain,
    check_base_model,
    check_disk,
    check_training,
    plan_job,
    require_effective,
    with_absolute_paths,
    with_chosen_repeats,
    with_threads,
    with_warnings,
)
from lora_train.app.presets import Presets
from lora_train.app.projects import Projects
from lora_train.app.proofs import Proofs
from lora_train.app.queueing import Queue
from lora_train.app.regularisation import Regularisation
from lora_train.app.reports import Reports
from lora_train.app.snapshot import Selection, Snapshot
from lora_train.app.sweeps import Sweeps
from lora_train.app.tasks import Tasks
from lora_train.app.training import Training
from lora_train.app.version_settings import VersionSettings, written_settings
from lora_train.app.watching import Watch
from lora_train.core import presets
from lora_train.core.assets import DEMO_PICTURES, resolve_base_model
from lora_train.core.config import SavePrecision, TrainSettings
from lora_train.core.errors import ConfigError, JobError, ModelError, TrainToolsError, WorkspaceError
from lora_train.core.grid_settings import GridSettings
from lora_train.core.host import Host, NoHost
from lora_train.core.inspection import Inspection, inspect_file
from lora_train.core.jobs import JobFolder, JobStatus, Request, StatusReader
from lora_train.core.limits import lift_reached_limits
from lora_train.core.memory import MemoryFacts, read_memory
from lora_train.core.names import folder_name
from lora_train.core.original import finished_train, path_of_title
from lora_train.core.sd_script_args import Effective
from lora_train.core.settings import check_settings, parse_settings
from lora_train.core.specs import CompareSpec, JobSpec, PreviewSpec, TrainSpec
from lora_train.core.workspace import Workspace
from lora_train.data.tokens import has_tokenizer, token_count
from lora_train.launch import launcher
from lora_train.launch.queue import JobQueue


class App:
    """The use cases, over one workspace, within one host."""

    def __init__(self, workspace: Workspace, host: Host | None = None) -> None:
        self.workspace = workspace
        self.host = host = host or NoHost()
        workspace.path_of_title = lambda title: path_of_title(title, host.base_models())
        watch = Watch()
        jobs = JobQueue(workspace.root)
        self.tasks = Tasks()
        self.settings = VersionSettings(workspace)
        self.datasets = Datasets(workspace, host, jobs, watch)
        in_use = InUse(workspace, jobs, watch, self.datasets.is_updating)
        self.proofs = Proofs(workspace, host, jobs, in_use, watch)
        self.loras = Loras(workspace, host, watch, self.proofs)
        self.health = Health(workspace, self.datasets, watch, token_count if has_tokenizer() else None)
        self.captioning = Captioning(workspace, host, self.datasets, watch)
        self.datasets.captions = self.captioning
        self.captions = Captions(workspace, self.datasets)
        self.projects = Projects(workspace, in_use, self.loras.told_of_changes)
        self.training = Training(workspace, host, jobs, self.datasets, self.loras, in_use, watch)
        self.base_models = self.training.base_models
        self.optimizers = self.training.optimizers
        self.presets = Presets(workspace, self.training)
        self.regularisation = Regularisation(workspace, jobs, self.datasets, self.training, in_use, watch)
        self.grids = Grids(workspace, host, jobs, self.training, in_use, watch)
        self.judging = Judging(workspace, host, jobs, self.datasets, in_use, watch)
        self.history = History(workspace, host, jobs, self.datasets, in_use, watch)
        self.reports = Reports(workspace, watch)
        self.queue = Queue(workspace, jobs)
        self.doctor = Doctor(workspace, host)
        self.sweeps = Sweeps(workspace, jobs, self.training, self.presets, self.loras, self.judging, watch)
        self._background = Background(workspace, host, jobs, self.loras, self.sweeps, self.judging, self.proofs)

    def start_background(self) -> None:
        """Begin to work the queue off, in a thread of this process; once is enough, twice does no harm.

        What is shown first is read ahead meanwhile: of a large dataset that takes a while.
        """
        self._background.start()
        threading.Thread(target=self._read_ahead, name="train-tools-ahead", daemon=True).start()

    def _read_ahead(self) -> None:
        with suppress(TrainToolsError, OSError):  # whoever looks at it is told
            shown = self.projects.selection()
            if shown.version and (found := self.snapshot(shown.project, shown.version)).dataset.pictures:
                self.training.forecast(shown.project, shown.version)
                self.captions.view(shown.project, shown.version)
                self.health.report(found.selection.project, found.selection.version)

    def stop_background(self) -> None:
        """Work off nothing more. A worker that runs goes on, and is found again by the next start."""
        self._background.stop()

    def existing(self, project: str, version: str) -> Selection:
        """What is to be shown; no version where there is no such one."""
        try:
            self.workspace.find_version(project, version)
        except WorkspaceError:
            return Selection(project)
        return Selection(project, version)

    def snapshot(self, project: str, version: str, train: str = "") -> Snapshot:
        """All that the live part of the page shows; an empty one for a version that does not exist."""
        if not self.existing(project, version).version:
            return Snapshot(Selection(project), queue=self.queue.entries(), loras_revision=self.loras.revision)
        found = self.workspace.find_version(project, version)
        trains = self.training.list(project, version)
        shown = self.training.choose(trains, train)
        return Snapshot(
            Selection(project, version),
            project_name=found.project.info().name,
            version_name=found.info().name,
            notes=self.settings.notes(project, version),
            dataset=self.datasets.snapshot(project, version),
            trains=trains,
            shown=shown,
            curve=self.training.curve(shown.job) if shown else [],
            validations=self.training.validations(shown.job) if shown else [],
            log_tail=self.training.log(shown.job) if shown else "",
            queue=self.queue.entries(),
            foreign=self.queue.foreign(found),
            loras_revision=self.loras.revision,
        )

    # --- training from the command line ---

    def plan_train(
        self, *, name: str, images: Path, values: Mapping[str, Any], publish_to: Path | None = None, preset: str = ""
    ) -> PlannedTrain:
        """Take pictures into the project `name`, version `v1`, and write a training job; nothing runs yet.

        `values` win over those of the preset. Raises ConfigError with all wrong settings at once, DatasetError,
        ModelError or WorkspaceError, JobError while the version's pictures are needed as they are or made anew; no job
        is then left behind.
        """
        from lora_train.data.dataset import scan_dataset  # numpy and Pillow: not for `--help`
        from lora_train.data.intake import take_in

        values, family = self.presets.under(preset, values, TrainSettings()) if preset else (values, "sd1")
        written, effective = _parse_all(name, images, values, publish_to)
        settings = effective.settings
        facts = check_training(settings)
        settings = with_threads(settings, facts)
        check_disk(self.workspace.root, settings, facts)
        found = scan_dataset(images)
        version = self.workspace.project(name).version("v1")
        self.datasets.require_unused(version)
        if self.datasets.is_updating(version):
            raise JobError("The dataset is being updated: wait a moment.")
        take_in(
            found,
            origin_dir=version.origin_dir,
            processed_dir=version.dataset_dir,
            trash_dir=self.workspace.trash_dir,
            concept=name,
        )
        dataset = scan_dataset(version.dataset_dir, repeats=settings.repeats)
        dataset = with_chosen_repeats(dataset, settings, facts)
        plan = plan_job(version, dataset, settings, facts, lora_root=publish_to, publish_to=publish_to)
        self.settings.save(version.project.path.name, version.path.name, train=msgspec.structs.asdict(written))
        if preset:
            self.presets.note(version, preset, family, TrainSettings())
        return with_warnings(msgspec.structs.replace(plan, problems=found.problems), effective)

    def plan_version_train(
        self, *, name: str, version: str, values: Mapping[str, Any], publish_to: Path | None = None, preset: str = ""
    ) -> PlannedTrain:
        """A training job for the trained set of a version as it is, by `values` over the preset and saved settings.

        Raises as `plan_train`; WorkspaceError where there is no such version, JobError while its set is made anew.
        """
        from lora_train.data.dataset import scan_dataset

        selection = self.projects.find(name, version)
        found = self.workspace.find_version(selection.project, selection.version)
        before = written_settings(found)
        values, family = self.presets.under(preset, values, before) if preset else (values, "sd1")
        written = with_absolute_paths(parse_settings(values, before))
        effective = require_effective(written)
        settings = effective.settings
        facts = check_training(settings)
        settings = with_threads(settings, facts)
        check_disk(self.workspace.root, settings, facts)
        with self.workspace.changing():
            if self.datasets.is_updating(found):
                raise JobError("The dataset is being updated: wait a moment.")
            dataset = scan_dataset(found.dataset_dir, repeats=settings.repeats)
            dataset = with_chosen_repeats(dataset, settings, facts)
            plan = plan_job(found, dataset, settings, facts, lora_root=publish_to, publish_to=publish_to)
        self.settings.save(selection.project, selection.version, train=msgspec.structs.asdict(written))
        if preset:
            self.presets.note(found, preset, family, before)
        return with_warnings(msgspec.structs.replace(plan, problems=dataset.problems), effective)

    def start(self, job: JobFolder, processes: int = 1, card: str = "") -> launcher.Worker:
        """Start a job's worker, or let it go on from its last state. Raises JobError where that makes no sense.

        `processes`: so many on this machine share a training. `card` is the only one that the worker is to see.
        """
        spec = job.read_spec()
        status = launcher.read_status(job)
        if status.state == "finished":
            raise JobError(f"{job.path} is finished.", "Start a new training to go on learning.")
        if isinstance(spec, TrainSpec):
            check_training(spec.settings)
        job.clear_requests()
        lift_reached_limits(job.path, status.step)
        return launcher.start_worker(job, processes, card)

    def help_others(self) -> int:
        """Compute for the training that the first process of `accelerate launch` does; returns the exit code."""
        return launcher.help_others()

    def status(
        self, job: JobFolder, worker: launcher.Worker | None = None, reader: StatusReader | None = None
    ) -> JobStatus:
        """What the job does or did (see `launcher.read_status`). Raises JobError when the folder is none."""
        if (status := finished_train(job.path)) is not None:
            return status
        job.read_spec()
        return launcher.read_status(job, worker, reader)

    def memory(self, job: JobFolder) -> MemoryFacts | None:
        """How a training was fitted to its device; None for one that was not."""
        return read_memory(job.path)

    def worker_of(self, job: JobFolder) -> launcher.Worker | None:
        """The worker that this process started for the job; None for one that another process did."""
        return launcher.started_worker(job)

    def request(self, job: JobFolder, what: Request) -> None:
        """Ask a running job to stop or to pause. Raises JobError when it doesn't run."""
        job.read_spec()
        if not launcher.is_alive(job):
            raise JobError(f"{job.path} is not running; there is nothing to {what}.")
        job.request(what)

    def wait_for_end(self, job: JobFolder) -> None:
        """Wait until the worker of a job that has ended is gone, so that its memory is free."""
        launcher.wait_for_end(job)

    def kill(self, job: JobFolder) -> None:
        """End a job at once; at most the steps since its last state are lost."""
        launcher.kill_worker(job)

    def publish_result(self, job: JobFolder) -> Path | None:
        """Copy the best LoRA of an ended training to where its person wants it; None where that is nowhere."""
        return self.loras.publish_result(job)

    # --- other jobs ---

    def plan_preview(
        self,
        *,
        lora: Path,
        prompts: tuple[str, ...],
        weights: tuple[float, ...],
        out: Path,
        values: Mapping[str, Any],
    ) -> JobFolder:
        """A job that draws prompts x weights with a finished LoRA into one grid."""
        settings = with_absolute_paths(
            parse_settings({**values, "preview_prompts": prompts, "preview_weights": weights})
        )
        facts = check_base_model(settings)
        if not prompts:
            raise ConfigError(["prompt: give at least one"])
        if not lora.is_file():
            raise ModelError(f"{lora} does not exist.", "Give the path of a .safetensors LoRA.")
        if out.suffix.lower() != ".png":
            raise ConfigError([f"out: {out} does not end with .png"])
        spec = PreviewSpec(
            lora=str(lora.absolute()),
            out=str(out.absolute()),
            settings=with_threads(settings, facts),
        )
        return self._new_job("preview", spec)

    def plan_grid(self, *, loras: Sequence[Path], grid: Mapping[str, Any], values: Mapping[str, Any]) -> JobFolder:
        """A job that draws finished LoRAs by lists of values, `grid` being those of GridSettings that are given.

        Raises as `plan_grid_job`.
        """
        lists, problems = check_settings(grid, GridSettings())
        if problems:
            raise ConfigError(problems)
        spec = plan_grid_job(self.workspace, loras, lists, parse_settings(values), fallback_prompt="")
        return self._new_job("grid", spec)

    def plan_demo(self) -> PlannedTrain:
        """The demo's training: the model and pictures that ship with the package."""
        return self.plan_train(name="demo", images=DEMO_PICTURES, values=presets.DEMO_SETTINGS)

    def plan_demo_comparison(self, train: JobFolder) -> JobFolder:
        """A job that measures what the demo's LoRA changed."""
        spec = train.read_spec()
        assert isinstance(spec, TrainSpec)
        comparison = CompareSpec(
            lora=str(train.path / launcher.read_status(train).saved[-1]),
            prompts=presets.DEMO_PROMPTS,
            ordinary_prompts=presets.DEMO_ORDINARY_PROMPTS,
            pictures=str(DEMO_PICTURES),
            settings=spec.settings,
        )
        return self._new_job("compare", comparison)

    def plan_bench(self, *, values: Mapping[str, Any], pictures: int, steps: int) -> JobFolder:
        """A job that times some training steps. Raises as `bench_spec`."""
        return self._new_job("bench", bench_spec(values, pictures=pictures, steps=steps))

    def plan_count(self, *, values: Mapping[str, Any]) -> JobFolder:
        """A job that counts what a training step asks of a GPU. Raises as `count_spec`."""
        return self._new_job("count", count_spec(values))

    def plan_merge(
        self,
        *,
        loras: Sequence[Path],
        weights: Sequence[float],
        out: Path,
        rank: int = 0,
        keep: float = 0.0,
        precision: SavePrecision = "fp16",
    ) -> JobFolder:
        """A job that adds LoRAs up, or resizes one. Raises as `merging.merge_spec`."""
        spec = merge_spec(loras=loras, weights=weights, out=out, rank=rank, keep=keep, precision=precision)
        return self._new_job("merge", spec)

    def inspect(self, path: Path) -> Inspection:
        """What is in a checkpoint, LoRA, VAE or diffusers folder. Raises ModelError."""
        return inspect_file(path)

    def _new_job(self, kind: str, spec: JobSpec) -> JobFolder:
        job = JobFolder(self.workspace.new_job_dir(kind))
        job.create(spec)
        return job


def _parse_all(
    name: str, images: Path, values: Mapping[str, Any], publish_to: Path | None
) -> tuple[TrainSettings, Effective]:
    """The settings as given, and as they are used.

    Raises ConfigError with everything that is wrong with what the person gave, at once.
    """
    problems: list[str] = []
    try:
        folder_name(name)
    except WorkspaceError as error:
        problems.append(f"name: {error.message}")
    if not images.is_dir():
        problems.append(f"images: {images} is not a folder")
    if publish_to is not None and publish_to.exists() and not publish_to.is_dir():
        problems.append(f"publish_to: {publish_to} is not a folder")
    base_model = str(values.get("base_model", ""))
    if not base_model:
        problems.append("base_model (Train base model): none was chosen; give a checkpoint, a folder or 'demo'.")
    elif not resolve_base_model(base_model).exists():
        problems.append(f"base_model (Train base model): {base_model} does not exist")
    vae = str(values.get("vae", ""))
    if vae and not Path(vae).is_file():
        problems.append(f"vae (VAE): {vae} does not exist")
    continue_from = str(values.get("continue_from", ""))
    if continue_from and not Path(continue_from).is_file():
        problems.append(f"continue_from (Continue from LoRA): {continue_from} does not exist")
    try:
        settings = with_absolute_paths(parse_settings(values))
        effective = require_effective(settings)
    except ConfigError as error:
        raise ConfigError(problems + error.problems) from None
    if problems:
        raise ConfigError(problems)
    return settings, effective
