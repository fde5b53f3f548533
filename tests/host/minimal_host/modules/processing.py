"""Pictures: coloured blocks that depend on everything a picture depends on."""

from __future__ import annotations

import hashlib
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from modules import devices, sd_models, shared

_BLOCKS = 4
"""A picture has as many on a side."""

closed: list[Any] = []


@dataclass
class StableDiffusionProcessingTxt2Img:
    prompt: str = ""
    negative_prompt: str = ""
    seed: int = 1
    steps: int = 5
    width: int = 64
    height: int = 64
    sampler_name: str = ""
    scheduler: str = ""
    batch_size: int = 1
    n_iter: int = 1
    cfg_scale: float = 7.0
    do_not_save_samples: bool = False
    do_not_save_grid: bool = False
    override_settings: dict[str, Any] = field(default_factory=dict)
    override_settings_restore_afterwards: bool = True
    scripts: Any = None

    def close(self) -> None:
        closed.append(self)

    @property
    def sd_model(self) -> Any:
        return shared.sd_model


@dataclass
class Processed:
    images: list[Image.Image]
    info: str
    infotexts: list[str] = field(default_factory=list)
    index_of_first_image: int = 0


def process_images(p: StableDiffusionProcessingTxt2Img) -> Processed:
    stored = {key: shared.opts.data.get(key) for key in p.override_settings}
    try:
        for key, value in p.override_settings.items():
            shared.opts.set(key, value, is_api=True, run_callbacks=False)
        sd_models.reload_model_weights()
        return process_images_inner(p)
    finally:
        _ = p.sd_model  # hosts undo a patch of it here, and so load one where there is none
        shared.opts.data.update(stored)


def process_images_inner(p: StableDiffusionProcessingTxt2Img) -> Processed:
    model = p.sd_model
    if model.device != str(devices.device) and not model.lowvram:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, "
            f"{devices.device} and {model.device}!"
        )
    networks = sys.modules["networks"]
    prompt, loras = networks.parse_prompt(p.prompt)
    fingerprints = networks.fingerprints(loras)
    images: list[Image.Image] = []
    infotexts: list[str] = []
    for seed in range(p.seed, p.seed + p.batch_size):
        parts = [prompt, p.negative_prompt, seed, model.sd_checkpoint_info.name, *fingerprints]
        digest = hashlib.shake_128(repr(parts).encode("utf-8")).digest(3 * _BLOCKS * _BLOCKS)
        time.sleep(0.02 * p.steps)
        blocks = Image.frombytes("RGB", (_BLOCKS, _BLOCKS), digest)
        images.append(blocks.resize((p.width, p.height), 0))
        sampler = f"Sampler: {p.sampler_name}, Schedule type: {p.scheduler or 'Automatic'}"
        infotexts.append(f"{prompt}\nSteps: {p.steps}, {sampler}, Seed: {seed}, Size: {p.width}x{p.height}")
    return Processed(images, infotexts[0], infotexts)
