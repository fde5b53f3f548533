"""From settings and a version's dataset to a training job: checked, counted, written; nothing runs yet."""

from __future__ import annotations

import os
import shutil
import time
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from lora_train import publish
from lora_train.app.made_from import note_origin
from lora_train.core import presets
from lora_train.core.assets import resolve_base_model
from lora_train.core.checkpoints import read_checkpoint, require_supported, with_choices
from lora_train.core.config import TrainSettings
from lora_train.core.errors import ConfigError, DatasetError, ModelError, TrainToolsError, WorkspaceError
from lora_train.core.families import FAMILY_LABELS, CheckpointFacts, Family
from lora_train.core.files import relative_path
from lora_train.core.inspection import inspect_file
from lora_train.core.jobs import JobFolder
from lora_train.core.lora_files import plain_lora_modules
from lora_train.core.optimizers import absent_problem, is_absent, optimizer_warnings
from lora_train.core.ranks import ranks_of
from lora_train.core.sd_script_args import Effective, effective_settings
from lora_train.core.specs import TrainSpec
from lora_train.core.tensorfiles import read_tensor_file
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
    held_out: int = 0
    """Pictures that are measured, not trained."""
    warnings: tuple[str, ...] = ()
    """Settings that the sd_script args have changed, and what is allowed, but hardly meant."""


def plan_job(
    version: Version,
    dataset: Dataset,
    settings: TrainSettings,
    facts: CheckpointFacts,
    *,
    lora_root: Path | None,
    publish_to: Path | None,
) -> PlannedTrain:
    """Write the job that trains `settings` on a version's trained set, under a name that no LoRA has yet.

    `dataset` has the repeats that are trained (see `with_chosen_repeats`).
    """
    from lora_train.data.dataset import fingerprint
    from lora_train.data.holding_out import held_out
    from lora_train.data.repeats import folder_repeats

    workspace = version.project.workspace
    concept = version.project.info().name
    taken = publish.stems_in(lora_root) if lora_root is not None and lora_root.is_dir() else ()
    stem = workspace.free_stem(version.stem(), taken)
    job = JobFolder(version.trains_dir / stem)
    held = held_out(dataset, settings)
    job.create(
        TrainSpec(
            name=stem,
            dataset=relative_path(version.dataset_dir, job.path),
            dataset_fingerprint=fingerprint(dataset),
            trash=relative_path(workspace.trash_dir, job.path),
            cache=relative_path(workspace.cache_dir, job.path),
            settings=settings,
            concept=concept,
            publish_to=str(publish_to.absolute()) if publish_to is not None else "",
            created=time.time(),
            version=version.info().name,
            held_out=held,
            folder_repeats=folder_repeats(dataset),
        )
    )
    note_origin(job, dataset)
    steps = count_steps(make_plan(dataset, settings, facts, concept), settings)
    picture_count = sum(not picture.is_regularisation for picture in dataset.pictures)
    return PlannedTrain(
        job=job,
        total_steps=steps,
        problems=dataset.problems,
        held_out=len(held),
        warnings=tuple(validation_warnings(settings, picture_count, len(held))),
    )


def with_chosen_repeats(dataset: Dataset, settings: TrainSettings, facts: CheckpointFacts | None = None) -> Dataset:
    """The dataset, which has the numbers of its folders, with the repeats that are trained (see `data.repeats`).

    `facts` are the base model's; without them they are read, and a model that can't be used counts as SD 1.x. A
    resolution that is too small for any picture chooses nothing: `make_plan` tells it.
    """
    from lora_train.data.holding_out import held_out, parted
    from lora_train.data.repeats import folder_repeats, with_aimed_repeats, with_folder_repeats

    if facts is None:
        facts = facts_or_usual(settings)
    trained, _ = parted(dataset, held_out(dataset, settings))
    try:
        aimed = with_aimed_repeats(trained, choose_buckets(trained, settings, facts), settings)
    except DatasetError:
        return dataset
    return with_folder_repeats(dataset, folder_repeats(aimed))


