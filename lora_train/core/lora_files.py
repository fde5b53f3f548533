"""Which layers a LoRA file in kohya's layout holds, from its header alone."""

from __future__ import annotations

from pathlib import Path

from lora_train.core.errors import ModelError
from lora_train.core.tensor_infos import TensorFile
from lora_train.core.tensorfiles import read_tensor_file, tensor_part_sha256

DOWN, UP, ALPHA = "lora_down.weight", "lora_up.weight", "alpha"
"""The parts of a layer; like the hosts we take a missing alpha for the rank."""


def plain_lora_modules(file: TensorFile) -> set[str]:
    """kohya's names of the layers, split off at the first dot as the hosts do.

    Raises ModelError when the file is no LoRA, is one of another kind (LoHa, LoKr, DoRA, Tucker), or lacks a part.
    """
    found: dict[str, set[str]] = {}
    for tensor in file.tensors:
        name, _, part = tensor.partition(".")
        found.setdefault(name, set()).add(part)
    if not any(_is_network_part(part) for parts in found.values() for part in parts):
        raise ModelError(f"{file.path} is not a LoRA in kohya's layout.", "Choose a LoRA that was trained for WebUIs.")
    for name, parts in sorted(found.items()):
        if strange := parts - {DOWN, UP, ALPHA}:
            raise ModelError(
                f"{file.path} has the tensor {name}.{min(strange)}, which no plain LoRA has.",
                "LoHa, LoKr, DoRA and other kinds can't be read here.",
            )
        if missing := {DOWN, UP} - parts:
            raise ModelError(f"{file.path} is incomplete: {name} lacks {min(missing)}.", "Download it again.")
    return set(found)


def _is_network_part(part: str) -> bool:
    return part == DOWN or part.startswith(("hada_", "lokr_", "oft_", "dora_scale"))


def is_whole(path: Path) -> bool:
    """Whether a LoRA's tensors are those that were saved, as its own metadata tell; true where they don't.

    Raises ModelError for what is no safetensors file, OSError where there is none.
    """
    told = read_tensor_file(path).metadata.get("sshs_model_hash", "")
    return not told or told == tensor_part_sha256(path)
