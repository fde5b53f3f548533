"""What the tensors of a LoRA tell: its kind, family, ranks, and how many layers of which part it has.

Only the header and single numbers (`alpha`) are read. The names follow kohya's scripts
(`lora_unet_….lora_down.weight`), diffusers with PEFT (`unet.….lora_A.weight`) and LyCORIS (`hada_…`, `lokr_…`).
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from pathlib import Path
from typing import Literal

import msgspec

from lora_train.core.errors import ModelError
from lora_train.core.families import Family
from lora_train.core.tensor_infos import TensorFile, TensorInfo, read_span
from lora_train.core.tensorfiles import tensor_part_sha256


class LoraFacts(msgspec.Struct, frozen=True):
    """What the tensors of a LoRA tell.

    network_types   of lora, dora, loha, lokr, oft, glora, full, norm, ia3: those whose parts occur
    family_from     what told the family: "shapes", "names", "metadata" or "" for nothing
    ranks, alphas   the different values, in rising order
    text_encoder_modules, second_text_encoder_modules   those of each text encoder; only SDXL has a second one
    convolution_modules   those with a kernel larger than 1x1
    incomplete      one text per module that lacks a part, and which
    model_hash      `sshs_model_hash` of the metadata
    hash_is_right   whether the tensors still have that hash; None when it was not computed
    """

    network_types: list[str]
    naming: Literal["kohya", "diffusers", "other"]
    family: Family
    family_from: Literal["shapes", "names", "metadata", ""]
    ranks: list[int]
    alphas: list[float]
    unet_modules: int
    text_encoder_modules: int
    second_text_encoder_modules: int
    other_modules: int
    convolution_modules: int
    incomplete: list[str]
    model_hash: str | None = None
    hash_is_right: bool | None = None


_Modules = dict[str, dict[str, TensorInfo]]

_PART = re.compile(
    r"(?P<module>.+?)(?:\.|_(?=lora\.))(?P<part>"
    r"lora_(?:down|up|mid)\.weight|lora_[AB](?:\.\w+)?\.weight|lora\.(?:down|up)\.weight"
    r"|lora_linear_layer\.(?:down|up)\.weight|lora_magnitude_vector(?:\.\w+)*"
    r"|alpha|scale|dora_scale|hada_\w+|lokr_\w+|oft_\w+|rescale|diff|diff_b|w_norm|b_norm|on_input"
    r"|[ab][12]\.weight|weight)"
)

# The first part that decides: a module's type is that of the first pattern one of its parts meets.
_TYPES = {
    "lora": re.compile(r"down|up|mid"),
    "loha": re.compile(r"hada_"),
    "lokr": re.compile(r"lokr_"),
    "oft": re.compile(r"oft_"),
    "glora": re.compile(r"[ab][12]\.weight"),
    "full": re.compile(r"diff"),
    "norm": re.compile(r"[wb]_norm"),
    "ia3": re.compile(r"on_input|weight"),
}

_NEEDED = {
    "lora": [{"down"}, {"up"}],
    "loha": [{"hada_w1_a"}, {"hada_w1_b"}, {"hada_w2_a"}, {"hada_w2_b"}],
    "lokr": [
        {"lokr_w1", "lokr_w1_a"},
        {"lokr_w1", "lokr_w1_b"},
        {"lokr_w2", "lokr_w2_a"},
        {"lokr_w2", "lokr_w2_b"},
    ],
}
"""Per type, the parts of a module; of each set, one."""

_RANK_PARTS = ("down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b")
"""Their first dimension is the rank; the second the module's inputs (not for LoKr)."""

_NUMBERS = {"F16": "<e", "BF16": "<f", "F32": "<f", "F64": "<d", "I64": "<q", "I32": "<i"}


