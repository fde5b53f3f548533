"""Base models from single files (.safetensors, .ckpt), diffusers folders and separate VAE files.

No network is needed, and nothing is held twice (see `weights`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from torch import nn

from lora_train.core import presets
from lora_train.core.assets import ASSETS
from lora_train.core.checkpoints import facts_of, read_checkpoint, require_supported, with_choices
from lora_train.core.errors import MOST_OF_REASON, ModelError, shown
from lora_train.core.families import CheckpointFacts
from lora_train.core.files import DAMAGED_JSON
from lora_train.core.hash_cache import HashCache
from lora_train.core.memory_settings import BaseWeights
from lora_train.core.noise_settings import PredictionChoice, ZeroTerminalSnr
from lora_train.core.tensor_infos import TensorFile
from lora_train.core.tensorfiles import read_tensor_file
from lora_train.engine import ldm_names
from lora_train.engine.frozen import block_layers, freeze
from lora_train.engine.ldm_names import Place
from lora_train.engine.lowered import may_stay_half
from lora_train.engine.quantised import Packer
from lora_train.engine.topology import SD1_HEADS, read_hints, text_config, unet_config, vae_config, without_last_layer
from lora_train.engine.weights import WHOLE_FOLDER, Weights, fill, folder_weights, identity

_SD_VAE_SCALE = 0.18215
_SDXL_VAE_SCALE = 0.13025
_OPEN_CLIP_PADDING = "!"
_TEXT_PREFIXES = (*ldm_names.CLIP_PREFIXES, *ldm_names.SD2_TEXT_PREFIXES, *ldm_names.SDXL_TEXT_PREFIXES)


class BaseModel:
    """A base model whose parts are loaded when they are wanted, each frozen and in evaluation mode.

    unet          diffusers UNet2DConditionModel: (B, in_channels, h, w), (B,), (B, T, D) -> (B, 4, h, w)
    vae           diffusers AutoencoderKL; `vae_scale` turns its latents into the UNet's
    text_encoders one transformers CLIPTextModel, for SDXL also a CLIPTextModelWithProjection
    tokenizers    one for each text encoder; the padding of each is its `pad_token_id`

    A part that has done its work is let go (`drop_vae`, `drop_text_encoders`), so never more is in memory than needed.
    """

    def __init__(
        self,
        source: _File | _Folder,
        facts: CheckpointFacts,
        *,
        vae_path: Path | None,
        device: torch.device,
        dtype: torch.dtype,
        layout: torch.memory_format = torch.contiguous_format,
        base_weights: BaseWeights,
    ) -> None:
        self.path = source.path
        self.family = facts.family
        self.prediction = facts.prediction
        self.zero_terminal_snr = facts.zero_terminal_snr
        self.built = f"{facts.prediction} {facts.zero_terminal_snr} {source.built}"
        """What its tensors don't tell: another text, another model."""
        self.in_channels = facts.in_channels
        self.tokenizers = tuple(
            load_tokenizer(folder, is_open_clip=is_open_clip)
            for folder, is_open_clip in zip(source.tokenizer_folders, _open_clips(facts), strict=True)
        )
        self.vae_scale = source.vae_scale
        self.native_resolution_px = presets.native_resolution_px(facts)
        self.bucket_step_px = presets.bucket_step_px(facts.model_channels)
        self.device = device
        self.dtype = dtype
        self._layout = layout
        self.base_weights: BaseWeights = base_weights
        """How the UNet's weights are stored when it is loaded."""
        self._source = source
        self._vae_path = vae_path
        self._unet: Any = None
        self._vae: Any = None
        self._text_encoders: tuple[Any, ...] | None = None

    @property
    def unet(self) -> Any:
        if self._unet is None:
            form = _UNetForm(self.device, self.dtype, self._layout, self.base_weights)
            self._unet = _frozen(self._source.load_unet(form))
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
            loaded = self._source.load_text_encoders(self.device, self.dtype)
            self._text_encoders = tuple(_frozen(text_encoder) for text_encoder in loaded)
        return self._text_encoders

    def vae_identity(self, hashes: HashCache) -> str:
        """A hash of what encodes pictures, the same for every file that holds the same; nothing is loaded."""
        if self._vae_path is None:
            return self._source.vae_identity(hashes)
        return _vae_identity(Weights.of(read_tensor_file(self._vae_path)), hashes)

    def text_identity(self, hashes: HashCache) -> str:
        """The same for what encodes texts."""
        return self._source.text_identity(hashes)

    def drop_vae(self) -> None:
        self._vae = None

    def drop_text_encoders(self) -> None:
        self._text_encoders = None


