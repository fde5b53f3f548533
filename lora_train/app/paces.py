"""How fast trainings and drawing went on this machine, to tell how long the next ones will take."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from lora_train.core.config import TrainSettings
from lora_train.core.events import Event, Phase, Started, Step
from lora_train.core.grids import work_steps
from lora_train.core.jobs import JobStatus
from lora_train.core.judgement import JUDGING
from lora_train.core.memory import MemoryFacts
from lora_train.core.records import read_json, write_json
from lora_train.core.specs import DRAWING_REGULARISATION, GridSpec, JudgeSpec, RegularisationSpec, TrainSpec

_FEWEST_STEPS = 10
"""Before, the time of a step is that of warming up."""


class Pace(msgspec.Struct, frozen=True):
    """How fast a training went."""

    s_per_step: float
    start_s: float | None = None
    """Everything beside the steps of one start: loading, encoding, saving; None where it was not measured."""
    steps: int = 0
    """Of the start that was measured."""


class _Paces(msgspec.Struct):
    """`paces.json`: what decides the time of a step -> seconds of the last training that was like it."""

    s_per_step: dict[str, float] = {}
    start_s: dict[str, float] = {}
    s_per_picture: dict[str, float] = {}
    s_per_megapixel_step: dict[str, float] = {}
    """Of pictures that were drawn for grids: the time grows about as their area and their sampling steps do."""
    s_per_judged: dict[str, float] = {}


class _GridResult(msgspec.Struct):
    """What of the result of such a job is needed here."""

    s_per_picture_step: Annotated[float, Meta(gt=0)]
    width_px: Annotated[int, Meta(ge=1)]
    height_px: Annotated[int, Meta(ge=1)]


def with_tried_pace(status: JobStatus, memory: MemoryFacts | None) -> JobStatus:
    """Of a training that runs and has no pace of its own yet, with the one that its trial on the device measured."""
    tried = memory.fitting if memory is not None else None
    if status.state != "running" or status.s_per_step is not None or tried is None or not tried.s_per_step:
        return status
    left_s = (status.total_steps - status.step) * tried.s_per_step
    return replace(status, s_per_step=tried.s_per_step, eta_s=left_s if status.total_steps else None)


def remember_pace(
    root: Path, spec: TrainSpec, status: JobStatus, measured: Pace | None = None, tried_s_per_step: float = 0.0
) -> None:
    """Keep the seconds per step that a training had in the end, and those of its start, for trainings that are like it
    in everything, and for those that are so in what matters most.

    Of one that was ended early, the steps of its trial count, where it had one.
    """
    s_per_step = status.s_per_step if status.step >= _FEWEST_STEPS else tried_s_per_step
    if not s_per_step:
        return
    paces = _read(root)
    for key in _keys(spec.settings):
        paces.s_per_step[key] = s_per_step
        if measured is not None and measured.start_s is not None:
            paces.start_s[key] = measured.start_s
    write_json(root / "paces.json", paces)


def expected_pace(root: Path, settings: TrainSettings) -> Pace | None:
    """That of the last training like this one; None where there was none."""
    paces = _read(root)
    for key in _keys(settings):
        if key in paces.s_per_step:
            return Pace(paces.s_per_step[key], paces.start_s.get(key))
    return None


def measured_pace(events: Iterable[Event]) -> Pace | None:
    """Of a training's last start, which has come to an end; None where it made no step."""
    started: Started | None = None
    stepping_s, steps, last_t = 0.0, 0, 0.0
    for event in events:
        last_t = event.t
        if isinstance(event, Step):
            stepping_s += event.s_per_step
            steps += 1
        elif isinstance(event, Started) and event.step is None:
            started, stepping_s, steps = event, 0.0, 0
    if started is None or not steps:
        return None
    return Pace(stepping_s / steps, max(0.0, last_t - started.t - stepping_s), steps)


def remember_drawing_pace(root: Path, spec: RegularisationSpec, events: Iterable[Event]) -> None:
    """Keep the seconds per picture that a job took, also one that was stopped."""
    _remember(root, "s_per_picture", spec.settings, _pace(events, DRAWING_REGULARISATION))


