"""Which model family a checkpoint belongs to, from the names and shapes of its tensors.

The tests and their order are those by which WebUIs tell models apart, so that they and we agree on
a file. A family is told by names and input channels, never by widths: small models have SD 1.x's
names with other sizes. Diffusers folders are another matter: `model_folders`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

import msgspec

from lora_train.core.tensor_infos import TensorInfo

Family = Literal[
    "sd1",
    "sd2",
    "sdxl",
    "sd1-inpaint",
    "sd2-inpaint",
    "sdxl-inpaint",
    "sdxl-refiner",
    "ssd-1b",
    "sd2-depth",
    "unclip",
    "instruct-pix2pix",
    "altdiffusion",
    "sd3",
    "flux",
    "unknown",
]

Prediction = Literal["epsilon", "v_prediction", "unknown"]

FileKind = Literal["checkpoint", "lora", "vae", "embedding", "unknown"]

FAMILY_NAMES: dict[Family, str] = {
    "sd1": "a Stable Diffusion 1.x checkpoint",
    "sd2": "a Stable Diffusion 2.x checkpoint",
    "sdxl": "an SDXL checkpoint",
    "sd1-inpaint": "a Stable Diffusion 1.x inpainting checkpoint",
    "sd2-inpaint": "a Stable Diffusion 2.x inpainting checkpoint",
    "sdxl-inpaint": "an SDXL inpainting checkpoint",
    "sdxl-refiner": "an SDXL refiner",
    "ssd-1b": "an SSD-1B checkpoint (a shortened SDXL)",
    "sd2-depth": "a Stable Diffusion 2.x depth checkpoint",
    "unclip": "a Stable unCLIP checkpoint",
    "instruct-pix2pix": "an InstructPix2Pix checkpoint",
    "altdiffusion": "an AltDiffusion checkpoint",
    "sd3": "a Stable Diffusion 3 checkpoint",
    "flux": "a Flux checkpoint",
    "unknown": "not a checkpoint of a known kind",
}

FAMILY_LABELS: dict[Family, str] = {
    "sd1": "Stable Diffusion 1.x",
    "sd2": "Stable Diffusion 2.x",
    "sdxl": "SDXL",
    "sd1-inpaint": "Stable Diffusion 1.x inpainting",
    "sd2-inpaint": "Stable Diffusion 2.x inpainting",
    "sdxl-inpaint": "SDXL inpainting",
}
"""The families that are trained, for a person to read."""

_UNET = "model.diffusion_model."
_INPUT_CONV = _UNET + "input_blocks.0.0.weight"
_OPEN_CLIP = "cond_stage_model.model."

_LORA_PARTS = (
    *(".lora_down.", ".lora_up.", ".lora_A.", ".lora_B.", ".lora.down.", ".lora.up."),
    *("_lora.down.", "_lora.up.", ".hada_w1_a", ".lokr_w1", ".lokr_w2", ".oft_blocks", ".oft_diag"),
    *(".lora_linear_layer.", ".dora_scale"),
)


class CheckpointFacts(msgspec.Struct, frozen=True):
    """What the header of a base model tells. `reason` says why a file is "unknown".

    zero_terminal_snr     the file carries the marker of zero-terminal SNR (`ztsnr`)
    text_encoder_layout   CLIP names with `text_model.` or without it ("bare"), or OpenCLIP's
    unet_weights          of a diffusers folder: the UNet's weights file, relative to the folder
    """

    family: Family
    prediction: Prediction = "unknown"
    zero_terminal_snr: bool = False
    has_text_encoder: bool = False
    has_vae: bool = False
    has_ema: bool = False
    unet_dtype: str | None = None
    in_channels: int | None = None
    model_channels: int | None = None
    cross_attention_dim: int | None = None
    text_encoder_layout: Literal["text_model", "bare", "open_clip"] | None = None
    unet_weights: str | None = None
    reason: str = ""


class Guess(NamedTuple):
    """What kind of file the tensor names show; `reason` says so of what is no checkpoint."""

    kind: FileKind
    reason: str = ""


def guess_kind(tensors: Mapping[str, TensorInfo]) -> Guess:
    """Tell a checkpoint from the other files that people put beside it."""
    names = tensors.keys()
    if _any_starts(names, "lora_unet_", "lora_te", "lycoris_") or any(
        part in name for name in names for part in _LORA_PARTS
    ):
        return Guess("lora", "this is a LoRA, not a base model")
    if _any_starts(names, _UNET) or _is_flux(names) or _is_bare_sd3(names):
        return Guess("checkpoint")
    if _any_starts(names, "control_model.", "controlnet_"):
        return Guess("unknown", "this is a ControlNet, not a base model")
    if any(name.removeprefix("first_stage_model.") == "decoder.conv_in.weight" for name in names):
        return Guess("vae", "this is a VAE, not a base model")
    if names & {"emb_params", "clip_l", "clip_g"} or _any_starts(names, "string_to_param."):
        return Guess("embedding", "this is a textual inversion embedding, not a base model")
    if "down_blocks.0.resnets.0.conv1.weight" in names:
        where = "choose the folder that holds its model_index.json"
        return Guess("unknown", f"this is the UNet alone of a diffusers folder: {where}")
    if any("text_model.encoder.layers.0." in name for name in names):
        return Guess("unknown", "this is a text encoder alone, not a base model")
    if len(tensors) == 1 and len(next(iter(tensors.values())).shape) == 2:
        return Guess("embedding", "this looks like a textual inversion embedding, not a base model")
    return Guess("unknown", "its tensors have no names of Stable Diffusion")


def detect_checkpoint(tensors: Mapping[str, TensorInfo]) -> CheckpointFacts:
    """Tell the family of a single-file base model and what else its header says.

    SD2's prediction stays "unknown": only its weights tell it (`checkpoints.facts_of` reads them). A
    model of another kind than a checkpoint is "unknown" with its `reason`.
    """
    guess = guess_kind(tensors)
    if guess.kind != "checkpoint":
        return CheckpointFacts("unknown", reason=guess.reason)
    family = _family(tensors)
    conv = tensors.get(_INPUT_CONV)
    channels, in_channels = conv.shape[:2] if conv and len(conv.shape) == 4 else (None, None)
    reason = ""
    if family == "unknown":
        reason = f"its UNet takes {in_channels or 'an unknown number of'} input channels instead of 4"
    return CheckpointFacts(
        family,
        prediction=_prediction(family, tensors),
        zero_terminal_snr="ztsnr" in tensors,
        has_text_encoder=_any_starts(tensors, "cond_stage_model.", "conditioner.embedders."),
        has_vae=_any_starts(tensors, "first_stage_model."),
        has_ema=_any_starts(tensors, "model_ema."),
        unet_dtype=commonest_dtype(tensors, _UNET),
        in_channels=in_channels,
        model_channels=channels,
        cross_attention_dim=_cross_attention_dim(tensors),
        text_encoder_layout=_text_encoder_layout(tensors),
        reason=reason,
    )


def _family(tensors: Mapping[str, TensorInfo]) -> Family:
    """The WebUIs' order; each test relies on those before it."""
    if _UNET + "x_embedder.proj.weight" in tensors or _is_bare_sd3(tensors):
        return "sd3"
    if _is_flux(tensors):
        return "flux"
    in_channels = _length(tensors, _INPUT_CONV, 1)
    if "conditioner.embedders.1.model.ln_final.weight" in tensors:
        return _sdxl_variant(tensors)
    if "conditioner.embedders.0.model.ln_final.weight" in tensors:
        # SD 2.1 Turbo came with the names of an SDXL refiner, whose encoder is 1280 wide, and whose UNet takes sizes.
        is_wide = _length(tensors, "conditioner.embedders.0.model.ln_final.weight", 0) == 1280
        is_sd2 = not is_wide and _UNET + "label_emb.0.0.weight" not in tensors
        return "sd2" if is_sd2 else "sdxl-refiner"
    if "depth_model.model.pretrained.act_postprocess3.0.project.0.bias" in tensors:
        return "sd2-depth"
    if "embedder.model.ln_final.weight" in tensors:
        return "unclip"
    if _OPEN_CLIP + "transformer.resblocks.0.attn.in_proj_weight" in tensors:
        return "sd2-inpaint" if in_channels == 9 else "sd2"
    if "cond_stage_model.roberta.embeddings.word_embeddings.weight" in tensors:
        return "altdiffusion"
    return _family_of_unet(tensors, in_channels)


