"""The judge job: every LoRA of a training at some weights, measured against its pictures and the base model."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
from PIL import Image

from lora_train.core.errors import DatasetError, JobError
from lora_train.core.events import Note, Phase
from lora_train.core.jobs import JobFolder, StatusReader
from lora_train.core.judgement import (
    BASE_MODEL,
    FILE_NAME,
    JUDGING,
    Judged,
    Judgement,
    pictures_to_draw,
    ranked,
    recommend,
    score_of,
)
from lora_train.core.records import read_json, write_json
from lora_train.core.specs import JudgeSpec, TrainSpec
from lora_train.data.dataset import scan_dataset
from lora_train.data.images import fit_to_bucket, open_picture
from lora_train.engine.copying import CopyFinder
from lora_train.engine.encoders import ClipClassifier, ClipEncoder, open_encoder
from lora_train.engine.features import FeatureReader, Reader
from lora_train.engine.judge_drawing import Drawing, JudgeDrawer
from lora_train.engine.likeness import Likeness, retention
from lora_train.engine.loading import BaseModel
from lora_train.engine.obedience import DiffusionClassifier, Explain, Obedience
from lora_train.engine.preview_job import attach_lora, load_for_drawing
from lora_train.engine.reporting import Reporter
from lora_train.engine.sample import draw_settings
from lora_train.engine.text import Prompts

_LEAST_GAP = 0.05
"""So much less than the pictures among themselves the base model's have to be alike: else there is nothing to learn."""


class _Measured(msgspec.Struct, frozen=True):
    """A row that is done, and the file it was measured from."""

    row: Judged
    changed_ns: int


class _Kept(msgspec.Struct):
    """`measured.json` in the job's folder: what a job that goes on needs not do again."""

    rows: list[_Measured] = []


class Pictures(NamedTuple):
    """The pictures of the trained set, without regularisation; names relative to it."""

    names: list[str]
    training: list[Image.Image]
    held_out: list[Image.Image]
    captions: list[str]


def judge(spec: JudgeSpec, job: JobFolder, report: Reporter) -> dict[str, object]:
    """Measure, and write `judgement.json` into the training's folder. Returns what it recommends.

    Raises JobError where the training or all of its LoRAs are gone, DatasetError where its pictures are.
    """
    train = JobFolder(job.path / spec.train)
    loras = [name for name in spec.loras if (train.path / name).is_file()]
    if not loras:
        raise JobError(f"None of the LoRAs that were to be judged is in {train.path} any more.", "Judge it again.")
    model, prompts = load_for_drawing(spec.settings, report)
    draw_with = draw_settings(spec.settings, model, spec.settings.resolution or model.native_resolution_px)
    report.phase("reading the pictures")
    pictures = _read_pictures(train, (draw_with.width_px, draw_with.height_px))
    texts = (spec.prompts or tuple(dict.fromkeys(pictures.captions)))[: spec.pictures]
    total = pictures_to_draw(len(loras), len(spec.weights), spec.pictures)
    drawer = JudgeDrawer(spec, texts, model, prompts, draw_with, train, report, total)
    reader, explain = _open_eyes(spec.encoder, model, prompts, texts)
    measures = Measures(reader, explain, pictures, drawer.draw("", 0.0), drawer)
    if not measures.obedience.is_known:
        report.events.write(Note("info", _OBEDIENCE_UNKNOWN))
    kept = _Rows(job)
    for lora in loras:
        _measure(train.path / lora, spec.weights, model, drawer, measures, kept)
    report.events.write(Phase(JUDGING, total, total))
    steps = StatusReader(train).read().step_of_file
    rows = [
        msgspec.structs.replace(row, step=steps.get(lora, 0))
        for lora in loras
        for row in kept.of(train.path / lora, spec.weights)
    ]
    return _conclude(rows, train, Path(spec.encoder).name or BASE_MODEL)


def _measure(
    lora: Path, weights: Sequence[float], model: BaseModel, drawer: JudgeDrawer, measures: Measures, kept: _Rows
) -> None:
    """Add the rows of one LoRA that are missing."""
    missing = [weight for weight in weights if kept.find(lora, weight) is None]
    drawer.skip(len(weights) - len(missing))
    if not missing:
        return
    network = attach_lora(model, lora)
    try:
        for weight in missing:
            network.multiplier = weight
            drawing = drawer.draw(lora.name, weight)
            network.multiplier = 0
            kept.add(measures.of(drawing, lora=lora.name, weight=weight), lora)
    finally:
        network.detach()


def _open_eyes(encoder: str, model: BaseModel, prompts: Prompts, texts: Sequence[str]) -> tuple[Reader, Explain]:
    """What looks at pictures, and what compares them with prompts: an encoder, as far as it can, or the base model."""
    reader = open_encoder(Path(encoder), model.device) if encoder else FeatureReader(model, prompts)
    if isinstance(reader, ClipEncoder):
        return reader, ClipClassifier(reader, texts)
    return reader, DiffusionClassifier(model, prompts, texts)


