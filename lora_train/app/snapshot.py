"""What the page and the API are told: plain structs, read from the workspace at the moment of asking.

Ids: a project and a version are known by the names of their folders, a job by its folder relative to the workspace,
with forward slashes (`projects/Cat/versions/v1/trains/Cat-v1`). Names are as typed by the person.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from lora_train.app.fit_snapshot import Fit
from lora_train.core.jobs import JobStatus
from lora_train.core.memory import MemoryFacts
from lora_train.core.proofs import Proof


class VersionEntry(msgspec.Struct, frozen=True):
    id: str
    name: str
    created: float


class ProjectEntry(msgspec.Struct, frozen=True):
    id: str
    name: str
    created: float
    versions: list[VersionEntry]
    """Newest first."""


class Selection(msgspec.Struct, frozen=True):
    """The project and version that were looked at last; empty where there is none."""

    project: str = ""
    version: str = ""


class Undo(msgspec.Struct, frozen=True):
    """Something was moved to the trash: what, and the entry that `restore` takes."""

    what: str
    entry: str


class PictureEntry(msgspec.Struct, frozen=True):
    """One picture of the dataset."""

    file: str
    """Relative to `dataset/processed` with forward slashes; a picture that waits: to `dataset/origin`."""
    width_px: int
    height_px: int
    caption: str
    repeats: int = 1
    is_regularisation: bool = False
    is_waiting: bool = False
    """Uploaded, but not in the trained set before *Update Dataset* is pressed."""
    stamp: str = ""
    """Changes with the file, for the address of its thumbnail."""


class DatasetSnapshot(msgspec.Struct):
    pictures: list[PictureEntry] = []
    """Those that are trained, in the order of their names, then those that wait."""
    problems: list[str] = []
    folders: list[str] = []
    """Absolute paths of the sub-folders that are trained."""
    update: JobStatus | None = None
    """The last *Update Dataset*, running or not."""


CaptionChoice = Literal["wd14", "blip", "host", "none"]


class CaptionerEntry(msgspec.Struct, frozen=True, kw_only=True):
    """Something that can write captions: a model that can be downloaded, or one of the host's own."""

    name: str
    """For `download`, with the choice; of the host's own, `host-blip` and `host-deepbooru`."""
    choice: CaptionChoice
    """The answer that it belongs to."""
    label: str
    good_for: str
    is_present: bool
    is_wanted: bool = False
    """Ticked, answered or typed, and not there: its download is to be offered."""
    download_mb: int = 0
    """Megabytes that would come; 0 for one that is there, and where only the hub or the host knows."""
    problem: str = ""
    """Why it can't be used yet, in a sentence: a Python package that is missing, say."""
    command: str = ""
    """What to type against that."""
    download: JobStatus | None = None
    """Of the last download, running or not; None for a model that is there."""
    download_job: str = ""


class CaptioningSnapshot(msgspec.Struct, kw_only=True):
    """What could write the captions of a version, what would, and what does."""

    captioners: list[CaptionerEntry]
    answer: Literal["", "wd14", "blip", "host", "none"] = ""
    """What the person wants where nothing is ticked; empty before the question was answered."""
    must_ask: bool = False
    """Whether the question has to be asked: nothing is ticked, answered or there."""
    uses: list[str] = []
    """What *Update Dataset* lets write captions, as labels; empty where captions are the fallback."""
    problems: list[str] = []
    """Why what is ticked or answered can't be used, a sentence each, and what to do."""
    job: JobStatus | None = None
    """The last captioning on demand, or by the host after an update; running or not."""


class Proving(msgspec.Struct, frozen=True):
    """How far it is with reading a published copy back."""

    state: Literal["unproven", "proving", "proven", "refuted", "failed"]
    proof: Proof | None = None
    job: str = ""
    problem: str = ""
    """Why the job itself failed."""


