"""Base models from single files (.safetensors, .ckpt), diffusers folders and separate VAE files.

Weights go tensor by tensor from the file into the wanted number format and device: nothing is held twice, nothing
is memory-mapped (mapped pages would count as used memory), and no network is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
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
    """A base model whose parts are loaded when they are wanted, each frozen and in evaluation mode.

    unet          diffusers UNet2DConditionModel: (B, 4, h, w), (B,), (B, T, D) -> (B, 4, h, w)
    vae           diffusers AutoencoderKL; `vae_scale` turns its latents into the UNet's
    text_encoders one transformers CLIPTextModel, for SDXL also a CLIPTextModelWithProjection; `tokenizers` beside them

    A part that has done its work is let go (`drop_vae`, `drop_text_encoders`), so never more is in memory than needed.
    """

    def __init__(
        self, source: _File | _Folder, *, vae_path: Path | None, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.path = source.path
        self.family = source.family
        self.prediction = source.prediction
        self.zero_terminal_snr = source.zero_terminal_snr
        self.in_channels = source.in_channels
        self.tokenizers = (load_tokenizer(source.tokenizer_folder),)
        self.vae_scale = source.vae_scale
        channels = source.model_channels
        self.native_resolution_px = presets.native_resolution_px(channels)
        self.bucket_step_px = presets.bucket_step_px(channels)
        self.device = device
        self.dtype = dtype
        self._source = source
        self._vae_path = vae_path
        self._unet: Any = None
        self._vae: Any = None
        self._text_encoders: tuple[Any, ...] | None = None

    @property
    def unet(self) -> Any:
        if self._unet is None:
            self._unet = _frozen(self._source.load_unet(self.device, self.dtype))
        return self._unet

    @property
    def vae(self) -> Any:
        """In float32, whatever the compute dtype is: in half precision some pictures overflow it."""
        if self._vae is None:
            own = load_vae(self._vae_path, self.device) if self._vae_path else None
            self._vae = _frozen(own if own is not None else self._source.load_vae(self.device))
        return self._vae

    @property
    def text_encoders(self) -> tuple[Any, ...]:
        if self._text_encoders is None:
            self._text_encoders = (_frozen(self._source.load_text_encoder(self.device, self.dtype)),)
        return self._text_encoders

    def drop_vae(self) -> None:
        self._vae = None

    def drop_text_encoders(self) -> None:
        self._text_encoders = None


def load_base_model(path: Path, *, vae_path: Path | None, device: torch.device, dtype: torch.dtype) -> BaseModel:
    """Open a base model: its UNet and text encoder will be in `dtype`, its VAE in float32, on `device`.

    Raises ModelError for a file that can't be read or is of another family; the parts, when they are loaded, for
    missing tensors.
    """
    source = _Folder(path) if path.is_dir() else _File(path)
    return BaseModel(source, vae_path=vae_path, device=device, dtype=dtype)


def _frozen(part: Any) -> Any:
    part.requires_grad_(False)
    return part.eval()


class _File:
    """A checkpoint in a single file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = read_tensor_file(path)
        facts = detect_checkpoint(self._file.tensors)
        require_supported(facts, path)
        self._shapes = {name: info.shape for name, info in self._file.tensors.items()}
        self._hints = read_hints(path)
        self.family = facts.family
        self.zero_terminal_snr = facts.zero_terminal_snr
        self.in_channels = facts.in_channels
        self.model_channels = facts.model_channels
        self.vae_scale = self._hints.vae_scale
        self.tokenizer_folder = self._hints.text_folder
        is_v = "v_prediction" in (self._hints.prediction, facts.prediction)
        self.prediction = "v_prediction" if is_v else "epsilon"

    def load_unet(self, device: torch.device, dtype: torch.dtype) -> Any:
        with _naming(self.path):
            config = unet_config(self._shapes, self._hints)
        return _unet_from_file(self._file, config, device, dtype)

    def load_vae(self, device: torch.device) -> Any:
        return _vae_from_file(self._file, ldm_names.VAE_PREFIX, self._hints, device)

    def load_text_encoder(self, device: torch.device, dtype: torch.dtype) -> Any:
        prefix = _text_prefix(self._file)
        with _naming(self.path):
            config = text_config(self._shapes, prefix, self._hints)
        text_encoder = _build_text_encoder(config)
        _fill(_text_core(text_encoder), self._file, lambda name: [prefix + name], device, dtype)
        return text_encoder


