"""Writes the demo model as one file in the original (LDM) layout of SD 1.x, and checks the file."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from demo_text_encoder import CONFIG_FILE, TOKENS
from diffusers import AutoencoderKL, UNet2DConditionModel
from make_demo_pictures import DEMO_FOLDER
from safetensors.torch import load_file, save_file

from lora_train.engine.ldm_names import (
    CLIP_PREFIXES,
    UNET_PREFIX,
    VAE_PREFIX,
    unet_module_name,
    vae_name,
)

TEXT_PREFIX = CLIP_PREFIXES[1]
FILE_NAME = "tiny_sd.safetensors"
CONFIG_NAME = "tiny_sd.yaml"
POSITION_IDS = f"{TEXT_PREFIX}text_model.embeddings.position_ids"


def write_model(folder: Path, *, unet: Any, vae: Any, text_encoder: Any) -> Path:
    """Write the fp16 checkpoint, its yaml and the text encoder's config into `folder`.

    Returns the checkpoint's path. Raises RuntimeError when diffusers reads other weights from it.
    """
    tensors = _original_tensors(unet, vae, text_encoder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE_NAME
    save_file(tensors, path, metadata={"format": "pt"})
    shutil.copyfile(DEMO_FOLDER / CONFIG_NAME, folder / CONFIG_NAME)
    (folder / "tiny_clip").mkdir(exist_ok=True)
    shutil.copyfile(CONFIG_FILE, folder / "tiny_clip" / CONFIG_FILE.name)
    differing = differing_tensors(path, unet=unet, vae=vae, text_encoder=text_encoder)
    if differing:
        raise RuntimeError(f"{path}: {len(differing)} tensors differ when read, first {differing[0]}")
    return path


@torch.no_grad()
def differing_tensors(path: Path, *, unet: Any, vae: Any, text_encoder: Any) -> list[str]:
    """Names of weights that are not the model's, rounded to fp16, when read from the file.

    UNet and VAE go through diffusers' own conversion, which shares no code with the writer.
    """
    with tempfile.TemporaryDirectory() as configs:
        unet.save_config(f"{configs}/unet")
        vae.save_config(f"{configs}/vae")
        read: dict[str, Any] = {
            "unet": UNet2DConditionModel.from_single_file(
                str(path), config=configs, subfolder="unet", torch_dtype=torch.float32
            ).state_dict(),
            "vae": AutoencoderKL.from_single_file(
                str(path), config=configs, subfolder="vae", torch_dtype=torch.float32
            ).state_dict(),
        }
    file = load_file(path)
    names = _text_state(text_encoder)
    read["text_encoder"] = {name: file[TEXT_PREFIX + name].float() for name in names}
    written = {"unet": unet.state_dict(), "vae": vae.state_dict(), "text_encoder": names}
    return [
        f"{part}.{name}"
        for part, state in written.items()
        for name, weight in state.items()
        if not torch.equal(read[part][name], weight.half().float())
    ]


def _original_tensors(unet: Any, vae: Any, text_encoder: Any) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    layers = unet.config.layers_per_block
    attention = ["Attn" in kind for kind in unet.config.down_block_types]
    for name, weight in unet.state_dict().items():
        tensors[UNET_PREFIX + unet_module_name(name, layers, attention)] = weight
    levels = len(vae.config.block_out_channels)
    for name, weight in vae.state_dict().items():
        # The original's attention in the VAE is made of 1 x 1 convolutions.
        is_linear = ".attentions." in name and weight.ndim == 2
        tensors[VAE_PREFIX + vae_name(name, levels)] = weight[:, :, None, None] if is_linear else weight
    for name, weight in _text_state(text_encoder).items():
        tensors[TEXT_PREFIX + name] = weight
    half = {name: weight.detach().half().contiguous() for name, weight in tensors.items()}
    return {**half, POSITION_IDS: torch.arange(TOKENS)[None]}


def _text_state(text_encoder: Any) -> dict[str, torch.Tensor]:
    """Weights named as in SD 1.x files: with `text_model.`, which transformers 5 leaves out."""
    state = text_encoder.state_dict()
    return {
        name if name.startswith("text_model.") else f"text_model.{name}": weight
        for name, weight in state.items()
        if not name.endswith("position_ids")
    }