def load_base_model(
    path: Path,
    *,
    vae_path: Path | None,
    device: torch.device,
    dtype: torch.dtype,
    prediction: PredictionChoice = "auto",
    zero_terminal_snr: ZeroTerminalSnr = "auto",
    layout: torch.memory_format = torch.contiguous_format,
    base_weights: BaseWeights = "full",
) -> BaseModel:
    """Open a base model: its UNet and text encoders will be in `dtype`, its VAE in float32, on `device`.

    `layout` is the memory layout of the UNet's convolutions. With other `base_weights` most of the UNet's weights are
    packed in 8 bits (see `quantised`) while they are read.
    `prediction` and `zero_terminal_snr` are the settings of these names. Raises ModelError for a file that can't be
    read or is of another family, ConfigError for a zero-terminal SNR that the model can't have; the parts, when they
    are loaded, ModelError for missing tensors.
    """
    file = None if path.is_dir() else read_tensor_file(path)
    facts = facts_of(file) if file is not None else read_checkpoint(path)
    require_supported(facts, path)
    facts = with_choices(facts, prediction, zero_terminal_snr)
    source = _File(file, facts) if file is not None else _Folder(path, facts)
    return BaseModel(
        source,
        facts,
        vae_path=vae_path,
        device=device,
        dtype=dtype,
        layout=layout,
        base_weights=base_weights,
    )


def _frozen(part: Any) -> Any:
    part.requires_grad_(False)
    return part.eval()


def _open_clips(facts: CheckpointFacts) -> tuple[bool, ...]:
    """For each text encoder of the family, whether it is an OpenCLIP."""
    if facts.family.startswith("sdxl"):
        return (False, True)
    return (facts.family.startswith("sd2"),)


class _UNetForm(NamedTuple):
    """How a UNet is held: where, in which number format and memory layout, and how its weights are stored."""

    device: torch.device
    dtype: torch.dtype
    layout: torch.memory_format
    base_weights: BaseWeights

    def fill(self, unet: Any, source: Weights, places: Callable[[str], Iterable[str | Place]]) -> None:
        packed = Packer(unet, self.base_weights).packed
        layers = {f"{name}.weight": layer for name, layer in block_layers(unet)} if self.base_weights == "full" else {}

        def stays_half(name: str, own: torch.dtype) -> bool:
            return name in layers and may_stay_half(layers[name], own, self.dtype, self.device)

        fill(unet, source, places, self.device, self.dtype, self.layout, packed, stays_half)
        for layer in layers.values():
            if layer.weight.dtype != self.dtype:
                freeze(layer, self.dtype)


