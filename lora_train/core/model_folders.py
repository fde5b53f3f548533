"""Which model family a diffusers folder is of, from its configuration files."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar, cast

import msgspec

from lora_train.core.errors import MOST_OF_REASON, ModelError, shown
from lora_train.core.families import CheckpointFacts, Family, Prediction, commonest_dtype
from lora_train.core.files import DAMAGED_JSON
from lora_train.core.tensorfiles import read_tensor_file


class _Index(msgspec.Struct):
    """model_index.json: the pipeline's class; each part is [library, class] or [null, null]."""

    class_name: str = msgspec.field(name="_class_name", default="")


class _UnetConfig(msgspec.Struct):
    in_channels: int | None = None
    block_out_channels: list[int] = []
    cross_attention_dim: int | list[int] | None = None
    mid_block_type: str | None = "UNetMidBlock2DCrossAttn"


class _SchedulerConfig(msgspec.Struct):
    class_name: str = msgspec.field(name="_class_name", default="")
    prediction_type: str = "epsilon"  # what diffusers takes where a scheduler doesn't say
    rescale_betas_zero_snr: bool = False


class _TextConfig(msgspec.Struct):
    hidden_act: str = "quick_gelu"


_Config = TypeVar("_Config", bound=msgspec.Struct)

_PIPELINES: dict[str, Family] = {
    "StableDiffusion3Pipeline": "sd3",
    "FluxPipeline": "flux",
    "AltDiffusionPipeline": "altdiffusion",
    "StableDiffusionDepth2ImgPipeline": "sd2-depth",
    "StableUnCLIPPipeline": "unclip",
    "StableUnCLIPImg2ImgPipeline": "unclip",
    "StableDiffusionInstructPix2PixPipeline": "instruct-pix2pix",
}


def find_weights(folder: Path) -> Path | None:
    """The weights file of one part of a diffusers folder: full precision before fp16, safetensors
    before pickles; the index file where the weights are in several pieces."""
    for suffix in (
        ".safetensors",
        ".fp16.safetensors",
        ".bin",
        ".fp16.bin",
        ".safetensors.index.json",
    ):
        for stem in ("diffusion_pytorch_model", "model", "pytorch_model"):
            path = folder / f"{stem}{suffix}"
            if path.is_file():
                return path
    return None


def detect_folder(path: Path) -> CheckpointFacts:
    """`detect_checkpoint` for a diffusers folder, from model_index.json and the parts' config.json.

    Weights may be missing (`unet_weights` is then None). Raises ModelError for a folder without
    these files or with damaged ones.
    """
    if not (path / "model_index.json").is_file():
        raise ModelError(
            f"{path} is not the folder of a diffusers model: it has no model_index.json.",
            "Choose the folder that holds model_index.json, or a .safetensors file.",
        )
    pipeline = _read_config(path / "model_index.json", _Index).class_name
    unet = _read_config(path / "unet" / "config.json", _UnetConfig)
    scheduler = _read_config(path / "scheduler" / "scheduler_config.json", _SchedulerConfig)
    family = _family_of_folder(path, pipeline, unet)
    is_known = scheduler.prediction_type in ("epsilon", "v_prediction") and not scheduler.class_name.startswith("EDM")
    is_known = is_known and family not in ("sd3", "flux", "unknown")
    weights = find_weights(path / "unet")
    return CheckpointFacts(
        family,
        prediction=cast("Prediction", scheduler.prediction_type if is_known else "unknown"),
        zero_terminal_snr=scheduler.rescale_betas_zero_snr,
        has_text_encoder=find_weights(path / "text_encoder") is not None,
        has_vae=find_weights(path / "vae") is not None,
        unet_dtype=_weights_dtype(weights),
        in_channels=unet.in_channels,
        model_channels=unet.block_out_channels[0] if unet.block_out_channels else None,
        cross_attention_dim=_single(unet.cross_attention_dim),
        unet_weights=weights.relative_to(path).as_posix() if weights else None,
        reason=_folder_reason(pipeline, unet) if family == "unknown" else "",
    )


def _family_of_folder(path: Path, pipeline: str, unet: _UnetConfig) -> Family:
    if pipeline in _PIPELINES:
        return _PIPELINES[pipeline]
    if unet.in_channels is None or not pipeline.startswith("StableDiffusion"):
        return "unknown"
    text_dim = _single(unet.cross_attention_dim)
    if pipeline.startswith("StableDiffusionXL"):
        if unet.in_channels == 9:
            return "sdxl-inpaint"
        if text_dim == 1280:
            return "sdxl-refiner"
        return "sdxl" if unet.mid_block_type else "ssd-1b"
    is_sd2 = text_dim == 1024
    if text_dim not in (768, 1024):
        # Small models: SD2's encoder is an OpenCLIP one, which differs in its activation.
        text = _read_config(path / "text_encoder" / "config.json", _TextConfig)
        is_sd2 = text.hidden_act == "gelu"
    by_channels: dict[int | None, Family] = {
        4: "sd2" if is_sd2 else "sd1",
        8: "instruct-pix2pix",
        9: "sd2-inpaint" if is_sd2 else "sd1-inpaint",
    }
    return by_channels.get(unet.in_channels, "unknown")


def _weights_dtype(weights: Path | None) -> str | None:
    if weights is None or weights.suffix == ".json":
        return None
    return commonest_dtype(read_tensor_file(weights).tensors)


def _single(value: int | list[int] | None) -> int | None:
    if isinstance(value, list):
        return value[0] if value else None
    return value


def _folder_reason(pipeline: str, unet: _UnetConfig) -> str:
    if unet.in_channels is None:
        return f"it holds a {pipeline or 'model'} of diffusers without a UNet (unet/config.json)"
    return f"it holds a {pipeline or 'model'} of diffusers with {unet.in_channels} input channels"


def _read_config(path: Path, kind: type[_Config]) -> _Config:
    """A part's settings; all at their defaults where the part is missing. Raises ModelError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return kind()
    except (OSError, *DAMAGED_JSON) as error:
        raise ModelError(f"{path} can't be read: {shown(error, MOST_OF_REASON)}.") from None