class _Folder:
    """A diffusers folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        facts = detect_folder(path)
        require_supported(facts, path)
        self.family = facts.family
        self.zero_terminal_snr = facts.zero_terminal_snr
        self.in_channels = facts.in_channels
        self.model_channels = facts.model_channels
        self.prediction = "v_prediction" if facts.prediction == "v_prediction" else "epsilon"
        self.vae_scale = float(_config(path / "vae").get("scaling_factor", Hints().vae_scale))
        self.tokenizer_folder = path / "tokenizer"

    def load_unet(self, device: torch.device, dtype: torch.dtype) -> Any:
        from diffusers import UNet2DConditionModel

        with torch.device("meta"):
            unet: Any = UNet2DConditionModel.from_config(_config(self.path / "unet"))
        _fill(unet, _weights(self.path / "unet"), lambda name: [name], device, dtype)
        return unet

    def load_vae(self, device: torch.device) -> Any:
        from diffusers import AutoencoderKL

        with torch.device("meta"):
            vae: Any = AutoencoderKL.from_config(_config(self.path / "vae"))
        _fill(vae, _weights(self.path / "vae"), _new_and_old_vae_names, device, torch.float32)
        return vae

    def load_text_encoder(self, device: torch.device, dtype: torch.dtype) -> Any:
        folder = self.path / "text_encoder"
        text_encoder = _build_text_encoder(_config(folder))
        names = lambda name: ["text_model." + name, name]  # noqa: E731
        _fill(_text_core(text_encoder), _weights(folder), names, device, dtype)
        return text_encoder


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
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)


def _unet_from_file(file: TensorFile, config: dict[str, Any], device: torch.device, dtype: torch.dtype) -> Any:
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

    with _naming(file.path):
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
    _fill(vae, file, _new_and_old_vae_names, device, torch.float32)
    return vae


def _new_and_old_vae_names(name: str) -> list[str]:
    return [name, ldm_names.old_vae_name(name)]


def _diffusers_vae_config(file: TensorFile) -> dict[str, Any]:
    """Sizes of a diffusers-layout VAE: its tensors under their original names, then as for those."""
    tensors = file.tensors
    levels = 0
    while f"decoder.up_blocks.{levels}.resnets.0.conv1.weight" in tensors:
        levels += 1
    shapes = {ldm_names.vae_name(name, levels): info.shape for name, info in tensors.items()}
    with _naming(file.path):
        return vae_config(shapes, "", Hints())


@contextmanager
def _naming(path: Path) -> Generator[None, None, None]:
    """Sizes are told from shapes alone; what is wrong with them belongs to a file."""
    try:
        yield
    except ModelError as error:
        raise ModelError(f"{path}: {error.message}", error.hint) from None


def _text_prefix(file: TensorFile) -> str:
    """Text-encoder names come with and without `text_model.`; both are read. Raises ModelError for neither."""
    for prefix in (ldm_names.TEXT_PREFIX + "text_model.", ldm_names.TEXT_PREFIX):
        if f"{prefix}embeddings.token_embedding.weight" in file.tensors:
            return prefix
    raise ModelError(f"{file.path} has no text encoder.", "Choose a full checkpoint, as it is offered for WebUIs.")


def _build_text_encoder(config: dict[str, Any]) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        return CLIPTextModel(CLIPTextConfig(**config))


def _text_core(text_encoder: Any) -> nn.Module:
    """The transformer itself: transformers 4 wraps it in `text_model`, transformers 5 does not."""
    return getattr(text_encoder, "text_model", text_encoder)


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
            missing.append(next(iter(names(name))))
            continue
        shape, wanted = file.tensors[found].shape, tuple(parameter.shape)
        if shape != wanted and shape != (*wanted, 1, 1):
            raise ModelError(f"{file.path}: {found} has the shape {shape}, {wanted} was expected.")
        tensor = read_tensor(file, found).to(device=device, dtype=dtype)
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