def lora_facts(file: TensorFile, *, verify_hash: bool) -> LoraFacts:
    """What the LoRA in `file` is; `verify_hash` reads all of it to compare its recorded hash. Raises ModelError."""
    modules = _modules(file.tensors)
    types = {name: _type(parts) for name, parts in modules.items()}
    naming = _naming(modules)
    family, family_from = _family(modules, file.metadata)
    sides = Counter(_side(name) for name in modules)
    kernels = [info.shape[2:] for parts in modules.values() for info in _rank_tensor(parts)]
    model_hash = file.metadata.get("sshs_model_hash")
    is_checked = verify_hash and model_hash is not None and file.format == "safetensors"
    has_dora = any("dora_scale" in parts for parts in modules.values())
    return LoraFacts(
        network_types=sorted({*types.values(), *(["dora"] if has_dora else [])}),
        naming=naming,
        family=family,
        family_from=family_from,
        ranks=sorted({info.shape[0] for parts in modules.values() for info in _rank_tensor(parts)}),
        alphas=_alphas(file.path, modules),
        unet_modules=sides["unet"],
        text_encoder_modules=sides["text_encoder"],
        second_text_encoder_modules=sides["second_text_encoder"],
        other_modules=sides["other"],
        convolution_modules=sum(any(length > 1 for length in kernel) for kernel in kernels),
        incomplete=_incomplete(modules, types, naming) + _partly_fused(modules, family),
        model_hash=model_hash,
        hash_is_right=tensor_part_sha256(file.path) == model_hash if is_checked else None,
    )


def _modules(tensors: dict[str, TensorInfo]) -> _Modules:
    modules: _Modules = {}
    for name, info in tensors.items():
        match = _PART.fullmatch(name)
        if match:
            modules.setdefault(match["module"], {})[_common_name(match["part"])] = info
        else:  # WebUIs split at the first dot
            module, _, part = name.partition(".")
            modules.setdefault(module, {})[part] = info
    return modules


def _common_name(part: str) -> str:
    if part.startswith("lora_magnitude_vector"):
        return "dora_scale"
    if part.startswith("lora_A.") or part.endswith("down.weight"):
        return "down"
    if part.startswith("lora_B.") or part.endswith("up.weight"):
        return "up"
    return "mid" if part == "lora_mid.weight" else part


def _type(parts: dict[str, TensorInfo]) -> str:
    for name, pattern in _TYPES.items():
        if any(pattern.match(part) for part in parts):
            return name
    return "unknown"


def _naming(modules: _Modules) -> Literal["kohya", "diffusers", "other"]:
    if all(name.startswith(("lora_unet_", "lora_te")) for name in modules):
        return "kohya"
    prefixes = ("unet.", "text_encoder.", "text_encoder_2.", "transformer.", "base_model.model.")
    return "diffusers" if all(name.startswith(prefixes) for name in modules) else "other"


def _side(module: str) -> Literal["unet", "text_encoder", "second_text_encoder", "other"]:
    if module.startswith(("lora_te2_", "text_encoder_2.")):
        return "second_text_encoder"
    if module.startswith(("lora_te", "text_encoder", "oft_te")):
        return "text_encoder"
    unet = (
        "lora_unet_",
        "unet.",
        "transformer.",
        "diffusion_model.",
        "base_model.model.",
        "oft_unet",
    )
    return "unet" if module.startswith(unet) else "other"


def _rank_tensor(parts: dict[str, TensorInfo]) -> list[TensorInfo]:
    """The tensor whose first dimension is the rank; none for types without a rank."""
    found = (parts[part] for part in _RANK_PARTS if part in parts and parts[part].shape)
    return list(found)[:1]


def _incomplete(modules: _Modules, types: dict[str, str], naming: str) -> list[str]:
    problems: list[str] = []
    for name, parts in modules.items():
        needed = [*_NEEDED.get(types[name], [])]
        if needed and naming == "kohya":
            needed.append({"alpha"})
        lacking = [sorted(choice)[0] for choice in needed if not choice & parts.keys()]
        if types[name] == "unknown":
            lacking = ["known part"]
        if lacking:
            problems.append(f"{name}: no {', no '.join(lacking)}")
    return problems


_FUSED_PARTS = ("q_proj", "k_proj", "v_proj", "out_proj")