def expected_s_per_picture(root: Path, settings: TrainSettings) -> float | None:
    """Seconds per picture of the last drawing like this one; None where there was none."""
    return _read(root).s_per_picture.get(_drawing_key(settings))


def remember_grid_pace(root: Path, spec: GridSpec, status: JobStatus) -> None:
    """Keep what a finished job measured: seconds for a sampling step of one picture, and the picture's size."""
    try:
        told = msgspec.convert(status.result, _GridResult)
    except msgspec.ValidationError:  # it drew nothing, or did not come to its end
        return
    paces = _read(root)
    megapixels = told.width_px * told.height_px / 1e6
    paces.s_per_megapixel_step[_grid_key(spec.settings, spec.grid.drawn_by)] = told.s_per_picture_step / megapixels
    write_json(root / "paces.json", paces)


def expected_grid_s(root: Path, spec: GridSpec, area_px: int) -> float | None:
    """Seconds for all pictures of a job, of such a size; None before any was drawn so."""
    pace = _read(root).s_per_megapixel_step.get(_grid_key(spec.settings, spec.grid.drawn_by))
    return None if pace is None else pace * area_px / 1e6 * work_steps(spec)


def remember_judging_pace(root: Path, spec: JudgeSpec, events: Iterable[Event]) -> None:
    """Keep the seconds per picture, drawn and measured, that a judge took, also one that was stopped."""
    _remember(root, "s_per_judged", spec.settings, _pace(events, JUDGING))


def expected_judging_s(root: Path, settings: TrainSettings, pictures: int) -> float | None:
    """Seconds for so many pictures, as the last judge like this one took, or else as drawing alone would; None where
    there was neither.
    """
    pace = _read(root).s_per_judged.get(_drawing_key(settings))
    pace = expected_s_per_picture(root, settings) if pace is None else pace
    return None if pace is None else pace * pictures


def _pace(events: Iterable[Event], phase: str) -> float | None:
    """Seconds for each `done` of a phase; None where nothing was done in it, or nobody knows how long it took."""
    told = [event for event in events if isinstance(event, Phase) and event.name == phase]
    if not told or told[-1].done <= told[0].done:
        return None
    took_s = told[-1].t - told[0].t
    return took_s / (told[-1].done - told[0].done) if took_s > 0 else None  # the clock may have been put back


def _remember(
    root: Path, what: Literal["s_per_picture", "s_per_judged"], settings: TrainSettings, pace: float | None
) -> None:
    if pace is None:
        return
    paces = _read(root)
    getattr(paces, what)[_drawing_key(settings)] = pace
    write_json(root / "paces.json", paces)


def _read(root: Path) -> _Paces:
    return read_json(root / "paces.json", _Paces, _Paces())


def _keys(settings: TrainSettings) -> tuple[str, str]:
    """With everything that has an influence, then with what has the most.

    The base model's size is not known to other files of it: its name stands for it.
    """
    most = (
        Path(settings.base_model).name,
        settings.resolution,
        settings.batch_size,
        settings.gradient_accumulation_steps,
        settings.train_text_encoder,
        settings.train_sdxl_text_encoders,
        settings.gradient_checkpointing,
        settings.precision,
        settings.device,
    )
    saving = (settings.base_weights, settings.offload_share)
    if saving != ("full", 0.0):  # without, the keys of earlier releases are still found
        most = (*most, *saving)
    more = (*most, settings.optimizer, settings.rank, settings.conv_rank, settings.max_tokens)
    return "|".join(map(str, more)), "|".join(map(str, most))


def _grid_key(settings: TrainSettings, drawn_by: str) -> str:
    return "|".join((Path(settings.base_model).name, settings.precision, settings.device, drawn_by))


def _drawing_key(settings: TrainSettings) -> str:
    parts = (
        Path(settings.base_model).name,
        settings.preview_size_px,
        settings.preview_sampler,
        settings.preview_steps,
        settings.precision,
        settings.device,
    )
    return "|".join(str(part) for part in parts)
