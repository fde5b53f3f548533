"""What each kind of job is told: the content of its `job.json`."""

from __future__ import annotations

from typing import Literal

import msgspec

from lora_train.core.caption_settings import CaptionerKind, CaptionSettings
from lora_train.core.config import SavePrecision, TrainSettings
from lora_train.core.dataset_settings import DatasetSettings
from lora_train.core.grid_settings import GridSettings


class TrainSpec(msgspec.Struct, frozen=True, tag="train", tag_field="kind", kw_only=True):
    """Train a LoRA. Paths are absolute except `dataset`, which is relative to the job's folder."""

    name: str
    """Stem of the LoRA files, unique over the workspace."""
    dataset: str
    dataset_fingerprint: str
    trash: str
    """Folder, relative to the job's, that takes what a resume makes obsolete."""
    settings: TrainSettings
    cache: str = ""
    """Folder, relative to the job's, for what other starts can use; nothing is kept without one."""
    concept: str = ""
    """What the pictures show, as typed by the person (the project's name)."""
    publish_to: str = ""
    created: float = 0.0
    version: str = ""
    held_out: tuple[str, ...] = ()
    """Pictures, relative to `dataset`, that are not trained but validated; they were chosen when the job was made."""
    folder_repeats: dict[str, int] = {}
    """Repeats of each folder of training pictures as they were chosen, whatever would be chosen now; empty in jobs of
    releases that did not note them."""


class PreviewSpec(msgspec.Struct, frozen=True, tag="preview", tag_field="kind", kw_only=True):
    """Draw prompts x weights with one LoRA into a grid at `out`."""

    lora: str
    out: str
    settings: TrainSettings


class SamplesSpec(msgspec.Struct, frozen=True, tag="samples", tag_field="kind", kw_only=True):
    """Draw the previews that LoRAs of a training lack, into its own samples."""

    train: str
    """The training's folder, relative to the job's."""
    loras: tuple[str, ...]
    """File names in it."""
    settings: TrainSettings


class CaptionPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What writes captions: a sentence first, then tags. Without either, captions are the fallback."""

    blip: str = ""
    """Folder of an image-to-text model; empty for none."""
    wd14: str = ""
    """Folder of a WD14 tagger; empty for none."""
    host: tuple[Literal["blip", "deepbooru"], ...] = ()
    """The host's own, which only a thread of the host can use."""
    settings: CaptionSettings = CaptionSettings()


class GridSpec(msgspec.Struct, frozen=True, tag="grid", tag_field="kind", kw_only=True):
    """Draw finished LoRAs by lists of values into single pictures, and into grids of them. Paths are relative to the
    job's folder; so are the names of the pictures in `core.grids`.
    """

    loras: tuple[str, ...]
    """Files; the stem of each is its name in prompts and labels."""
    grid: GridSettings
    """Ready to be drawn: no empty prompt, no size 0, no seed -1."""
    settings: TrainSettings
    """Base model, VAE, clip skip, precision and device."""


class JudgeSpec(msgspec.Struct, frozen=True, tag="judge", tag_field="kind", kw_only=True):
    """Measure every LoRA of a training at some weights, and recommend one (see `core.judgement`)."""

    train: str
    """The training's folder, relative to the job's; `judgement.json` is written into it."""
    loras: tuple[str, ...]
    """File names in it."""
    weights: tuple[float, ...]
    prompts: tuple[str, ...]
    """Of the concept; empty stands for the captions of the training pictures."""
    ordinary_prompts: tuple[str, ...]
    """Of what the base model knew before."""
    pictures: int
    """Drawn for each LoRA and weight: of the concept, and as many of ordinary prompts."""
    encoder: str = ""
    """An image encoder to judge with (a folder of transformers or an ONNX file); empty: the base model itself."""
    settings: TrainSettings


class ProofSpec(msgspec.Struct, frozen=True, tag="proof", tag_field="kind", kw_only=True):
    """Read a published LoRA back, and see that it does what it should (see `core.proofs`)."""

    train: str
    """The training's folder, relative to the job's; `proofs.json` is written into it."""
    lora: str
    """File name in it."""
    published: str
    """The copy in the host's folder, absolute."""
    tensors_sha256: str
    """Of the copy as it was written."""
    prompt: str
    settings: TrainSettings