def facts_or_usual(settings: TrainSettings) -> CheckpointFacts:
    """The base model's; a model that can't be used counts as SD 1.x."""
    try:
        return check_base_model(msgspec.structs.replace(settings, vae=""))
    except (TrainToolsError, OSError):  # told beside the base model
        return CheckpointFacts("sd1")


def make_plan(dataset: Dataset, settings: TrainSettings, facts: CheckpointFacts, concept: str) -> EpochPlanner:
    """The plan of all epochs, as the loop will make it too."""
    from lora_train.data.holding_out import held_out, not_shown
    from lora_train.data.plan import make_planner

    shown = not_shown(dataset, held_out(dataset, settings))
    return make_planner(shown, choose_buckets(shown, settings, facts), settings, concept)


def validation_warnings(settings: TrainSettings, picture_count: int, held_out_count: int) -> list[str]:
    """A sentence for everything that was asked for and will not be, with so many pictures, of which so many are held
    out.
    """
    from lora_train.data.holding_out import LEAST_PICTURES

    warnings: list[str] = []
    if settings.hold_out > 0 and not held_out_count:
        warnings.append(
            f"No picture is held out: there are {picture_count}, and that is done from {LEAST_PICTURES} on."
            if picture_count < LEAST_PICTURES
            else "No picture is held out: too many of them belong together as pieces of one original."
        )
    if settings.early_stopping_patience and not held_out_count:
        warnings.append("Early stopping has no effect: no picture is held out.")
    return warnings


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


def capacity(settings: TrainSettings) -> str:
    """How much a LoRA of these settings can hold, in a few words."""
    if settings.continue_from:
        return f"continues {Path(settings.continue_from).stem}"
    return f"rank {settings.rank}"


def check_disk(root: Path, settings: TrainSettings, facts: CheckpointFacts) -> None:
    """Raise WorkspaceError unless the LoRAs and two states fit onto the disk."""
    needed = disk_needed(settings, facts)
    what = f"{needed.loras} LoRAs of {needed.lora_bytes / 1e6:.0f} MB and two resumable states"
    require_free_disk(root, "this training", needed.total_bytes, what)


class DiskNeeded(NamedTuple):
    loras: int
    lora_bytes: int
    total_bytes: int
    """With the resumable states."""