class LoraEntry(msgspec.Struct):
    """A saved LoRA of a train."""

    file: str
    """File name in the train's folder, e.g. `Cat-v1-000002.safetensors`."""
    stem: str
    size_bytes: int
    step: int
    epoch: int
    made: float
    """Unix seconds."""
    previews: list[str] = []
    """Pictures of this LoRA, relative to the train's folder: the one for its card, then the grid of all of them."""
    published: str = ""
    """The name that the LoRA folder's copy has in prompts; empty where there is none."""
    proving: Proving | None = None
    """Of the published copy; None where there is none."""
    prompt: str = ""
    """What makes a picture with it: `<lora:NAME:1> trigger words`. The stem is taken where it is not published."""
    is_recommended: bool = False
    """By the judge, or chosen instead by its person."""
    problem: str = ""
    """What of the card in the LoRA folder could not be written, and why."""


class TrainSnapshot(msgspec.Struct):
    """A training job. A status "waiting" with `place` None was never started (its queue entry was cancelled)."""

    job: str
    name: str
    status: JobStatus
    place: int | None = None
    """Place in the queue, 0 is the running one; None: not in it."""
    base_model: str = ""
    family: str = ""
    """Of base models that its LoRAs go with, for a person to read; empty as long as there is none."""
    summary: str = ""
    """The main settings on one line: `Lion 0.0001 · rank 16 · batch 1 · epochs 10`."""
    created: float = 0.0
    loras: list[LoraEntry] = []
    """Newest first."""
    is_original: bool = False
    """Made by the original extension: finished, and known by its LoRAs alone."""
    is_private: bool = False
    """Copies of its LoRAs are marked for private use."""
    memory: MemoryFacts | None = None
    """How it was fitted to its device; None before, and where an earlier release trained it."""


class QueueEntry(msgspec.Struct, frozen=True):
    job: str
    title: str
    """Project and version as typed, and the train's name."""
    kind: Literal["train", "preview", "regularisation", "judge", "proof"]
    state: Literal["running", "waiting"]


class CurvePoint(msgspec.Struct, frozen=True):
    step: int
    loss: float
    lr: float


class Validation(msgspec.Struct, frozen=True):
    """The mean loss on the held-out pictures after a step, and that of the base model alone."""

    step: int
    loss: float
    base_loss: float


class Forecast(msgspec.Struct):
    """What *Begin Train* would do now, in numbers that the loop keeps to."""

    pictures: int = 0
    """Those that are trained."""
    held_out: int = 0
    """Those that are measured instead."""
    repeats: int | None = None
    """Of each picture; None where folders differ."""
    views_per_epoch: int = 0
    """Pictures times repeats, regularisation pictures included."""
    regularisation_pictures: int = 0
    epochs: int = 0
    batch_size: int = 1
    accumulation: int = 1
    total_steps: int = 0
    is_exact: bool = True
    """Whether pictures x repeats x epochs / batch is total_steps; partial batches of several buckets make it more."""
    aimed_steps: int = 0
    """The steps that repeats were chosen for; 0 where they were not."""
    is_over_aim: bool = False
    """Whether a single repeat makes more steps than are aimed at."""
    seconds: float | None = None
    """Expected length of the training; None before anything like it was measured on this machine."""
    fit: Fit | None = None
    """Its memory; None where the device's is unknown."""
    problems: list[str] = []
    """Why it can't begin; empty when it can."""
    overridden: list[str] = []
    """The settings that the sd_script args make others than they are, a sentence each."""
    warnings: list[str] = []
    """What is allowed, but hardly meant."""


OptimizerState = Literal["works", "checking", "absent", "broken"]


class OptimizerEntry(msgspec.Struct, frozen=True):
    """An optimizer of an optional package."""

    name: str
    package: str
    state: OptimizerState
    """"checking": it is installed, and nobody has tried it yet, or it is being tried out."""
    problem: str = ""
    """Why it can't be chosen."""
    command: str = ""
    """What adds the package, where it is absent."""


class RegularisationClass(msgspec.Struct, frozen=True):
    """A folder of regularisation pictures."""

    folder: str
    """Relative to `dataset/processed` with forward slashes: `../reg/1_cat`, or `reg/1_cat` in the set itself."""
    name: str
    """The class; empty for pictures that lie in `reg` itself."""
    repeats: int
    count: int


class RegularisationSnapshot(msgspec.Struct):
    """The regularisation pictures of a version, and the job that drew some of them last."""

    classes: list[RegularisationClass] = []
    job: str = ""
    """For `jobs/stop` and the others; empty where none was ever begun."""
    status: JobStatus | None = None
    is_drawing: bool = False
    """Whether the job waits or runs."""


