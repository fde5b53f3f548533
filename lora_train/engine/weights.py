"""Weights tensor by tensor from files into models, in the wanted number format and on the wanted device.

Nothing is held twice, and nothing is memory-mapped: mapped pages would count as used memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
import torch
from torch import nn

from lora_train.core.errors import ModelError
from lora_train.core.model_folders import find_weights
from lora_train.core.tensorfiles import TensorFile, read_tensor_file, tensor_bytes
from lora_train.engine.ldm_names import Place

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


class Weights(msgspec.Struct, frozen=True):
    """The tensors of a model's part by name, from one file or several; `path` is the file or their folder."""

    path: Path
    files: dict[str, TensorFile]

    @staticmethod
    def of(file: TensorFile) -> Weights:
        return Weights(file.path, dict.fromkeys(file.tensors, file))


WHOLE_FOLDER = "Download the model's whole folder again."
"""What to do about a diffusers folder that lacks a part."""


class _ShardIndex(msgspec.Struct):
    """`*.safetensors.index.json`: which tensor is in which file beside it."""

    weight_map: dict[str, str]


def folder_weights(folder: Path) -> Weights:
    """The weights of one part of a diffusers folder, in one file or in pieces. Raises ModelError for none."""
    path = find_weights(folder)
    if path is None:
        raise ModelError(f"{folder} has no weights (.safetensors or .bin).", WHOLE_FOLDER)
    if path.suffix != ".json":
        return Weights.of(read_tensor_file(path))
    try:
        index = msgspec.json.decode(path.read_bytes(), type=_ShardIndex).weight_map
    except (OSError, msgspec.DecodeError) as error:
        raise ModelError(f"{path} can't be read: {error}.") from None
    pieces = {name: read_tensor_file(folder / Path(name).name) for name in sorted(set(index.values()))}
    return Weights(folder, {name: piece for piece in pieces.values() for name in piece.tensors})


def fill(
    model: nn.Module,
    source: Weights,
    places: Callable[[str], Iterable[str | Place]],
    device: torch.device,
    dtype: torch.dtype,
    stored: Callable[[str, torch.Tensor], torch.Tensor] = lambda _, tensor: tensor,
) -> None:
    """Give every parameter of a model on the meta device its tensor from `source`, in `dtype` on `device`.

    `places` gives where one of ours may lie, best first; `stored` makes of a parameter's name and tensor what is kept
    of it. Raises ModelError naming missing tensors.
    """
    weights: dict[str, torch.Tensor] = {}
    missing: list[str] = []
    for name, parameter in model.named_parameters():
        possible = [Place(place) if isinstance(place, str) else place for place in places(name)]
        found = next((place for place in possible if place.name in source.files), None)
        if found is None:
            missing.append(possible[0].name)
            continue
        tensor = _read_place(source.files[found.name], found, tuple(parameter.shape))
        weights[name] = stored(name, tensor.to(device=device, dtype=dtype).reshape(parameter.shape))
    if missing:
        raise ModelError(
            f"{source.path} lacks {len(missing)} tensors, the first is {missing[0]}.",
            "The file may be cut off: download it again.",
        )
    model.load_state_dict(weights, strict=False, assign=True)
    for module in model.modules():
        positions = getattr(module, "position_ids", None)
        if isinstance(positions, torch.Tensor):
            module.position_ids = torch.arange(positions.shape[-1], device=device)[None]


def _read_place(file: TensorFile, place: Place, wanted: tuple[int, ...]) -> torch.Tensor:
    """The tensor at `place`, of the shape `wanted` or (VAE attention) `wanted` with 1x1 behind. Raises ModelError."""
    info = file.tensors[place.name]
    expected = wanted[::-1] if place.is_transposed else wanted
    if place.third is not None:
        expected = (3 * expected[0], *expected[1:])
    if info.shape not in (expected, (*expected, 1, 1)):
        raise ModelError(f"{file.path}: {place.name} has the shape {info.shape}, {expected} was expected.")
    tensor = read_tensor(file, place.name)
    if place.third is not None:
        tensor = tensor.chunk(3)[place.third].clone()
    return tensor.t().contiguous() if place.is_transposed else tensor


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