def _family_of_unet(tensors: Mapping[str, TensorInfo], in_channels: int | None) -> Family:
    """SD1, and files without a text encoder, which WebUIs would take for SD1 whatever they are."""
    if not _any_starts(tensors, "cond_stage_model."):
        text_dim = _cross_attention_dim(tensors)
        if _UNET + "label_emb.0.0.weight" in tensors:
            return "sdxl-refiner" if text_dim == 1280 else _sdxl_variant(tensors)
        if text_dim == 1024:
            return "sd2-inpaint" if in_channels == 9 else "sd2"
    by_channels: dict[int | None, Family] = {4: "sd1", 8: "instruct-pix2pix", 9: "sd1-inpaint"}
    return by_channels.get(in_channels, "unknown")


def _sdxl_variant(tensors: Mapping[str, TensorInfo]) -> Family:
    if _length(tensors, _INPUT_CONV, 1) == 9:
        return "sdxl-inpaint"
    middle = _UNET + "middle_block.1.transformer_blocks.0.attn1.to_q.weight"
    return "sdxl" if middle in tensors else "ssd-1b"


def _is_flux(names: Iterable[str]) -> bool:
    return any("double_blocks.0.img_attn" in name for name in names)


def _is_bare_sd3(names: Iterable[str]) -> bool:
    return any(name.startswith("joint_blocks.0.x_block.attn") for name in names)


