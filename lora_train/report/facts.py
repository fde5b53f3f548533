"""All that a report tells of a training, read from its folder."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec

from lora_train.core.assets import resolve_base_model
from lora_train.core.config import TrainSettings
from lora_train.core.curve_table import CurveRow, curve_rows
from lora_train.core.errors import JobError
from lora_train.core.history import MadeFrom, PictureFacts, Versions, read_made_from, read_versions
from lora_train.core.history_differences import shown_setting
from lora_train.core.jobs import JobFolder, JobStatus, StatusReader
from lora_train.core.judgement import Judgement
from lora_train.core.memory import MemoryFacts, read_memory
from lora_train.core.recommendation import best_of, read_choice, read_judgement
from lora_train.core.settings import setting_fields
from lora_train.core.specs import TrainSpec
from lora_train.data.caption_tags import TagCount, count_tags
from lora_train.data.captions import common_tag

_MOST_TAGS = 40
_MOST_SIZES = 12
_TELLING = ("preview_prompts", "preview_negative_prompt", "trigger_word", "sd_script_args")
"""Settings that a private report leaves out as it does captions."""
_FOLDERS = re.compile(r"(?:[A-Za-z]:[\\/]|(?<![\w.])[\\/])(?=\S)[^\"'\n=]*[\\/]")
"""All before the last part of an absolute path."""


class SettingFact(msgspec.Struct, frozen=True):
    label: str
    value: str
    usual: str
    """The default."""


class LoraFact(msgspec.Struct, frozen=True):
    file: str
    step: int
    epoch: int
    size_bytes: int


class DatasetFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of the pictures, without their names."""

    trained: int
    held_out: int
    regularisation: int
    captions: int
    """Pictures that have one."""
    masks: int
    repeats: str
    """Say `10` or `5 to 20`."""
    sizes: tuple[tuple[str, int], ...]
    """`512×768` and how many pictures have it, the most frequent first."""
    more_sizes: int
    tags: tuple[TagCount, ...]


class ReportFacts(msgspec.Struct, kw_only=True):
    """A training, ready to be told."""

    name: str
    concept: str
    version: str
    created: float
    base_model: str
    status: JobStatus
    changed: list[SettingFact]
    """Settings that are not the default."""
    usual: list[SettingFact]
    dataset: DatasetFacts | None
    curve: list[CurveRow]
    loras: list[LoraFact]
    made_from: MadeFrom | None
    versions: Versions | None
    memory: MemoryFacts | None
    """How it was fitted to its device; None where it was not, or an earlier release trained it."""
    judgement: Judgement | None
    best: str
    """The file that is recommended or was chosen, else the last; empty where none was saved."""
    best_weight: float
    is_chosen: bool
    """Its person took another than the recommended one."""
    trigger: str
    """What calls it up in a prompt; empty in a private report."""
    is_private: bool


def read_facts(folder: Path) -> ReportFacts:
    """Raises JobError for what is no training of ours."""
    job = JobFolder(folder)
    spec = job.read_spec()
    if not isinstance(spec, TrainSpec):
        raise JobError(f"{job.path.name} is no training.")
    settings = spec.settings
    is_private = bool(settings.private_metadata or getattr(settings, "private_use", False))
    status = StatusReader(job).read()
    made = read_made_from(job.path)
    best = best_of(job, status.saved)
    loras = _loras(job.path, status)
    changed, usual = _settings(settings, is_private=is_private)
    captions = [p.caption for p in made.pictures if not p.is_regularisation] if made is not None else []
    return ReportFacts(
        name=spec.name,
        concept=spec.concept,
        version=spec.version,
        created=spec.created,
        base_model=resolve_base_model(settings.base_model).name,
        status=status,
        changed=changed,
        usual=usual,
        dataset=_dataset(made.pictures, is_private=is_private) if made is not None else None,
        curve=curve_rows(job.events_path),
        loras=loras,
        made_from=made,
        versions=read_versions(job.path),
        memory=read_memory(job.path),
        judgement=read_judgement(job, status.saved),
        best=best.file or (loras[-1].file if loras else ""),
        best_weight=best.weight,
        is_chosen=read_choice(job, status.saved) is not None,
        trigger="" if is_private else settings.trigger_word or common_tag(captions) or spec.concept,
        is_private=is_private,
    )


def without_folders(text: str) -> str:
    """The text with every absolute path cut down to its last part."""
    return _FOLDERS.sub("", text)


def _settings(settings: TrainSettings, *, is_private: bool) -> tuple[list[SettingFact], list[SettingFact]]:
    usual, changed, same = TrainSettings(), list[SettingFact](), list[SettingFact]()
    for field in setting_fields():
        if is_private and field.name in _TELLING:
            continue
        is_usual = getattr(settings, field.name) == field.default
        shown = without_folders(shown_setting(settings, field.name))
        fact = SettingFact(field.label, shown, shown_setting(usual, field.name))
        (same if is_usual else changed).append(fact)
    return changed, same


def _dataset(pictures: Sequence[PictureFacts], *, is_private: bool) -> DatasetFacts:
    own = [picture for picture in pictures if not picture.is_regularisation]
    trained = [picture for picture in own if not picture.is_held_out]
    repeats = sorted({picture.repeats for picture in trained})
    sizes = Counter(f"{picture.width_px}×{picture.height_px}" for picture in own).most_common()
    tags = [] if is_private else count_tags(picture.caption for picture in own)
    return DatasetFacts(
        trained=len(trained),
        held_out=len(own) - len(trained),
        regularisation=len(pictures) - len(own),
        captions=sum(bool(picture.caption.strip()) for picture in own),
        masks=sum(bool(picture.mask) for picture in own),
        repeats=str(repeats[0]) if len(repeats) == 1 else f"{repeats[0]} to {repeats[-1]}" if repeats else "0",
        sizes=tuple(sizes[:_MOST_SIZES]),
        more_sizes=max(0, len(sizes) - _MOST_SIZES),
        tags=tuple(tags[:_MOST_TAGS]),
    )


def _loras(folder: Path, status: JobStatus) -> list[LoraFact]:
    """Those that are still there, in the order of their saving."""
    return [
        LoraFact(file, status.step_of_file.get(file, 0), status.epoch_of_file.get(file, 0), path.stat().st_size)
        for file in status.saved
        if (path := folder / file).is_file()
    ]