class DatasetSpec(msgspec.Struct, frozen=True, tag="dataset", tag_field="kind", kw_only=True):
    """Make a version's trained pictures from the uploaded ones. Folders are relative to the job's."""

    dataset: str
    """The version's `dataset` folder."""
    trash: str
    settings: DatasetSettings
    concept: str
    """The caption of a picture that has no other: the trigger word, or else the project's name."""
    repeats: int
    project: str = ""
    """The project's name, by which the folder of its pictures is called."""
    captions: CaptionPlan = CaptionPlan()


class CheckSpec(msgspec.Struct, frozen=True, tag="check", tag_field="kind", kw_only=True):
    """Look at the pictures of a version's trained set, for its health check."""

    dataset: str
    """The version's `dataset` folder, relative to the job's."""


class CaptionSpec(msgspec.Struct, frozen=True, tag="caption", tag_field="kind", kw_only=True):
    """Write captions for pictures of a version's trained set. Folders are relative to the job's."""

    dataset: str
    """The version's `dataset` folder."""
    trash: str
    plan: CaptionPlan
    files: tuple[str, ...] = ()
    """Pictures relative to `processed`; none means all of them."""
    concept: str = ""
    """As in DatasetSpec."""


class DownloadSpec(msgspec.Struct, frozen=True, tag="download", tag_field="kind", kw_only=True):
    """Fetch a captioner that a person asked for."""

    model: str
    """Its name in `core.captioners`, or on the hub."""
    folder: str
    """Where it goes, absolute."""
    captioner: CaptionerKind | None = None
    """What one has to be whose name is that of the hub."""


DOWNLOADING = "downloading"
"""The phase of such a job that counts bytes."""


class RegularisationSpec(msgspec.Struct, frozen=True, tag="regularisation", tag_field="kind", kw_only=True):
    """Draw regularisation pictures of a class with the base model. Folders are relative to the job's."""

    folder: str
    """Of the class, `<repeats>_<class>`, where the pictures go."""
    prompt: str
    """What is drawn, and the caption of every picture."""
    negative_prompt: str = ""
    count: int = 1
    settings: TrainSettings
    """Base model, clip skip, device, and the sampler, steps, CFG scale, size and seed of previews."""


DRAWING_REGULARISATION = "drawing regularisation pictures"
"""The phase of such a job in which pictures come, one `done` for each."""


class CompareSpec(msgspec.Struct, frozen=True, tag="compare", tag_field="kind", kw_only=True):
    """Measure what a LoRA changed: likeness to pictures and retention of ordinary prompts, before and after."""

    lora: str
    prompts: tuple[str, ...]
    ordinary_prompts: tuple[str, ...]
    pictures: str
    """Folder with pictures of the concept."""
    settings: TrainSettings


BENCH_MODELS = ("sd15", "sd2", "sdxl")
"""Base models that a bench makes for itself: the full-size topology with random weights."""


class BenchSpec(msgspec.Struct, frozen=True, tag="bench", tag_field="kind", kw_only=True):
    """Time some training steps. `settings.base_model` may be one of `BENCH_MODELS`."""

    settings: TrainSettings
    pictures: int
    steps: int


class CountSpec(msgspec.Struct, frozen=True, tag="count", tag_field="kind", kw_only=True):
    """Count what a training step of full-size models asks of a CUDA device; none is needed."""

    settings: TrainSettings


class MergeSpec(msgspec.Struct, frozen=True, tag="merge", tag_field="kind", kw_only=True):
    """Add finished LoRAs up into a new one at `out`; with `rank` or `keep` reduced to a smaller rank."""

    loras: tuple[str, ...]
    """Absolute paths, as is `out`."""
    weights: tuple[float, ...]
    """One for each."""
    out: str
    rank: int = 0
    """No module has more; 0 is no limit."""
    keep: float = 0.0
    """Share of the squared norm that a module keeps at least; 0 leaves the ranks as they are."""
    precision: SavePrecision = "fp16"


OnCardSpec = TrainSpec | SamplesSpec | GridSpec | JudgeSpec | ProofSpec | RegularisationSpec
"""Those that wait for the card in the queue."""

JobSpec = (
    TrainSpec
    | PreviewSpec
    | SamplesSpec
    | GridSpec
    | JudgeSpec
    | ProofSpec
    | DatasetSpec
    | CheckSpec
    | CaptionSpec
    | DownloadSpec
    | RegularisationSpec
    | CompareSpec
    | BenchSpec
    | CountSpec
    | MergeSpec
)
