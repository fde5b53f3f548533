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
from lora_train.core.files import replace, temporary_beside
from lora_train.core.lora_facts import family_of_lora
from lora_train.core.lora_files import ALPHA, DOWN, UP, plain_lora_modules
from lora_train.core.tensor_infos import TensorFile
from lora_train.core.tensorfiles import file_sha256, read_tensor_file, tensor_part_sha256
from lora_train.engine.network import LoraLayer, LoraNetwork, Target
from lora_train.engine.network_protocol import Network
from lora_train.engine.weights import read_tensor

_PREFIX = {"unet": "lora_unet_", "text_encoder": "lora_te_"}
_LARGEST_WEIGHT = 6e4
"""Hosts cast to fp16, whose largest number is 65504."""

_LEGACY_HASH_OFFSET = 0x100000
_LEGACY_HASH_BYTES = 0x10000


def module_name(target: Target) -> str:
    """kohya's name of a layer's LoRA: dots become underscores, the part a prefix."""
    return target.file_name or _PREFIX[target.part] + target.name.replace(".", "_")


def named_parts(network: Network) -> dict[str, torch.Tensor]:
    """The parts of every layer by kohya's names: the tensors themselves, not copies."""
    return {
        f"{module_name(target)}.{part}": tensor
        for target, parts in network.file_parts()
        for part, tensor in parts.items()
    }


def checked(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The tensors of a LoRA on the CPU and in a number format; single numbers (alpha) stay float32, hence exact.

    Raises TrainToolsError for numbers that are not finite or too large for a host: such a file is worthless.
    """
    return {
        name: _checked(name, tensor).to(dtype if tensor.ndim else torch.float32) for name, tensor in tensors.items()
    }


def _checked(name: str, tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach().to("cpu", torch.float32).contiguous()
    largest = tensor.abs().max().item()
    if not largest < _LARGEST_WEIGHT:  # also true of NaN
        raise TrainToolsError(
            f"The LoRA of {name.partition('.')[0]} holds {largest:g}; nothing over {_LARGEST_WEIGHT:g} may be saved.",
            "The training went astray: use a lower learning rate.",
        )
    return tensor


def save_lora(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write a LoRA file: hashes added, flushed to the disk, read back, then renamed to `path`.

    Hosts cache LoRAs by name, so nothing is ever overwritten: raises TrainToolsError where `path` exists.
    """
    if path.exists():
        raise TrainToolsError(f"{path} exists already; a LoRA file is never overwritten.")
    content = save(dict(tensors), metadata=with_hashes(tensors, metadata))
    temporary = temporary_beside(path)
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


class LoraFile:
    """A LoRA file whose layers are taken out part by part. Raises ModelError when it is no plain LoRA."""

    def __init__(self, path: Path) -> None:
        self._file = read_tensor_file(path)
        self._names = plain_lora_modules(self._file)
        self._left = set(self._names)
        self.ranks: set[int] = set()
        self.alphas: set[float] = set()
        """The different values of the layers that were taken out."""

    @property
    def has_text_encoder(self) -> bool:
        """Whether layers of a text encoder are left in it."""
        return any(name.startswith("lora_te") for name in self._left)

    def sha256(self) -> str:
        """Of its tensors, whatever is written into the metadata later; of the whole file where it has no metadata."""
        path = self._file.path
        return tensor_part_sha256(path) if self._file.format == "safetensors" else file_sha256(path)

    def take(self, targets: Sequence[Target]) -> list[tuple[Target, LoraLayer]]:
        """The layers among `targets` that the file names.

        Raises ModelError for one of another shape, and where Automatic1111 would need others beside it.
        """
        _check_fused(self._file.path, targets, self._names)
        pairs: list[tuple[Target, LoraLayer]] = []
        for target in targets:
            name = module_name(target)
            if name in self._left:
                self._left.remove(name)
                lora = _read_layer(self._file, name, target.layer)
                self.ranks.add(lora.rank)
                self.alphas.add(lora.alpha)
                pairs.append((target, lora))
        return pairs

    def require_all_taken(self) -> None:
        """Raises ModelError when the file has layers that the model lacks."""
        if self._left:
            why = f"{len(self._left)} of its layers are not there, for example {min(self._left)}"
            raise _does_not_fit(self._file, why)


def load_network(path: Path, targets: Sequence[Target]) -> LoraNetwork:
    """The network in a LoRA file, for the layers among `targets` that it names.

    Raises ModelError when the file is no plain LoRA, has one for layers that the model lacks or of other shapes, or
    has only some of the LoRAs that Automatic1111 applies together.
    """
    file = LoraFile(path)
    pairs = file.take(targets)
    file.require_all_taken()
    return LoraNetwork(pairs)


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


def _read_layer(file: TensorFile, name: str, layer: nn.Linear | nn.Conv2d) -> LoraLayer:
    weight = layer.weight
    down = read_tensor(file, f"{name}.{DOWN}").float()
    up = read_tensor(file, f"{name}.{UP}").float()
    if weight.ndim == 4 and down.ndim == up.ndim == 2:  # as some tools write 1x1 convolutions
        down, up = down[:, :, None, None], up[:, :, None, None]
    fits = down.shape[1:] == weight.shape[1:]
    if not fits or up.shape != (weight.shape[0], down.shape[0], *[1] * (weight.ndim - 2)):
        raise _does_not_fit(
            file,
            f"{name} has the shapes {tuple(down.shape)} and {tuple(up.shape)}, but is for a weight of the shape "
            f"{tuple(weight.shape)}",
        )
    has_alpha = f"{name}.{ALPHA}" in file.tensors
    alpha = read_tensor(file, f"{name}.{ALPHA}").item() if has_alpha else float(down.shape[0])
    return LoraLayer(down, up, alpha).to(weight.device)
