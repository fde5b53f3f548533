"""Base models from single files (.safetensors, .ckpt), diffusers folders and separate VAE files.

Weights go tensor by tensor from the file into the wanted number format and device: nothing is held twice, nothing
is memory-mapped (mapped pages would count as used memory), and no network is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn

from lora_train.core import presets
from lora_train.core.assets import ASSETS
from lora_train.core.errors import ModelError
from lora_train.core.families import (
    detect_checkpoint,
    detect_folder,
    find_weights,
    require_supported,
)
from lora_train.core.tensorfiles import TensorFile, read_tensor_file, tensor_bytes
from lora_train.engine import ldm_names
from lora_train.engine.topology import Hints, read_hints, text_config, unet_config, vae_config

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class BaseModel:
    """A loaded base model. All parts are frozen and in evaluation mode.

    unet          diffusers UNet2DConditionModel: (B, 4, h, w), (B,), (B, T, D) -> (B, 4, h, w)
    vae           diffusers AutoencoderKL; `vae_scale` turns its latents into the UNet's
    text_encoder  transformers CLIPTextModel
    """

    def __init__(
        self, *, path: Path, unet: Any, vae: Any, text_encoder: Any, tokenizer: Any, prediction: str
    ) -> None:
        self.path = path
        self.unet = unet
        self.vae = vae
        self.text_encoder = text_encoder
        self.tokenizer = tokenizer
        self.prediction = prediction
        self.family = "sd1"
        self.vae_scale = float(vae.config.scaling_factor)
        channels = unet.config.block_out_channels[0]
        self.native_resolution_px = presets.native_resolution_px(channels)
        self.bucket_step_px = presets.bucket_step_px(channels)
        for part in (unet, vae, text_encoder):
            part.requires_grad_(False)
            part.eval()


def load_base_model(
    path: Path, *, vae_path: Path | None, device: torch.device, dtype: torch.dtype
) -> BaseModel:
    """Load a base model with its UNet and text encoder in `dtype`, its VAE in float32, on `device`.

    Raises ModelError for a file that can't be read, is of another family, or lacks tensors.
    """
    if path.is_dir():
        return _load_folder(path, vae_path, device, dtype)
    file = read_tensor_file(path)
    facts = detect_checkpoint(file.tensors)
    require_supported(facts, path)
    hints = read_hints(path)
    shapes = {name: info.shape for name, info in file.tensors.items()}
    unet = _unet_from_file(file, unet_config(shapes, hints), device, dtype)
    text_prefix = _text_prefix(file)
    text_encoder = _build_text_encoder(text_config(shapes, text_prefix, hints))
    _fill(_text_core(text_encoder), file, lambda name: [text_prefix + name], device, dtype)
    vae = (
        load_vae(vae_path, device)
        if vae_path
        else _vae_from_file(file, ldm_names.VAE_PREFIX, hints, device)
    )
    return BaseModel(
        path=path,
        unet=unet,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=load_tokenizer(hints.text_folder),
        prediction=hints.prediction,
    )


def load_vae(path: Path, device: torch.device) -> Any:
    """A separate VAE file (original or diffusers layout, or a whole checkpoint) in float32. Raises ModelError."""
    file = read_tensor_file(path)
    if any(name.startswith("decoder.up_blocks.") for name in file.tensors):
        return _vae_from_diffusers_file(file, _diffusers_vae_config(file), device)
    prefix = ldm_names.VAE_PREFIX if any(n.startswith(ldm_names.VAE_PREFIX) for n in file.tensors) else ""
    if f"{prefix}decoder.conv_in.weight" not in file.tensors:
        raise ModelError(f"{path} is not a VAE.", "Choose a VAE of Stable Diffusion 1.x, or none.")
    return _vae_from_file(file, prefix, Hints(), device)


def load_tokenizer(folder: Path | None = None) -> Any:
    """CLIP's tokenizer: the vocabulary in `folder` where it has one, else the one that ships with us."""
    from transformers import CLIPTokenizer

    if folder is None or not (folder / "vocab.json").is_file():
        folder = ASSETS / "clip_vocabulary"
    return CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77
    )


def _unet_from_file(
    file: TensorFile, config: dict[str, Any], device: torch.device, dtype: torch.dtype
) -> Any:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
    attention = ["CrossAttn" in kind for kind in config["down_block_types"]]

    def names(name: str) -> list[str]:
        ldm = ldm_names.unet_module_name(name, config["layers_per_block"], attention)
        return [ldm_names.UNET_PREFIX + ldm]

    _fill(unet, file, names, device, dtype)
    return unet


def _vae_from_file(file: TensorFile, prefix: str, hints: Hints, device: torch.device) -> Any:
    from diffusers import AutoencoderKL

    config = vae_config({name: info.shape for name, info in file.tensors.items()}, prefix, hints)
    with torch.device("meta"):
        vae = AutoencoderKL(**config)
    levels = len(config["block_out_channels"])
    _fill(vae, file, lambda name: [prefix + ldm_names.vae_name(name, levels)], device, torch.float32)
    return vae


