"""The proof job: a published LoRA is read back from the host's folder, and drawn with at weight 0 and 1."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import torch
from PIL import Image

from lora_train.core.assets import resolve_base_model
from lora_train.core.cards import read_card
from lora_train.core.errors import JobError, ModelError
from lora_train.core.families import FAMILY_LABELS
from lora_train.core.infotext import lora_tag
from lora_train.core.inspection import inspect_file
from lora_train.core.jobs import JobFolder
from lora_train.core.lora_facts import LoraFacts
from lora_train.core.proofs import (
    FILE_NAME,
    LEAST_SPREAD,
    MOST_STEPS,
    PROVING,
    SAMPLES_FOLDER,
    Fact,
    Proof,
    Proofs,
    header_starts_as_hosts_ask,
    metadata_problem,
    read_proofs,
)
from lora_train.core.records import write_json
from lora_train.core.specs import ProofSpec
from lora_train.core.tensorfiles import read_tensor_file, tensor_part_sha256
from lora_train.data.levels import largest_difference, spread
from lora_train.data.sheets import save_png
from lora_train.engine.loading import BaseModel
from lora_train.engine.preview_job import attach_lora, load_for_drawing
from lora_train.engine.previews import parameters_text
from lora_train.engine.reporting import Reporter
from lora_train.engine.sample import DrawSettings, decode, denoise, draw_settings
from lora_train.engine.text import Prompts
from lora_train.engine.weights import read_tensor

_ROUNDING_LEVELS = 2
"""Pictures that nowhere differ by more of 255 levels are the same."""
_VERSIONS = {"sd1": "SD1", "sd2": "SD2", "sdxl": "SDXL"}
_PUBLISH_AGAIN = "Publish it again."
_TRAIN_ANEW = "Choose another LoRA of the training, or train it anew with a lower learning rate."


class _Refuted(Exception):  # noqa: N818  (a result, no error)
    """A check that fails, in words for the person."""

    def __init__(self, reason: str, hint: str) -> None:
        super().__init__(reason)
        self.reason, self.hint = reason, hint


def prove(spec: ProofSpec, job: JobFolder, report: Reporter) -> dict[str, object]:
    """Check the copy, and write what was found into the training's `proofs.json`."""
    train = JobFolder(job.path / spec.train)
    if not train.path.is_dir():
        raise JobError(f"{train.path} is not there any more.", "Nothing is left to prove.")
    report.phase(PROVING)
    facts: list[Fact] = []
    pictures: list[str] = []
    reason = hint = ""
    try:
        lora = _check_file(spec, train, facts)
        if resolve_base_model(spec.settings.base_model).exists():
            pictures += _check_drawing(spec, train, lora, facts, report)
        else:
            facts.append(Fact("Not drawn: the base model is not there any more"))
    except _Refuted as found:
        reason, hint = found.reason, found.hint
    except ModelError as error:
        reason, hint = error.message, error.hint or _PUBLISH_AGAIN
    proof = Proof(
        published=spec.published,
        tensors_sha256=spec.tensors_sha256,
        facts=tuple(facts),
        reason=reason,
        hint=hint,
        pictures=tuple(pictures),
        made=time.time(),
    )
    write_json(train.path / FILE_NAME, Proofs({**read_proofs(train), spec.lora: proof}))
    return {"is_proven": not reason, "reason": reason, "hint": hint, "facts": msgspec.to_builtins(facts)}


# --- the file ---


