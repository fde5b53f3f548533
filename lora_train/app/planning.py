"""From settings and a version's dataset to a training job: checked, counted, written; nothing runs yet."""

from __future__ import annotations

import os
import shutil
import time
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from lora_train import publish
from lora_train.core import presets
from lora_train.core.assets import resolve_base_model
from lora_train.core.checkpoints import read_checkpoint, require_supported, with_choices
from lora_train.core.config import TrainSettings
from lora_train.core.errors import ConfigError, ModelError, WorkspaceError
from lora_train.core.families import CheckpointFacts
from lora_train.core.jobs import JobFolder, TrainSpec
from lora_train.core.workspace import Version

if TYPE_CHECKING:
    from lora_train.data.dataset import Dataset
    from lora_train.data.epochs import Bucket, EpochPlanner

_LORA_BYTES_PER_RANK = {"sd1": 1_350_000, "sd2": 1_900_000, "sdxl": 7_300_000}
_CONV_BYTES_PER_RANK = {"sd1": 1_100_000, "sd2": 1_100_000, "sdxl": 720_000}
"""Of a LoRA in fp16 with text encoders, per rank, and per convolution rank; its state in float32 with two moments is
six times as much."""
_SPARE_BYTES = 200_000_000


class PlannedTrain(msgspec.Struct):
    """A training that is ready to start: its folder, and what it will do."""

    job: JobFolder
    total_steps: int
    problems: tuple[str, ...]
    """What was wrong with single pictures; they are left out."""


def plan_job(
    version: Version,
    dataset: Dataset,
    settings: TrainSettings,
    facts: CheckpointFacts,
    *,
    lora_root: Path | None,
    publish_to: Path | None,
) -> PlannedTrain:
    """Write the job that trains `settings` on a version's trained set, under a name that no LoRA has yet."""
    from lora_train.data.dataset import fingerprint

    workspace = version.project.workspace
    concept = version.project.info().name
    taken = publish.stems_in(lora_root) if lora_root is not None and lora_root.is_dir() else ()
    stem = workspace.free_stem(version.stem(), taken)
    job = JobFolder(version.trains_dir / stem)
    job.create(
        TrainSpec(
            name=stem,
            dataset=os.path.relpath(version.dataset_dir, job.path),
            dataset_fingerprint=fingerprint(dataset),
            trash=os.path.relpath(workspace.trash_dir, job.path),
            settings=settings,
            concept=concept,
            publish_to=str(publish_to.absolute()) if publish_to is not None else "",
            created=time.time(),
            version=version.info().name,
        )
    )
    steps = count_steps(make_plan(dataset, settings, facts, concept), settings)
    return PlannedTrain(job=job, total_steps=steps, problems=dataset.problems)


def make_plan(dataset: Dataset, settings: TrainSettings, facts: CheckpointFacts, concept: str) -> EpochPlanner:
    """The plan of all epochs, as the loop will make it too."""
    from lora_train.data.plan import make_planner

    return make_planner(dataset, choose_buckets(dataset, settings, facts), settings, concept)


def choose_buckets(dataset: Dataset, settings: TrainSettings, facts: CheckpointFacts) -> list[Bucket]:
    """The size that each picture is trained at. Raises DatasetError where the resolution is too small for any."""
    from lora_train.data.plan import place_in_buckets

    return place_in_buckets(
        dataset,
        settings,
        resolution_px=presets.native_resolution_px(facts),
        step_px=presets.bucket_step_px(facts.model_channels),
    )


def count_steps(plan: EpochPlanner, settings: TrainSettings) -> int:
    from lora_train.data.epochs import total_steps

    return total_steps(plan, settings.epochs, settings.gradient_accumulation_steps)


def check_disk(root: Path, settings: TrainSettings, facts: CheckpointFacts) -> None:
    """Raise WorkspaceError unless the LoRAs and two states fit onto the disk."""
    saves = 1 + (settings.epochs // settings.save_every_epochs if settings.save_every_epochs else 0)
    family = facts.family.removesuffix("-inpaint")
    lora_bytes = settings.rank * _LORA_BYTES_PER_RANK[family] + settings.conv_rank * _CONV_BYTES_PER_RANK[family]
    lora_bytes *= 2 if settings.save_precision == "fp32" else 1
    needed = saves * lora_bytes + 3 * 6 * lora_bytes + _SPARE_BYTES
    existing = next(path for path in (root, *root.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise WorkspaceError(
            f"The disk of {root} has {free / 1e6:,.0f} MB free; this training may need "
            f"{needed / 1e6:,.0f} MB ({saves} LoRAs of {lora_bytes / 1e6:.0f} MB and two resumable states).",
            "Free some space, save less often, or choose a lower rank.",
        )


def with_absolute_paths(settings: TrainSettings) -> TrainSettings:
    """The worker runs in another folder."""
    absolute = {
        name: str(Path(value).absolute())
        for name in ("base_model", "vae")
        if (value := getattr(settings, name)) and value != "demo"
    }
    return msgspec.structs.replace(settings, **absolute)


def check_base_model(settings: TrainSettings) -> CheckpointFacts:
    """What the base model is, with the prediction that training will use.

    Raises ConfigError or ModelError when it can't be trained on.
    """
    if not settings.base_model:
        raise ConfigError(["base_model (Train base model): none was chosen; give a checkpoint or 'demo'"])
    path = resolve_base_model(settings.base_model)
    if not path.exists():
        raise ModelError(f"{path} does not exist.", "Check the path of the base model.")
    if settings.vae and not Path(settings.vae).is_file():
        raise ModelError(f"{settings.vae} does not exist.", "Check the path of the VAE.")
    facts = read_checkpoint(path) if path.is_dir() else _read_header(path, _changed_ns(path), path.stat().st_size)
    require_supported(facts, path)
    return with_choices(facts, settings.prediction, settings.zero_terminal_snr)


def _changed_ns(checkpoint: Path) -> tuple[int, ...]:
    """When a checkpoint was changed, and the yaml beside it where there is one."""
    yaml = checkpoint.with_suffix(".yaml")
    return tuple(path.stat().st_mtime_ns for path in (checkpoint, yaml) if path.is_file())


@lru_cache(maxsize=64)
def _read_header(path: Path, mtimes_ns: tuple[int, ...], size_bytes: int) -> CheckpointFacts:  # noqa: ARG001
    """The header of a large checkpoint takes a while, and the page's sum asks for it every second."""
    return read_checkpoint(path)


def with_threads(settings: TrainSettings, facts: CheckpointFacts | None) -> TrainSettings:
    """The number of CPU threads is fixed in the job: results on a CPU depend on it, and a resume must equal."""
    if settings.cpu_threads:
        return settings
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    channels = facts.model_channels if facts is not None else None
    return msgspec.structs.replace(settings, cpu_threads=presets.cpu_threads(channels, cores))
