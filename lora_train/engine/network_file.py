"""LoRA files as WebUIs load them: kohya's tensor names, ss_*, sshs_* and modelspec.* metadata.

Formats: kohya-ss/sd-scripts' networks.lora, and ModelSpec 1.0.1 of Stability AI.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import nn

from lora_train.core.errors import ModelError, TrainToolsError
from lora_train.core.families import FAMILY_LABELS
from lora_train.core.files import replace
from lora_train.core.lora_facts import family_of_lora
from lora_train.core.tensorfiles import TensorFile, read_tensor_file
from lora_train.engine.network import LoraLayer, LoraNetwork, Target
from lora_train.engine.weights import read_tensor

_DOWN, _UP, _ALPHA = "lora_down.weight", "lora_up.weight", "alpha"
_PREFIX = {"unet": "lora_unet_", "text_encoder": "lora_te_"}
_LARGEST_WEIGHT = 6e4
"""Hosts cast to fp16, whose largest number is 65504."""

_LEGACY_HASH_OFFSET = 0x100000
_LEGACY_HASH_BYTES = 0x10000


def module_name(target: Target) -> str:
    """kohya's name of a layer's LoRA: dots become underscores, the part a prefix."""
    return target.file_name or _PREFIX[target.part] + target.name.replace(".", "_")


def file_tensors(network: LoraNetwork, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """lora_down.weight, lora_up.weight and alpha of every layer, on the CPU.

    Raises TrainToolsError for numbers that are not finite or too large for a host: such a file is worthless.
    """
    tensors: dict[str, torch.Tensor] = {}
    for target, lora in network.pairs():
        name = module_name(target)
        tensors[f"{name}.{_DOWN}"] = _checked(name, lora.down).to(dtype)
        tensors[f"{name}.{_UP}"] = _checked(name, lora.up).to(dtype)
        tensors[f"{name}.{_ALPHA}"] = torch.tensor(float(lora.alpha))  # float32: exactly what was trained with
    return tensors


def _checked(name: str, weight: torch.Tensor) -> torch.Tensor:
    weight = weight.detach().to("cpu", torch.float32).contiguous()
    largest = weight.abs().max().item()
    if not largest < _LARGEST_WEIGHT:  # also true of NaN
        raise TrainToolsError(
            f"The LoRA of {name} holds {largest:g}; nothing over {_LARGEST_WEIGHT:g} may be saved.",
            "The training went astray: use a lower learning rate.",
        )
    return weight


def save_lora(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write a LoRA file: hashes added, flushed to the disk, read back, then renamed to `path`.

    Hosts cache LoRAs by name, so nothing is ever overwritten: raises TrainToolsError where `path` exists.
    """
    if path.exists():
        raise TrainToolsError(f"{path} exists already; a LoRA file is never overwritten.")
    content = save(dict(tensors), metadata=with_hashes(tensors, metadata))
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        with safe_open(str(temporary), framework="pt") as written:
            if set(written.keys()) != set(tensors):
                raise TrainToolsError(f"{temporary} was not written correctly.", "Check the disk.")
        replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def with_hashes(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """Metadata with sshs_model_hash, sshs_legacy_hash and modelspec.hash_sha256.

    The first and last are the sha256 of all bytes behind the header, which don't depend on metadata. The legacy one
    is 8 digits over 64 KiB at 1 MiB of a file that has the ss_* metadata alone.
    """
    plain = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    content = save(dict(tensors), metadata=plain)
    (header_bytes,) = struct.unpack("<Q", content[:8])
    model_hash = hashlib.sha256(content[8 + header_bytes :]).hexdigest()
    legacy = content[_LEGACY_HASH_OFFSET : _LEGACY_HASH_OFFSET + _LEGACY_HASH_BYTES]
    return {
        **metadata,
        "sshs_model_hash": model_hash,
        "sshs_legacy_hash": hashlib.sha256(legacy).hexdigest()[:8],
        "modelspec.hash_sha256": f"0x{model_hash}",
    }


def load_network(path: Path, targets: Sequence[Target]) -> LoraNetwork:
    """The network in a LoRA file, for the layers among `targets` that it names.

    Raises ModelError when the file is no plain LoRA, has one for layers that the model lacks or of other shapes, or
    has only some of the LoRAs that Automatic1111 applies together.
    """
    file = read_tensor_file(path)
    wanted = _lora_names(file)
    found = [target for target in targets if module_name(target) in wanted]
    if lacking := wanted - {module_name(target) for target in found}:
        raise _does_not_fit(file, f"{len(lacking)} of its layers are not there, for example {min(lacking)}")
    _check_fused(path, targets, wanted)
    return LoraNetwork([(target, _read_layer(file, module_name(target), target.layer)) for target in found])


def _does_not_fit(file: TensorFile, why: str) -> ModelError:
    label = FAMILY_LABELS.get(family_of_lora(file))
    kind = f" is a LoRA for {label} and" if label else ""
    return ModelError(
        f"{file.path}{kind} does not fit this base model: {why}.", "Choose a base model of the LoRA's family."
    )


def _check_fused(path: Path, targets: Sequence[Target], names: set[str]) -> None:
    """Raise ModelError for an attention of an OpenCLIP encoder that has some of its four LoRAs and lacks others."""
    attentions: dict[str, set[str]] = {}
    for target in targets:
        if target.is_fused:
            name = module_name(target)
            attentions.setdefault(name.rpartition("_self_attn_")[0], set()).add(name)
    for parts in attentions.values():
        if (lacking := parts - names) and lacking != parts:
            raise ModelError(
                f"{path} lacks {min(lacking)}: Automatic1111 uses the LoRAs of such an attention only when q, k, v "
                "and out are all there.",
                "Train it anew, or choose another LoRA.",
            )


def _lora_names(file: TensorFile) -> set[str]:
    """kohya's names of the layers in a file; like the hosts we split at the first dot, and alpha may be missing."""
    found: dict[str, set[str]] = {}
    for tensor in file.tensors:
        name, _, part = tensor.partition(".")
        found.setdefault(name, set()).add(part)
    if not any(_DOWN in parts for parts in found.values()):
        raise ModelError(f"{file.path} is not a LoRA in kohya's layout.")
    for name, parts in sorted(found.items()):
        if strange := parts - {_DOWN, _UP, _ALPHA}:
            raise ModelError(
                f"{file.path} has the tensor {name}.{min(strange)}, which no plain LoRA has.",
                "LoHa, LoKr, DoRA and other kinds can't be read here.",
            )
        if missing := {_DOWN, _UP} - parts:
            raise ModelError(f"{file.path} is incomplete: {name} lacks {min(missing)}.", "Download it again.")
    return set(found)


def _read_layer(file: TensorFile, name: str, layer: nn.Linear | nn.Conv2d) -> LoraLayer:
    weight = layer.weight
    down = read_tensor(file, f"{name}.{_DOWN}").float()
    up = read_tensor(file, f"{name}.{_UP}").float()
    if weight.ndim == 4 and down.ndim == up.ndim == 2:  # as some tools write 1x1 convolutions
        down, up = down[:, :, None, None], up[:, :, None, None]
    fits = down.shape[1:] == weight.shape[1:]
    if not fits or up.shape != (weight.shape[0], down.shape[0], *[1] * (weight.ndim - 2)):
        raise _does_not_fit(
            file,
            f"{name} has the shapes {tuple(down.shape)} and {tuple(up.shape)}, but is for a weight of the shape "
            f"{tuple(weight.shape)}",
        )
    has_alpha = f"{name}.{_ALPHA}" in file.tensors
    alpha = read_tensor(file, f"{name}.{_ALPHA}").item() if has_alpha else float(down.shape[0])
    return LoraLayer(down, up, alpha).to(weight.device)
