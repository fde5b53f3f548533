"""Weights tensor by tensor from files into models, in the wanted number format and on the wanted device.

Nothing is held twice: files are memory-mapped, each tensor gets its final form straight from the map, and its pages,
which would count as used memory, are let go at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
import torch
from torch import nn

from lora_train.core.errors import MOST_OF_REASON, ModelError, shown
from lora_train.core.files import DAMAGED_JSON
from lora_train.core.hash_cache import HashCache
from lora_train.core.model_folders import find_weights
from lora_train.core.tensor_infos import TensorFile, TensorInfo, tensor_bytes
from lora_train.core.tensorfiles import read_tensor_file
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
    except (OSError, *DAMAGED_JSON) as error:
        raise ModelError(f"{path} can't be read: {shown(error, MOST_OF_REASON)}.") from None
    pieces = {name: read_tensor_file(folder / Path(name).name) for name in sorted(set(index.values()))}
    return Weights(folder, {name: piece for piece in pieces.values() for name in piece.tensors})


def fill(
    model: nn.Module,
    source: Weights,
    places: Callable[[str], Iterable[str | Place]],
    device: torch.device,
    dtype: torch.dtype,
    layout: torch.memory_format = torch.contiguous_format,
    stored: Callable[[str, torch.Tensor], torch.Tensor] = lambda _, tensor: tensor,
    stays_as_it_is: Callable[[str, torch.dtype], bool] = lambda _, __: False,
) -> None:
    """Give every parameter of a model on the meta device its tensor from `source`, in `dtype` on `device`.

    `places` gives where one of ours may lie, best first; `layout` is the memory layout of those with four dimensions;
    `stored` makes of a parameter's name and tensor what is kept of it; `stays_as_it_is` tells by its name whether a
    parameter keeps the number format of the file. Raises ModelError naming missing tensors.
    """
    weights: dict[str, torch.Tensor] = {}
    missing: list[str] = []
    maps = {file.path: _MappedFile(file) for file in source.files.values()}
    for name, parameter in model.named_parameters():
        possible = [Place(place) if isinstance(place, str) else place for place in places(name)]
        found = next((place for place in possible if place.name in source.files), None)
        if found is None:
            missing.append(possible[0].name)
            continue
        file = maps[source.files[found.name].path]
        tensor = _read_place(file, found, tuple(parameter.shape))
        kept_in = tensor.dtype if stays_as_it_is(name, tensor.dtype) else dtype
        weights[name] = stored(name, _final(tensor, device, kept_in, layout))
        file.let_go(found.name)
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


def _final(tensor: torch.Tensor, device: torch.device, dtype: torch.dtype, layout: torch.memory_format) -> torch.Tensor:
    """A copy of a tensor of a file in the form in which it stays. Another device converts it itself: it is faster."""
    wanted = layout if tensor.ndim == 4 else torch.contiguous_format
    if device.type == "cpu":
        return tensor.to(dtype=dtype, memory_format=wanted, copy=True)
    return tensor.to(device).to(dtype=dtype, memory_format=wanted)


class _MappedFile:
    """A file's tensors as views of its memory map; read as usual where it can't be mapped."""

    def __init__(self, file: TensorFile) -> None:
        self.path = file.path
        self.tensors = file.tensors
        self._file = file
        self._map: mmap.mmap | None = None
        with contextlib.suppress(OSError, ValueError), file.path.open("rb") as stream:
            self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)

    def tensor(self, name: str) -> torch.Tensor:
        """Not to be written to, and gone with `let_go`."""
        info = self.tensors[name]
        dtype = dtype_of(self._file, info)
        if self._map is None or info.offset % dtype.itemsize or not info.nbytes:
            return read_tensor(self._file, name)
        if info.offset + info.nbytes > len(self._map):
            raise ModelError(f"{self.path} was cut short while it was read.", "Download the file again.")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that the map can't be written to
            flat = torch.frombuffer(self._map, dtype=dtype, count=info.nbytes // dtype.itemsize, offset=info.offset)
        return _shaped(flat, info)

    def let_go(self, name: str) -> None:
        """Give the pages of a tensor back; where the system has no such call, they go with the map."""
        info = self.tensors[name]
        if self._map is not None and info.nbytes and hasattr(mmap, "MADV_DONTNEED"):
            start = info.offset // mmap.PAGESIZE * mmap.PAGESIZE
            self._map.madvise(mmap.MADV_DONTNEED, start, info.offset + info.nbytes - start)


def _read_place(file: _MappedFile, place: Place, wanted: tuple[int, ...]) -> torch.Tensor:
    """The tensor at `place`, of the shape `wanted`: the file's may have 1x1 behind (VAE attention) or be a part of a
    larger one. Raises ModelError.
    """
    info = file.tensors[place.name]
    expected = wanted[::-1] if place.is_transposed else wanted
    if place.third is not None:
        expected = (3 * expected[0], *expected[1:])
    if info.shape not in (expected, (*expected, 1, 1)):
        raise ModelError(f"{file.path}: {place.name} has the shape {info.shape}, {expected} was expected.")
    tensor = file.tensor(place.name)
    if place.third is not None:
        tensor = tensor.chunk(3)[place.third]
    return tensor.t() if place.is_transposed else tensor.reshape(wanted)


def read_tensor(file: TensorFile, name: str) -> torch.Tensor:
    """One tensor of a file, on the CPU, in the file's own number format."""
    info = file.tensors[name]
    return _shaped(torch.frombuffer(tensor_bytes(file.path, info), dtype=dtype_of(file, info)), info)


def dtype_of(file: TensorFile, info: TensorInfo) -> torch.dtype:
    """Of one tensor of a file. Raises ModelError for what torch has not."""
    dtype = _DTYPES.get(info.dtype)
    if dtype is None:
        raise ModelError(f"{file.path}: {info.name} has the number format {info.dtype}, which can't be read.")
    return dtype


def _shaped(flat: torch.Tensor, info: TensorInfo) -> torch.Tensor:
    return flat.reshape(info.shape) if info.stride is None else flat.as_strided(info.shape, info.stride)


def identity(source: Weights, what: str, belongs: Callable[[str], bool], hashes: HashCache) -> str:
    """A hash of the tensors whose name `belongs`, wherever they lie and whatever else is in their files.

    `what` is what `hashes` calls it: the same name for the same choice of tensors.
    """
    digest = hashlib.blake2b(digest_size=20)
    for file in {file.path: file for file in source.files.values()}.values():
        names = sorted(filter(belongs, file.tensors))
        digest.update(hashes.get(file.path, what, lambda file=file, names=names: _hash(file, names)).encode())
    return digest.hexdigest()


def _hash(file: TensorFile, names: Iterable[str]) -> str:
    digest = hashlib.blake2b(digest_size=20)
    for name in names:
        info = file.tensors[name]
        digest.update(f"{name} {info.dtype} {info.shape} {info.stride} ".encode())
        digest.update(tensor_bytes(file.path, info))
    return digest.hexdigest()