_OBEDIENCE_UNKNOWN = (
    "Obedience to the prompt could not be measured: the prompts are all the same, or the base model itself does not "
    "follow where they differ. It counts as kept."
)


def _conclude(rows: Sequence[Judged], train: JobFolder, encoder: str) -> dict[str, object]:
    best = recommend(rows)
    judgement = Judgement(
        rows=ranked(rows),
        lora=best.lora,
        weight=best.weight,
        reason=best.reason,
        encoder=encoder,
        made=time.time(),
    )
    write_json(train.path / FILE_NAME, judgement)
    return {"lora": best.lora, "weight": best.weight, "reason": best.reason, "judgement": str(train.path / FILE_NAME)}


class _Rows:
    """The rows that are done, on the disk after each."""

    def __init__(self, job: JobFolder) -> None:
        self._path = job.path / "measured.json"
        self._kept = read_json(self._path, _Kept, _Kept())

    def add(self, row: Judged, lora: Path) -> None:
        self._kept.rows.append(_Measured(row, lora.stat().st_mtime_ns))
        write_json(self._path, self._kept)

    def of(self, lora: Path, weights: Sequence[float]) -> list[Judged]:
        return [row for weight in weights if (row := self.find(lora, weight)) is not None]

    def find(self, lora: Path, weight: float) -> Judged | None:
        """None where it is missing, or was measured from another file of this name."""
        changed_ns = lora.stat().st_mtime_ns
        for own in self._kept.rows:
            if (own.row.lora, own.row.weight, own.changed_ns) == (lora.name, weight, changed_ns):
                return own.row
        return None


class Measures:
    """All measures of one training: what the base model draws and the pictures are, read once."""

    def __init__(
        self, reader: Reader, explain: Explain, pictures: Pictures, base: Drawing, drawer: JudgeDrawer
    ) -> None:
        self._reader = reader
        self._names = pictures.names
        self._ordinary_of = drawer.ordinary_of
        self._base_ordinary = reader.read(base.ordinary)
        base_concept = reader.read(base.concept)
        training = reader.read(pictures.training)
        likeness = Likeness(training, self._base_ordinary)
        self._likeness = _scaled(likeness, likeness.of(base_concept), likeness.among_themselves())
        self._held_out: Callable[..., float] | None = None
        if pictures.held_out:
            likeness = Likeness(reader.read(pictures.held_out), self._base_ordinary)
            self._held_out = _scaled(likeness, likeness.of(base_concept), likeness.of(training))
        self._copies = CopyFinder(pictures.training, base.concept)
        self.obedience = Obedience(explain, drawer.concept_of, base.concept)

    def of(self, drawing: Drawing, *, lora: str, weight: float) -> Judged:
        """The row of what one LoRA draws at one weight."""
        features = self._reader.read(drawing.concept)
        nearest, copies = self._copies.find(drawing.concept)
        row = Judged(
            lora=lora,
            weight=weight,
            likeness=self._likeness(features),
            held_out_likeness=self._held_out(features) if self._held_out is not None else None,
            obedience=self.obedience.of(drawing.concept),
            retention=retention(self._reader.read(drawing.ordinary), self._base_ordinary, self._ordinary_of),
            copying=sum(copies) / len(copies),
            broken=drawing.broken,
            samples=drawing.files,
            nearest=tuple(self._names[number] for number in nearest),
            copies=tuple(copies),
        )
        return msgspec.structs.replace(row, score=score_of(row))


def _scaled(likeness: Likeness, lowest: float, highest: float) -> Callable[..., float]:
    """Likeness so that `lowest` becomes 0 and `highest` 1; where they are hardly apart, in units of the least gap."""
    gap = max(highest - lowest, _LEAST_GAP)
    return lambda features: (likeness.of(features) - lowest) / gap


def _read_pictures(train: JobFolder, size_px: tuple[int, int]) -> Pictures:
    spec = train.read_spec()
    if not isinstance(spec, TrainSpec):
        raise JobError(f"{train.path} is not a training.")
    root = (train.path / spec.dataset).resolve()
    own = [picture for picture in scan_dataset(root).pictures if not picture.is_regularisation]
    held_out = set(spec.held_out)
    trained = [picture for picture in own if picture.path not in held_out]
    if not trained:
        raise DatasetError(f"{root} has no training pictures any more.", "The judge compares with them: put them back.")

    def opened(path: str) -> Image.Image:
        return Image.fromarray(fit_to_bucket(open_picture(root / path), size_px))

    return Pictures(
        names=[picture.path for picture in trained],
        training=[opened(picture.path) for picture in trained],
        held_out=[opened(picture.path) for picture in own if picture.path in held_out],
        captions=[picture.caption for picture in trained],
    )