def _partly_fused(modules: _Modules, family: Family) -> list[str]:
    """Attentions of OpenCLIP's encoders (SD2's and SDXL's second) that lack some of the four LoRAs.

    q, k and v are one there, and Automatic1111 applies the four only together.
    """
    prefix = "lora_te_" if family == "sd2" else "lora_te2_"
    attentions: dict[str, set[str]] = {}
    for name in modules:
        attention, found, part = name.rpartition("_self_attn_")
        if found and name.startswith(prefix):
            attentions.setdefault(attention, set()).add(part)
    return [
        f"{attention}_self_attn: no {', no '.join(part for part in _FUSED_PARTS if part not in parts)}"
        for attention, parts in attentions.items()
        if not parts.issuperset(_FUSED_PARTS)
    ]


def _alphas(path: Path, modules: _Modules) -> list[float]:
    values: set[float] = set()
    try:
        with path.open("rb") as stream:
            for parts in modules.values():
                info = parts.get("alpha")
                if info is not None and info.shape in ((), (1,)) and info.dtype in _NUMBERS:
                    values.add(_number(bytes(read_span(stream, path, info)), info.dtype))
    except OSError as error:
        raise ModelError(f"{path} can't be read: {error.strerror or error}.") from error
    return sorted(values)


def _number(raw: bytes, dtype: str) -> float:
    if dtype == "BF16":  # the upper half of a 32-bit float
        raw = b"\x00\x00" + raw
    return float(struct.unpack(_NUMBERS[dtype], raw)[0])


_DIMENSIONS: dict[int, Family] = {768: "sd1", 1024: "sd2", 2048: "sdxl"}

_TEXT_DIMENSIONS: dict[int, Family] = {768: "sd1", 1024: "sd2"}

_VERSIONS: dict[str, Family] = {
    "sdxl": "sdxl",
    "sd_v2": "sd2",
    "sd_v1": "sd1",
    "sd3": "sd3",
    "flux": "flux",
    "stable-diffusion-xl-v1-refiner": "sdxl-refiner",
    "stable-diffusion-xl": "sdxl",
    "stable-diffusion-v2": "sd2",
    "stable-diffusion-v1": "sd1",
    "stable-diffusion-3": "sd3",
}
"""Beginnings of `ss_base_model_version` and `modelspec.architecture`."""


def _family(modules: _Modules, metadata: dict[str, str]) -> tuple[Family, Literal["shapes", "names", "metadata", ""]]:
    by_shape = _family_by_shape(modules, r".*attn2[._](?:processor[._])?to_k", _DIMENSIONS)
    if by_shape:
        return by_shape, "shapes"
    by_name = _family_by_name(modules)
    if by_name:
        return by_name, "names"
    text_pattern = r"(lora_te_|text_encoder\.).*self_attn[._]q_proj"
    by_shape = _family_by_shape(modules, text_pattern, _TEXT_DIMENSIONS)
    if by_shape:
        return by_shape, "shapes"
    for key in ("ss_base_model_version", "modelspec.architecture"):
        text = metadata.get(key, "").lower()
        for beginning, family in _VERSIONS.items():
            if text.startswith(beginning):
                return family, "metadata"
    if metadata.get("ss_v2") == "True":
        return "sd2", "metadata"
    return "unknown", ""


def family_of_lora(file: TensorFile) -> Family:
    """The family that a LoRA was made for; "unknown" where neither shapes nor names nor metadata tell it."""
    family, _ = _family(_modules(file.tensors), file.metadata)
    return family


def _family_by_shape(modules: _Modules, pattern: str, families: dict[int, Family]) -> Family | None:
    """By the inputs of a layer that reads the text."""
    expression = re.compile(pattern)
    for name, parts in modules.items():
        if not expression.fullmatch(name):
            continue
        for part in ("down", "hada_w1_b"):
            if part in parts and len(parts[part].shape) >= 2:
                return families.get(parts[part].shape[1])
    return None


def _family_by_name(modules: _Modules) -> Family | None:
    if any("double_blocks" in name or "single_transformer_blocks" in name for name in modules):
        return "flux"
    if any("joint_blocks" in name or name.startswith("transformer.") for name in modules):
        return "sd3"
    # kohya's scripts use the original names for SDXL, and diffusers' names for SD1 and SD2.
    sdxl = ("lora_te1_", "lora_te2_", "text_encoder_2.", "lora_unet_input_blocks_")
    sdxl = (*sdxl, "lora_unet_middle_block_", "lora_unet_output_blocks_")
    return "sdxl" if any(name.startswith(sdxl) for name in modules) else None