def disk_needed(settings: TrainSettings, facts: CheckpointFacts, *, more_loras: int = 0) -> DiskNeeded:
    """What a training may write; `more_loras` are saved beside those of its epochs."""
    loras = 1 + (settings.epochs // settings.save_every_epochs if settings.save_every_epochs else 0) + more_loras
    lora_bytes = _lora_bytes(settings, facts.family.removesuffix("-inpaint"))
    return DiskNeeded(loras, lora_bytes, loras * lora_bytes + 3 * 6 * lora_bytes)


def require_free_disk(root: Path, who: str, needed_bytes: int, what: str) -> None:
    """Raise WorkspaceError unless so much, and some to spare, is free on the disk of `root`."""
    existing = next(path for path in (root, *root.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed_bytes + _SPARE_BYTES:
        raise WorkspaceError(
            f"The disk of {root} has {free / 1e6:,.0f} MB free; {who} may need "
            f"{(needed_bytes + _SPARE_BYTES) / 1e6:,.0f} MB ({what}).",
            "Free some space, save less often, or choose a lower rank.",
        )


def require_room_for_pictures(root: Path, count: int, area_px: int) -> None:
    """Raise WorkspaceError unless so many pictures fit onto the disk, even if none can be compressed."""
    needed = count * area_px * 3 + _SPARE_BYTES
    existing = next(path for path in (root, *root.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise WorkspaceError(
            f"The disk of {root} has {free / 1e6:,.0f} MB free; {count} pictures may need {needed / 1e6:,.0f} MB.",
            "Free some space, or draw fewer.",
        )


def _lora_bytes(settings: TrainSettings, family: str) -> int:
    """At most so large is a LoRA of these settings."""
    if settings.continue_from:
        return 2 * Path(settings.continue_from).stat().st_size  # it may be in half precision, and we not
    ranks = ranks_of(settings)
    conv_rank, _ = ranks.pop("conv")
    rank = max(rank for rank, _ in ranks.values())
    lora_bytes = rank * _LORA_BYTES_PER_RANK[family] + conv_rank * _CONV_BYTES_PER_RANK[family]
    return lora_bytes * (2 if settings.save_precision == "fp32" else 1)


def require_effective(settings: TrainSettings) -> Effective:
    """The settings with the sd_script args over them. Raises ConfigError with everything that is wrong with them, or
    when the optimizer's package is not installed.
    """
    effective = effective_settings(settings)
    optimizer = effective.settings.optimizer
    problems = [*effective.problems, *([absent_problem(optimizer)] if is_absent(optimizer) else [])]
    if problems:
        raise ConfigError(problems)
    return effective


def with_warnings(plan: PlannedTrain, effective: Effective) -> PlannedTrain:
    return msgspec.structs.replace(
        plan, warnings=(*effective.overridden, *optimizer_warnings(effective.settings), *plan.warnings)
    )


def with_absolute_paths(settings: TrainSettings) -> TrainSettings:
    """The worker runs in another folder."""
    absolute = {
        name: str(Path(value).absolute())
        for name in ("base_model", "vae", "continue_from")
        if (value := getattr(settings, name)) and value != "demo"
    }
    return msgspec.structs.replace(settings, **absolute)


def check_base_model(settings: TrainSettings) -> CheckpointFacts:
    """What the base model is, with the prediction that training will use.

    Raises ConfigError or ModelError when it can't be trained on.
    """
    if not settings.base_model:
        raise ConfigError(["base_model (Train base model): none was chosen; give a checkpoint or 'demo'."])
    path = resolve_base_model(settings.base_model)
    if not path.exists():
        raise ModelError(f"{path} does not exist.", "Check the path of the base model.")
    if settings.vae and not Path(settings.vae).is_file():
        raise ModelError(f"{settings.vae} does not exist.", "Check the path of the VAE.")
    facts = read_checkpoint(path) if path.is_dir() else _read_header(path, _changed_ns(path), path.stat().st_size)
    require_supported(facts, path)
    return with_choices(facts, settings.prediction, settings.zero_terminal_snr)


def check_training(settings: TrainSettings) -> CheckpointFacts:
    """`check_base_model`, and the LoRA to continue from. Raises as that does."""
    facts = check_base_model(settings)
    check_continued_lora(settings, facts)
    return facts


def check_continued_lora(settings: TrainSettings, facts: CheckpointFacts) -> None:
    """Raise ModelError when the LoRA to continue from is not there, no plain LoRA, or of another family."""
    if not settings.continue_from:
        return
    path = Path(settings.continue_from)
    if not path.is_file():
        raise ModelError(f"{path} does not exist.", "Check the path of the LoRA to continue from.")
    family = lora_family(path)
    if "unknown" not in (family, facts.family) and family != facts.family.removesuffix("-inpaint"):
        raise ModelError(
            f"{path} is a LoRA for {FAMILY_LABELS.get(family, family)}, but the base model is of "
            f"{FAMILY_LABELS.get(facts.family, facts.family)}.",
            "Choose a LoRA and a base model of the same family.",
        )


def lora_family(path: Path) -> Family:
    """The family of a LoRA, as its header tells. Raises ModelError for what is no plain LoRA."""
    told = path.stat()
    return _read_lora_family(path, told.st_mtime_ns, told.st_size)


@lru_cache(maxsize=256)
def _read_lora_family(path: Path, mtime_ns: int, size_bytes: int) -> Family:  # noqa: ARG001
    """As the header tells; the page's sum and its results ask for it every second."""
    plain_lora_modules(read_tensor_file(path))
    lora = inspect_file(path).lora
    return lora.family if lora is not None else "unknown"


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