class RegularisationForecast(msgspec.Struct):
    """What regularisation pictures do to the number of steps, in numbers that the loop keeps to."""

    pictures: int = 0
    """Those that there are."""
    training_views: int = 0
    """Of training pictures in an epoch; it shows as many of regularisation pictures, where there are any."""
    used_per_epoch: int = 0
    """How many of the regularisation pictures an epoch shows; the next epoch goes on with the others."""
    total_steps: int = 0
    """With those that there are."""
    total_steps_without: int = 0
    """With none."""
    count: int = 0
    total_steps_with: int = 0
    """With `count` more."""
    size_px: int = 0
    """Width and height of a picture that is drawn."""
    seconds: float | None = None
    """Expected time for drawing `count`; None before anything like it was measured on this machine."""
    problems: list[str] = []
    """Why the steps can't be told, or none be drawn."""


class PresetEntry(msgspec.Struct, frozen=True):
    """A preset that can be chosen."""

    name: str
    about: str = ""
    is_own: bool = False
    """Saved or brought by the person; the others ship with us."""
    problem: str = ""
    """Why its file can't be read."""


class PresetRow(msgspec.Struct, frozen=True):
    """One setting of a preset."""

    name: str
    label: str
    value: Any
    before: Any = None
    """As it was; None where that is not asked for."""
    why: str = ""


class PresetDetails(msgspec.Struct, frozen=True):
    """A preset as it is for a family of base models."""

    name: str
    about: str
    family: str
    family_label: str
    rows: list[PresetRow]


class AppliedPreset(msgspec.Struct, frozen=True):
    """What a preset changed."""

    name: str
    family: str
    """For a person to read."""
    changed: list[PresetRow]


class ImportedPreset(msgspec.Struct, frozen=True):
    """A preset that somebody brought, and what of it can't be used."""

    name: str
    problems: list[str]


class PresetState(msgspec.Struct):
    """The preset of a version. Families are for a person to read."""

    name: str = ""
    """Empty where none is in use."""
    about: str = ""
    is_gone: bool = False
    """Whether it was deleted or renamed since."""
    family: str = ""
    """The one that it was applied for; without a preset, that of the base model."""
    saved_for: str = ""
    """The family that a person's own one was saved for, where the base model is of another."""
    changed: list[PresetRow] = []
    other_family: str = ""
    """That of the base model that is chosen now, where it is another one ..."""
    offered: list[PresetRow] = []
    """... and the values that the preset has for it, where the settings differ."""
    proposed: str = ""
    """The preset that suits what the project is about."""
    proposed_about: str = ""


class BaseModelSnapshot(msgspec.Struct):
    """What the chosen base model is, as its header tells."""

    name: str = ""
    family: str = ""
    """In words, e.g. "Stable Diffusion 1.x"."""
    prediction: str = ""
    """"epsilon", "v_prediction" or "unknown"."""
    resolution_px: int = 0
    clip_skip_matters: bool = True
    problem: str = ""
    """Why it can't be trained on; empty when it can."""


class Snapshot(msgspec.Struct):
    """All that the live part of the page shows, for one version and one of its trains."""

    selection: Selection
    project_name: str = ""
    version_name: str = ""
    dataset: DatasetSnapshot = msgspec.field(default_factory=DatasetSnapshot)
    trains: list[TrainSnapshot] = []
    """Newest first."""
    shown: TrainSnapshot | None = None
    """The train whose progress is shown: the one asked for, else the running one, else what happened last."""
    curve: list[CurvePoint] = []
    """Of the shown train, at most 400 points."""
    validations: list[Validation] = []
    """Of the shown train, in the order of steps."""
    log_tail: str = ""
    queue: list[QueueEntry] = []
    foreign: str = ""
    """A sentence where the card is busy with something of another version or program; else empty."""
    loras_revision: int = 0
    """Grows whenever files in the LoRA folder were added or removed by us: the page then refreshes the host's cards."""
    notes: list[str] = []
    """Settings of the original extension that could not be taken over."""
