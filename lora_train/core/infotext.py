"""Generation parameters as WebUIs write them into pictures and read them back ("infotext").

a cat <lora:name:0.8>
Negative prompt: dog
Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 512x512, Model: x
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import msgspec

from lora_train.core.samplers import Sampler, sampler_facts

_HASH_DIGITS = 10
"""Of the sha256 of a checkpoint or VAE, as hosts show it."""
_LORA_HASH_DIGITS = 12


class DrawnFrom(msgspec.Struct, frozen=True, kw_only=True):
    """The files behind a picture; empty texts and hashes are left out."""

    model: str = ""
    """Stem of the checkpoint."""
    model_sha256: str = ""
    vae: str = ""
    """File name."""
    vae_sha256: str = ""
    lora: str = ""
    """Stem of the file."""
    lora_hash: str = ""
    """`sshs_model_hash` of its metadata: the sha256 of its tensors."""


def lora_tag(stem: str, weight: float) -> str:
    """What loads a LoRA in the prompt of a WebUI."""
    return f"<lora:{stem}:{weight:g}>"


class Parameters(msgspec.Struct, frozen=True, kw_only=True):
    """How one picture was drawn."""

    prompt: str
    """With the tag of its LoRA."""
    negative_prompt: str
    sampler: Sampler
    steps: int
    cfg_scale: float
    seed: int
    size_px: tuple[int, int]
    clip_skip: int | None = None
    """None where the family takes no notice of it."""
    files: DrawnFrom = DrawnFrom()


def infotext(told: Parameters) -> str:
    """The text of one picture. Hosts tell no clip skip of 1, their default.

    "RNG: CPU" is where our noise comes from: a host that reads it draws the same.
    """
    facts, files = sampler_facts(told.sampler), told.files
    width_px, height_px = told.size_px
    values: dict[str, object] = {
        "Steps": told.steps,
        "Sampler": facts.name,
        "Schedule type": facts.schedule,
        "CFG scale": f"{told.cfg_scale:g}",
        "Seed": told.seed,
        "Size": f"{width_px}x{height_px}",
        "Model hash": files.model_sha256[:_HASH_DIGITS],
        "Model": files.model,
        "VAE hash": files.vae_sha256[:_HASH_DIGITS],
        "VAE": files.vae,
        "Clip skip": told.clip_skip if (told.clip_skip or 1) > 1 else "",
        "RNG": "CPU",
        "Lora hashes": _lora_hashes(files),
    }
    negative = [f"Negative prompt: {told.negative_prompt}"] if told.negative_prompt else []
    return "\n".join([told.prompt, *negative, _line(values)])


def _lora_hashes(files: DrawnFrom) -> str:
    if not files.lora_hash:
        return ""
    return f"{files.lora.replace(':', '').replace(',', '')}: {files.lora_hash[:_LORA_HASH_DIGITS]}"


def _line(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name}: {_quoted(str(value))}" for name, value in values.items() if value != "")


def _quoted(text: str) -> str:
    """Hosts split the line at commas and colons that are not within quotes."""
    return json.dumps(text, ensure_ascii=False) if set(text) & set(",:\n") else text