def _vae_from_diffusers_file(file: TensorFile, config: dict[str, Any], device: torch.device) -> Any:
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        vae = AutoencoderKL(**config)
    _fill(vae, file, lambda name: [name, ldm_names.old_vae_name(name)], device, torch.float32)
    return vae


def _diffusers_vae_config(file: TensorFile) -> dict[str, Any]:
    """Sizes of a diffusers-layout VAE: its tensors under their original names, then as for those."""
    tensors = file.tensors
    levels = 0
    while f"decoder.up_blocks.{levels}.resnets.0.conv1.weight" in tensors:
        levels += 1
    shapes = {ldm_names.vae_name(name, levels): info.shape for name, info in tensors.items()}
    return vae_config(shapes, "", Hints())


def _text_prefix(file: TensorFile) -> str:
    """Text-encoder names come with and without `text_model.`; both are read. Raises ModelError for neither."""
    for prefix in (ldm_names.TEXT_PREFIX + "text_model.", ldm_names.TEXT_PREFIX):
        if f"{prefix}embeddings.token_embedding.weight" in file.tensors:
            return prefix
    raise ModelError(
        f"{file.path} has no text encoder.", "Choose a full checkpoint, as it is offered for WebUIs."
    )


def _build_text_encoder(config: dict[str, Any]) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        return CLIPTextModel(CLIPTextConfig(**config))


def _text_core(text_encoder: Any) -> nn.Module:
    """The transformer itself: transformers 4 wraps it in `text_model`, transformers 5 does not."""
    return getattr(text_encoder, "text_model", text_encoder)


def _load_folder(
    path: Path, vae_path: Path | None, device: torch.device, dtype: torch.dtype
) -> BaseModel:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    facts = detect_folder(path)
    require_supported(facts, path)
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel.from_config(_config(path / "unet"))
        vae: Any = AutoencoderKL.from_config(_config(path / "vae"))
    text_encoder = _build_text_encoder(_config(path / "text_encoder"))
    _fill(unet, _weights(path / "unet"), lambda name: [name], device, dtype)
    _fill(
        _text_core(text_encoder),
        _weights(path / "text_encoder"),
        lambda name: ["text_model." + name, name],
        device,
        dtype,
    )
    if vae_path:
        vae = load_vae(vae_path, device)
    else:
        names = lambda name: [name, ldm_names.old_vae_name(name)]  # noqa: E731
        _fill(vae, _weights(path / "vae"), names, device, torch.float32)
    return BaseModel(
        path=path,
        unet=unet,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=load_tokenizer(path / "tokenizer"),
        prediction=facts.prediction,
    )


def _config(folder: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode((folder / "config.json").read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError) as error:
        raise ModelError(f"{folder / 'config.json'} can't be read: {error}.") from None


def _weights(folder: Path) -> TensorFile:
    path = find_weights(folder)
    if path is None or path.suffix == ".json":
        raise ModelError(f"{folder} has no weights in a single file (.safetensors or .bin).")
    return read_tensor_file(path)


def _fill(
    model: nn.Module,
    file: TensorFile,
    names: Callable[[str], Iterable[str]],
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Give every parameter of a model on the meta device its tensor from `file`, in `dtype` on `device`.

    `names` gives the possible names in the file for one of ours. Raises ModelError naming missing tensors.
    """
    weights: dict[str, torch.Tensor] = {}
    missing: list[str] = []
    for name, parameter in model.named_parameters():
        found = next((their for their in names(name) if their in file.tensors), None)
        if found is None:
            missing.append(name)
            continue
        tensor = read_tensor(file, found).to(device=device, dtype=dtype)
        if tensor.numel() != parameter.numel():
            raise ModelError(
                f"{file.path}: {found} has the shape {tuple(tensor.shape)}, {tuple(parameter.shape)} was expected."
            )
        weights[name] = tensor.reshape(parameter.shape)  # VAE attention: (C, C, 1, 1) -> (C, C)
    if missing:
        raise ModelError(
            f"{file.path} lacks {len(missing)} tensors, the first is {missing[0]}.",
            "The file may be cut off: download it again.",
        )
    model.load_state_dict(weights, strict=False, assign=True)
    for module in model.modules():
        positions = getattr(module, "position_ids", None)
        if isinstance(positions, torch.Tensor):
            module.position_ids = torch.arange(positions.shape[-1], device=device)[None]


def read_tensor(file: TensorFile, name: str) -> torch.Tensor:
    """One tensor of a file, on the CPU, in the file's own number format."""
    info = file.tensors[name]
    dtype = _DTYPES.get(info.dtype)
    if dtype is None:
        raise ModelError(f"{file.path}: {name} has the number format {info.dtype}, which can't be read.")
    flat = torch.frombuffer(tensor_bytes(file.path, info), dtype=dtype)
    if info.stride is not None:
        return flat.as_strided(info.shape, info.stride)
    return flat.reshape(info.shape)
