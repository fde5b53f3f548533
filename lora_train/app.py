"""One method for each thing a person can do. The page, the API and the command line call nothing else."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from lora_train import publish
from lora_train.core import presets
from lora_train.core.assets import DEMO_PICTURES, resolve_base_model
from lora_train.core.config import TrainSettings
from lora_train.core.errors import ConfigError, JobError, ModelError, WorkspaceError
from lora_train.core.families import (
    CheckpointFacts,
    detect_checkpoint,
    detect_folder,
    require_supported,
)
from lora_train.core.inspection import Inspection, inspect_file
from lora_train.core.jobs import (
    BenchSpec,
    CompareSpec,
    JobFolder,
    JobSpec,
    JobStatus,
    PreviewSpec,
    Request,
    StatusReader,
    TrainSpec,
)
from lora_train.core.settings import parse_settings
from lora_train.core.tensorfiles import read_tensor_file
from lora_train.core.workspace import Version, Workspace, folder_name
from lora_train.launch import launcher

_LORA_BYTES_PER_RANK = 1_200_000
"""Of an SD1 LoRA in fp16, per rank; its state in float32 with two moments is six times as much."""
_CONV_BYTES_PER_RANK = 2_200_000
_SPARE_BYTES = 200_000_000
_PUBLISHABLE = ("finished", "stopped")


class PlannedTrain(msgspec.Struct):
    """A training that is ready to start: its folder, and what it will do."""

    job: JobFolder
    total_steps: int
    problems: tuple[str, ...]
    """What was wrong with single pictures; they are left out."""


class App:
    """The use cases, over one workspace."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace

    # --- training ---

    def plan_train(
        self, *, name: str, images: Path, values: Mapping[str, Any], publish_to: Path | None = None
    ) -> PlannedTrain:
        """Take pictures into the project `name`, version `v1`, and write a training job; nothing runs yet.

        Raises ConfigError with all wrong settings at once, DatasetError, ModelError or WorkspaceError; no job is then
        left behind.
        """
        from lora_train.data.dataset import fingerprint, scan_dataset  # numpy and Pillow: not for `--help`
        from lora_train.data.epochs import total_steps
        from lora_train.data.intake import take_in
        from lora_train.data.plan import make_planner, place_in_buckets

        settings = _parse_all(name, images, values, publish_to)
        facts = check_base_model(settings)
        settings = _with_threads(settings, facts)
        self._check_disk(settings)
        found = scan_dataset(images)
        version = self.workspace.project(name).version("v1")
        take_in(
            found,
            origin_dir=version.origin_dir,
            processed_dir=version.dataset_dir,
            trash_dir=self.workspace.trash_dir,
            concept=name,
        )
        taken = publish.stems_in(publish_to) if publish_to is not None and publish_to.is_dir() else ()
        stem = self.workspace.free_stem(version.stem(), taken)
        dataset = scan_dataset(version.dataset_dir, repeats=settings.repeats)
        buckets = place_in_buckets(
            dataset,
            settings,
            resolution_px=presets.native_resolution_px(facts.model_channels),
            step_px=presets.bucket_step_px(facts.model_channels),
        )
        planner = make_planner(dataset, buckets, settings, name)
        steps = total_steps(planner, settings.epochs, settings.gradient_accumulation_steps)
        job = JobFolder(version.trains_dir / stem)
        job.create(
            TrainSpec(
                name=stem,
                dataset=os.path.relpath(version.dataset_dir, job.path),
                dataset_fingerprint=fingerprint(dataset),
                trash=os.path.relpath(self.workspace.trash_dir, job.path),
                settings=settings,
                concept=name,
                publish_to=str(publish_to.absolute()) if publish_to is not None else "",
                created=time.time(),
                version=version.info().name,
            )
        )
        self._remember_settings(version, settings)
        return PlannedTrain(job=job, total_steps=steps, problems=found.problems)

    def start(self, job: JobFolder) -> launcher.Worker:
        """Start a job's worker, or let it go on from its last state. Raises JobError where that makes no sense."""
        spec = job.read_spec()
        state = launcher.read_status(job).state
        if state == "finished":
            raise JobError(f"{job.path} is finished.", "Start a new training to go on learning.")
        if isinstance(spec, TrainSpec):
            check_base_model(spec.settings)
        return launcher.start_worker(job)

    def status(
        self, job: JobFolder, worker: launcher.Worker | None = None, reader: StatusReader | None = None
    ) -> JobStatus:
        """What the job does or did (see `launcher.read_status`). Raises JobError when the folder is none."""
        job.read_spec()
        return launcher.read_status(job, worker, reader)

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
        """Copy the last LoRA of an ended training to where its person wants it; None where that is nowhere."""
        spec = job.read_spec()
        status = launcher.read_status(job)
        if not isinstance(spec, TrainSpec) or not spec.publish_to or not status.saved:
            return None
        if status.state not in _PUBLISHABLE:
            return None
        lora = job.path / status.saved[-1]
        singles = [path for path in status.sampled if not path.endswith("-grid.png")]
        own = [path for path in singles if Path(path).name.startswith(f"{lora.stem}-p1-")]
        return publish.publish(
            lora,
            Path(spec.publish_to),
            thumbnail=job.path / max(own, key=_preview_weight) if own else None,
            description=f"{spec.concept} {spec.version}, {status.step} steps",
        )

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
        settings = _with_absolute_paths(
            parse_settings({**values, "preview_prompts": prompts, "preview_weights": weights})
        )
        facts = check_base_model(settings)
        if not prompts:
            raise ConfigError(["prompt: give at least one"])
        if not lora.is_file():
            raise ModelError(f"{lora} does not exist.", "Give the path of a .safetensors LoRA.")
        spec = PreviewSpec(
            lora=str(lora.absolute()),
            out=str(out.absolute()),
            settings=_with_threads(settings, facts),
        )
        return self._new_job("preview", spec)

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
        """A job that times some training steps. The base model "sd15" is the full-size one with random weights."""
        problems = [
            f"{name}: {number} is not a whole number from 1 to 1000"
            for name, number in (("pictures", pictures), ("steps", steps))
            if not 1 <= number <= 1000
        ]
        if problems:
            raise ConfigError(problems)
        settings = parse_settings(values)
        if settings.base_model != "sd15":
            settings = _with_absolute_paths(settings)
            settings = _with_threads(settings, check_base_model(settings))
        else:
            settings = _with_threads(settings, None)
        return self._new_job("bench", BenchSpec(settings=settings, pictures=pictures, steps=steps))

    def inspect(self, path: Path) -> Inspection:
        """What is in a checkpoint, LoRA, VAE or diffusers folder. Raises ModelError."""
        return inspect_file(path)

    def _new_job(self, kind: str, spec: JobSpec) -> JobFolder:
        job = JobFolder(self.workspace.new_job_dir(kind))
        job.create(spec)
        return job

    def _check_disk(self, settings: TrainSettings) -> None:
        """Raise WorkspaceError unless the LoRAs and two states fit onto the disk."""
        saves = 1 + (settings.epochs // settings.save_every_epochs if settings.save_every_epochs else 0)
        lora_bytes = settings.rank * _LORA_BYTES_PER_RANK + settings.conv_rank * _CONV_BYTES_PER_RANK
        lora_bytes *= 2 if settings.save_precision == "fp32" else 1
        needed = saves * lora_bytes + 3 * 6 * lora_bytes + _SPARE_BYTES
        existing = next(path for path in (self.workspace.root, *self.workspace.root.parents) if path.exists())
        free = shutil.disk_usage(existing).free
        if free < needed:
            raise WorkspaceError(
                f"The disk of {self.workspace.root} has {free / 1e9:.1f} GB free; this training may need "
                f"{needed / 1e9:.1f} GB ({saves} LoRAs of {lora_bytes / 1e6:.0f} MB and two resumable states).",
                "Free some space, save less often, or choose a lower rank.",
            )

    def _remember_settings(self, version: Version, settings: TrainSettings) -> None:
        info = version.info()
        info.train = msgspec.to_builtins(settings)
        version.write_info(info)


def _parse_all(name: str, images: Path, values: Mapping[str, Any], publish_to: Path | None) -> TrainSettings:
    """The settings. Raises ConfigError with everything that is wrong with what the person gave, at once."""
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
        problems.append("base_model (Train base model): none was chosen; give a checkpoint, a folder or 'demo'")
    elif not resolve_base_model(base_model).exists():
        problems.append(f"base_model (Train base model): {base_model} does not exist")
    vae = str(values.get("vae", ""))
    if vae and not Path(vae).is_file():
        problems.append(f"vae (VAE): {vae} does not exist")
    try:
        settings = parse_settings(values)
    except ConfigError as error:
        raise ConfigError(problems + error.problems) from None
    if problems:
        raise ConfigError(problems)
    return _with_absolute_paths(settings)


def _with_absolute_paths(settings: TrainSettings) -> TrainSettings:
    """The worker runs in another folder."""
    absolute = {
        name: str(Path(value).absolute())
        for name in ("base_model", "vae")
        if (value := getattr(settings, name)) and value != "demo"
    }
    return msgspec.structs.replace(settings, **absolute)


def _preview_weight(path: str) -> float:
    """The LoRA weight in a preview's name, `<stem>-p1-w0.6.png`."""
    return float(path.rpartition("-w")[2].removesuffix(".png"))


def check_base_model(settings: TrainSettings) -> CheckpointFacts:
    """What the base model's header tells. Raises ConfigError or ModelError when it can't be trained on."""
    if not settings.base_model:
        raise ConfigError(["base_model (Train base model): none was chosen; give a checkpoint or 'demo'"])
    path = resolve_base_model(settings.base_model)
    if not path.exists():
        raise ModelError(f"{path} does not exist.", "Check the path of the base model.")
    if settings.vae and not Path(settings.vae).is_file():
        raise ModelError(f"{settings.vae} does not exist.", "Check the path of the VAE.")
    facts = detect_folder(path) if path.is_dir() else detect_checkpoint(read_tensor_file(path).tensors)
    require_supported(facts, path)
    return facts


def _with_threads(settings: TrainSettings, facts: CheckpointFacts | None) -> TrainSettings:
    """The number of CPU threads is fixed in the job: results on a CPU depend on it, and a resume must equal."""
    if settings.cpu_threads:
        return settings
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    channels = facts.model_channels if facts is not None else None
    return msgspec.structs.replace(settings, cpu_threads=presets.cpu_threads(channels, cores))