class _File:
    """A checkpoint in a single file."""

    def __init__(self, file: TensorFile, facts: CheckpointFacts) -> None:
        self.path = file.path
        self._file = file
        self._facts = facts
        self._shapes = {name: info.shape for name, info in file.tensors.items()}
        self._hints = read_hints(file.path)
        is_sdxl = facts.family.startswith("sdxl")
        self.vae_scale = self._hints.vae_scale or (_SDXL_VAE_SCALE if is_sdxl else _SD_VAE_SCALE)
        self.tokenizer_folders = (self._hints.text_folder, None) if is_sdxl else (self._hints.text_folder,)
        self.built = f"{self._hints.heads or SD1_HEADS} {self.vae_scale} {self._hints.text_config}"

    def load_unet(self, form: _UNetForm) -> Any:
        from diffusers import UNet2DConditionModel

        with _naming(self.path):
            config = unet_config(self._shapes, self._hints, self._facts.family)
        with torch.device("meta"):
            unet: Any = UNet2DConditionModel(**config)
        attention = ["CrossAttn" in kind for kind in config["down_block_types"]]

        def names(name: str) -> list[str]:
            ldm = ldm_names.unet_module_name(name, config["layers_per_block"], attention)
            return [ldm_names.UNET_PREFIX + ldm]

        form.fill(unet, Weights.of(self._file), names)
        return unet

    def load_vae(self, device: torch.device) -> Any:
        return _vae_from_file(self._file, ldm_names.VAE_PREFIX, self.vae_scale, device)

    def vae_identity(self, hashes: HashCache) -> str:
        return _vae_identity(Weights.of(self._file), hashes)

    def text_identity(self, hashes: HashCache) -> str:
        weights = identity(
            Weights.of(self._file), "text encoders", lambda name: name.startswith(_TEXT_PREFIXES), hashes
        )
        return f"{weights} {self._facts.family} {self._hints.text_config}"

    def load_text_encoders(self, device: torch.device, dtype: torch.dtype) -> list[Any]:
        if self._facts.family.startswith("sd2"):
            return [self._load_open_clip(ldm_names.SD2_TEXT_PREFIXES, device, dtype, is_second=False)]
        first = self._load_clip(device, dtype)
        if not self._facts.family.startswith("sdxl"):
            return [first]
        return [first, self._load_open_clip(ldm_names.SDXL_TEXT_PREFIXES, device, dtype, is_second=True)]

    def _load_clip(self, device: torch.device, dtype: torch.dtype) -> Any:
        prefix = self._text_prefix(ldm_names.CLIP_PREFIXES, "embeddings.token_embedding.weight")
        with _naming(self.path):
            config = text_config(self._shapes, lambda name: prefix + name, self._hints, is_open_clip=False)
        text_encoder = _build_text_encoder(config)
        fill(_text_core(text_encoder), Weights.of(self._file), lambda name: [prefix + name], device, dtype)
        return text_encoder

    def _load_open_clip(
        self, prefixes: Iterable[str], device: torch.device, dtype: torch.dtype, *, is_second: bool
    ) -> Any:
        prefix = self._text_prefix(prefixes, "token_embedding.weight")

        def place(name: str) -> Place:
            found = ldm_names.open_clip_place(name)
            return found._replace(name=prefix + found.name)

        with _naming(self.path):
            config = text_config(self._shapes, lambda name: place(name).name, self._hints, is_open_clip=True)
        text_encoder = _build_text_encoder(config if is_second else without_last_layer(config), is_second=is_second)
        whole = text_encoder if is_second else _text_core(text_encoder)
        fill(whole, Weights.of(self._file), lambda name: [place(name.removeprefix("text_model."))], device, dtype)
        return text_encoder

    def _text_prefix(self, prefixes: Iterable[str], first: str) -> str:
        """The one of the `prefixes` that the file has. Raises ModelError for none."""
        for prefix in prefixes:
            if prefix + first in self._file.tensors:
                return prefix
        raise ModelError(f"{self.path} has no text encoder.", "Choose a full checkpoint, as it is offered for WebUIs.")


class _Folder:
    """A diffusers folder."""

    def __init__(self, path: Path, facts: CheckpointFacts) -> None:
        self.path = path
        self._is_sdxl = facts.family.startswith("sdxl")
        usual = _SDXL_VAE_SCALE if self._is_sdxl else _SD_VAE_SCALE
        self.vae_scale = float(_config(path / "vae").get("scaling_factor", usual))
        names = ("tokenizer", "tokenizer_2") if self._is_sdxl else ("tokenizer",)
        self.tokenizer_folders = tuple(path / name for name in names)
        self.built = f"{self.vae_scale}"

    def load_unet(self, form: _UNetForm) -> Any:
        from diffusers import UNet2DConditionModel

        with torch.device("meta"):
            unet: Any = UNet2DConditionModel.from_config(_config(self.path / "unet"))
        form.fill(unet, folder_weights(self.path / "unet"), lambda name: [name])
        return unet

    def load_vae(self, device: torch.device) -> Any:
        from diffusers import AutoencoderKL

        with torch.device("meta"):
            vae: Any = AutoencoderKL.from_config(_config(self.path / "vae"))
        fill(vae, folder_weights(self.path / "vae"), _new_and_old_vae_names, device, torch.float32)
        return vae

    def vae_identity(self, hashes: HashCache) -> str:
        return f"{_vae_identity(folder_weights(self.path / 'vae'), hashes)} {_config(self.path / 'vae')}"

    def text_identity(self, hashes: HashCache) -> str:
        folders = [
            self.path / part for part in (("text_encoder", "text_encoder_2") if self._is_sdxl else ("text_encoder",))
        ]
        return " ".join(
            f"{identity(folder_weights(folder), 'text encoders', lambda _: True, hashes)} {_config(folder)}"
            for folder in folders
        )

    def load_text_encoders(self, device: torch.device, dtype: torch.dtype) -> list[Any]:
        first = self._load_text_encoder("text_encoder", device, dtype, is_second=False)
        if not self._is_sdxl:
            return [first]
        return [first, self._load_text_encoder("text_encoder_2", device, dtype, is_second=True)]

    def _load_text_encoder(self, part: str, device: torch.device, dtype: torch.dtype, *, is_second: bool) -> Any:
        folder = self.path / part
        text_encoder = _build_text_encoder(_config(folder), is_second=is_second)
        whole = text_encoder if is_second else _text_core(text_encoder)
        fill(whole, folder_weights(folder), lambda name: [f"text_model.{name}", name], device, dtype)
        return text_encoder


