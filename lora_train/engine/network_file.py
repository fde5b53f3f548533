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

from lora_train.core.errors import ModelError, TrainToolsError
from lora_train.core.files import replace
from lora_train.core.tensorfiles import read_tensor_file
from lora_train.engine.loading import read_tensor
from lora_train.engine.network import LoraLayer, LoraNetwork, Target

_PREFIX = {"unet": "lora_unet_", "text_encoder": "lora_te_"}
_LARGEST_WEIGHT = 6e4
"""Hosts cast to fp16, whose largest number is 65504."""

_LEGACY_HASH_OFFSET = 0x100000
_LEGACY_HASH_BYTES = 0x10000


def module_name(target: Target) -> str:
    """kohya's name of a layer's LoRA: dots become underscores, the part a prefix."""
    return _PREFIX[target.part] + target.name.replace(".", "_")


def file_tensors(network: LoraNetwork, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """lora_down.weight, lora_up.weight and alpha of every layer, on the CPU.

    Raises TrainToolsError for numbers that are not finite or too large for a host: such a file is worthless.
    """
    tensors: dict[str, torch.Tensor] = {}
    for target, lora in network.pairs():
        name = module_name(target)
        tensors[f"{name}.lora_down.weight"] = _checked(name, lora.down).to(dtype)
        tensors[f"{name}.lora_up.weight"] = _checked(name, lora.up).to(dtype)
        tensors[f"{name}.alpha"] = torch.tensor(float(lora.alpha)).to(dtype)
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

    Raises ModelError when the file has LoRAs for layers that the model lacks, or of other shapes.
    """
    file = read_tensor_file(path)
    wanted = {name.rpartition(".lora_down.weight")[0] for name in file.tensors if "lora_down" in name}
    if not wanted:
        raise ModelError(f"{path} is not a LoRA in kohya's layout.")
    pairs: list[tuple[Target, LoraLayer]] = []
    for target in targets:
        name = module_name(target)
        if name not in wanted:
            continue
        wanted.remove(name)
        down = read_tensor(file, f"{name}.lora_down.weight").float()
        up = read_tensor(file, f"{name}.lora_up.weight").float()
        has_alpha = f"{name}.alpha" in file.tensors
        alpha = read_tensor(file, f"{name}.alpha").item() if has_alpha else float(down.shape[0])
        lora = LoraLayer(down, up, alpha).to(target.layer.weight.device)
        if lora.delta_weight().shape != target.layer.weight.shape:
            raise ModelError(
                f"{path} does not fit this base model: {name} changes a weight of the shape "
                f"{tuple(lora.delta_weight().shape)}, the model's is {tuple(target.layer.weight.shape)}.",
                "Choose a base model of the LoRA's family.",
            )
        pairs.append((target, lora))
    if wanted:
        raise ModelError(
            f"{path} does not fit this base model: {len(wanted)} of its layers are not there, "
            f"for example {min(wanted)}.",
            "Choose a base model of the LoRA's family.",
        )
    return LoraNetwork(pairs)