def _check_file(spec: ProofSpec, train: JobFolder, facts: list[Fact]) -> LoraFacts:
    """What its bytes tell. Raises ModelError where it can't be read at all."""
    path = Path(spec.published)
    if not path.is_file():
        raise _Refuted(f"{path} is not there.", _PUBLISH_AGAIN)
    if tensor_part_sha256(path) != spec.tensors_sha256:
        raise _Refuted(f"The weights in {path} are not those that were written.", "Check the disk; " + _PUBLISH_AGAIN)
    facts.append(Fact("Weights as they were saved"))
    copy, source = read_tensor_file(path), train.path / spec.lora
    if source.is_file() and set(read_tensor_file(source).tensors) != set(copy.tensors):
        raise _Refuted(f"{path} has other layers than the training's own file.", _PUBLISH_AGAIN)
    found = inspect_file(path).lora
    if found is None or found.incomplete or found.other_modules:
        example = found.incomplete[0] if found is not None and found.incomplete else path.name
        raise _Refuted(f"{path} is no complete LoRA: {example}.", _PUBLISH_AGAIN)
    family = found.family.removesuffix("-inpaint")
    if family not in _VERSIONS:
        raise _Refuted(f"Nothing tells which base models {path} is for.", _TRAIN_ANEW)
    text_modules = found.text_encoder_modules + found.second_text_encoder_modules
    facts.append(Fact("Base models", FAMILY_LABELS[found.family]))
    facts.append(Fact("Layers", f"{found.unet_modules} UNet, {text_modules} text encoder"))
    facts.append(Fact("Rank", ", ".join(map(str, found.ranks))))
    for name in copy.tensors:
        if not bool(torch.isfinite(read_tensor(copy, name).float()).all()):
            raise _Refuted(f"{name} in {path} is not finite.", _TRAIN_ANEW)
    if not header_starts_as_hosts_ask(path):
        raise _Refuted(f"The header of {path} does not begin as WebUIs ask.", _PUBLISH_AGAIN)
    if problem := metadata_problem(copy.metadata, path.stem, _VERSIONS[family]):
        raise _Refuted(f"The metadata of {path} is wrong: {problem}.", _PUBLISH_AGAIN)
    facts.append(Fact("Metadata as WebUIs read it"))
    _check_card(path.with_suffix(".json"), facts)
    return found


def _check_card(path: Path, facts: list[Fact]) -> None:
    if not path.is_file():
        facts.append(Fact("No card"))
        return
    card = read_card(path.read_bytes())
    weight = None if card is None else card.get("preferred weight", 0)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
        raise _Refuted(f"{path} is not a card that WebUIs can read.", "Delete it, and publish the LoRA again.")
    facts.append(Fact("Card as WebUIs read it"))


# --- the pictures ---


def _check_drawing(
    spec: ProofSpec, train: JobFolder, lora: LoraFacts, facts: list[Fact], report: Reporter
) -> Sequence[str]:
    """Draw without the LoRA, with it at 0 and at 1; returns the first and the last picture."""
    model, prompts = load_for_drawing(spec.settings, report)
    if model.family.removesuffix("-inpaint") != lora.family.removesuffix("-inpaint"):
        raise _Refuted(
            f"{Path(spec.published).name} is for {FAMILY_LABELS[lora.family]}, and the base model is not.", _TRAIN_ANEW
        )
    drawn = draw_settings(spec.settings, model, spec.settings.resolution or model.native_resolution_px)
    drawn = msgspec.structs.replace(drawn, steps=min(drawn.steps, MOST_STEPS))
    base = _draw(model, prompts, spec, drawn, report, 0)
    network = attach_lora(model, Path(spec.published))
    network.multiplier = 0.0
    at_zero = _draw(model, prompts, spec, drawn, report, 1)
    network.multiplier = 1.0
    at_one = _draw(model, prompts, spec, drawn, report, 2)
    stem = Path(spec.published).stem
    names = [f"{SAMPLES_FOLDER}/{stem}-w{weight}.png" for weight in (0, 1)]
    for name, picture, weight in zip(names, (base, at_one), (0, 1), strict=True):
        text = f"{lora_tag(stem, weight)} {spec.prompt}"
        save_png(picture, train.path / name, parameters_text(text, spec.settings, drawn))
    if base.tobytes() != at_zero.tobytes():
        raise _Refuted("At weight 0 it does not draw what the base model draws.", _TRAIN_ANEW)
    facts.append(Fact("Without weight it changes nothing"))
    if spread(at_one) < LEAST_SPREAD <= spread(base):
        raise _Refuted("At weight 1 it draws an empty picture.", _TRAIN_ANEW)
    if largest_difference(base, at_one) <= _ROUNDING_LEVELS:
        raise _Refuted("At weight 1 it draws what the base model draws: it has learned nothing.", _TRAIN_ANEW)
    facts.append(Fact("With full weight it changes the picture"))
    return names


def _draw(
    model: BaseModel, prompts: Prompts, spec: ProofSpec, drawn: DrawSettings, report: Reporter, done: int
) -> Image.Image:
    """In RGB; always with the same seed. Raises _Refuted for numbers that are not finite."""
    report.phase(PROVING, done, 3)
    with torch.no_grad():
        positive = prompts.encode_prompt(spec.prompt)
        negative = prompts.encode_prompt(spec.settings.preview_negative_prompt, is_negative=True)
    latents = denoise(model, positive, negative, [spec.settings.preview_seed], drawn, report.end_if_asked)
    if not bool(torch.isfinite(latents).all()):
        raise _Refuted("What it draws is not finite.", _TRAIN_ANEW)
    return decode(model, latents)[0]