def _prediction(family: Family, tensors: Mapping[str, TensorInfo]) -> Prediction:
    if "v_pred" in tensors:
        return "v_prediction"
    is_edm = "edm_mean" in tensors or "edm_vpred.sigma_max" in tensors
    if is_edm or family in ("sd2", "sd2-inpaint", "sd3", "flux", "unclip", "unknown"):
        return "unknown"
    return "epsilon"


def _text_encoder_layout(
    tensors: Mapping[str, TensorInfo],
) -> Literal["text_model", "bare", "open_clip"] | None:
    for prefix in ("cond_stage_model.transformer.", "conditioner.embedders.0.transformer."):
        if _any_starts(tensors, prefix + "text_model."):
            return "text_model"
        if _any_starts(tensors, prefix + "encoder.", prefix + "embeddings."):
            return "bare"
    if _any_starts(tensors, _OPEN_CLIP, "conditioner.embedders.0.model."):
        return "open_clip"
    return None


def _cross_attention_dim(tensors: Mapping[str, TensorInfo]) -> int | None:
    for name, info in tensors.items():
        if name.startswith(_UNET) and name.endswith(".attn2.to_k.weight") and len(info.shape) == 2:
            return info.shape[1]
    return None


def commonest_dtype(tensors: Mapping[str, TensorInfo], prefix: str = "") -> str | None:
    """The number format of most of the tensors whose names begin with `prefix`."""
    counts = Counter(info.dtype for name, info in tensors.items() if name.startswith(prefix))
    return counts.most_common(1)[0][0] if counts else None


def _length(tensors: Mapping[str, TensorInfo], name: str, axis: int) -> int | None:
    info = tensors.get(name)
    return info.shape[axis] if info and len(info.shape) > axis else None


def _any_starts(names: Iterable[str], *prefixes: str) -> bool:
    return any(name.startswith(prefixes) for name in names)