def load_vae(path: Path, device: torch.device) -> Any:
    """A separate VAE file (original or diffusers layout, or a whole checkpoint) in float32. Raises ModelError."""
    file = read_tensor_file(path)
    if any(name.startswith("decoder.up_blocks.") for name in file.tensors):
        return _vae_from_diffusers_file(file, _diffusers_vae_config(file), device)
    prefix = ldm_names.VAE_PREFIX if any(n.startswith(ldm_names.VAE_PREFIX) for n in file.tensors) else ""
    if f"{prefix}decoder.conv_in.weight" not in file.tensors:
        raise ModelError(f"{path} is not a VAE.", "Choose a VAE of the base model's family, or none.")
    return _vae_from_file(file, prefix, _SD_VAE_SCALE, device)


def _vae_identity(source: Weights, hashes: HashCache) -> str:
    """Of its encoder alone: VAEs that differ in how they decode give the same latents."""
    prefix = ldm_names.VAE_PREFIX if any(name.startswith(ldm_names.VAE_PREFIX) for name in source.files) else ""
    parts = (f"{prefix}encoder.", f"{prefix}quant_conv.")
    return identity(source, "vae encoder", lambda name: name.startswith(parts), hashes)


def load_tokenizer(folder: Path | None = None, *, is_open_clip: bool = False) -> Any:
    """CLIP's tokenizer: the vocabulary in `folder` where it has one, else the one that ships with us.

    Its `pad_token_id` is that of the text encoder: the end token for CLIP-L, 0 for OpenCLIP.
    """
    from transformers import CLIPTokenizer

    if folder is None or not (folder / "vocab.json").is_file():
        folder = ASSETS / "clip_vocabulary"
    tokenizer: Any = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)
    if is_open_clip:
        # Set afterwards: a padding token given to the constructor is cut out of captions too, as a token by itself.
        tokenizer.pad_token = _OPEN_CLIP_PADDING
    return tokenizer


def _vae_from_file(file: TensorFile, prefix: str, vae_scale: float, device: torch.device) -> Any:
    from diffusers import AutoencoderKL

    with _naming(file.path):
        config = vae_config({name: info.shape for name, info in file.tensors.items()}, prefix, vae_scale)
    with torch.device("meta"):
        vae = AutoencoderKL(**config)
    levels = len(config["block_out_channels"])
    fill(vae, Weights.of(file), lambda name: [prefix + ldm_names.vae_name(name, levels)], device, torch.float32)
    return vae


def _vae_from_diffusers_file(file: TensorFile, config: dict[str, Any], device: torch.device) -> Any:
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        vae = AutoencoderKL(**config)
    fill(vae, Weights.of(file), _new_and_old_vae_names, device, torch.float32)
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
        return vae_config(shapes, "", _SD_VAE_SCALE)


@contextmanager
def _naming(path: Path) -> Generator[None, None, None]:
    """Sizes are told from shapes alone; what is wrong with them belongs to a file."""
    try:
        yield
    except ModelError as error:
        raise ModelError(f"{path}: {error.message}", error.hint) from None


def _build_text_encoder(config: dict[str, Any], *, is_second: bool = False) -> Any:
    """On the meta device. SDXL's second encoder comes with the projection of its pooled output."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    with torch.device("meta"):
        return (CLIPTextModelWithProjection if is_second else CLIPTextModel)(CLIPTextConfig(**config))


def _text_core(text_encoder: Any) -> nn.Module:
    """The transformer itself: transformers 4 wraps it in `text_model`, transformers 5 does not."""
    return getattr(text_encoder, "text_model", text_encoder)


def _config(folder: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode((folder / "config.json").read_bytes(), type=dict[str, Any])
    except OSError as error:
        raise ModelError(f"{folder / 'config.json'} can't be read ({error.strerror or error}).", WHOLE_FOLDER) from None
    except DAMAGED_JSON as error:
        raise ModelError(
            f"{folder / 'config.json'} can't be read: {shown(error, MOST_OF_REASON)}.", WHOLE_FOLDER
        ) from None
