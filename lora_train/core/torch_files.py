"""Which tensors a file of `torch.save` holds (.ckpt, .pt, .bin), and where: a zip, or the older stream of pickles."""

from __future__ import annotations

import contextlib
import io
import math
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import IO, NamedTuple, cast

from lora_train.core.errors import ModelError
from lora_train.core.pickles import (
    MAX_PICKLE_BYTES,
    StorageReference,
    StoredTensor,
    read_pickle,
    storage_key,
)
from lora_train.core.tensor_infos import (
    DOWNLOAD_AGAIN,
    ITEM_BYTES,
    TensorFile,
    TensorInfo,
    cut_short,
    damaged,
    require_usable,
)
from lora_train.core.zip_directories import directory_bytes

_LARGEST_REPEATED_BYTES = 64 * 2**20
"""Of a tensor that repeats a few numbers, as masks do."""
_MOST_DIRECTORY_BYTES = 16 * 2**20
"""Of a zip's list of its members: 100,000 of them. Each takes ten times as much in memory."""

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001


class _Storage(NamedTuple):
    """Where the bytes of a torch storage lie in the file."""

    offset: int
    nbytes: int


# --- torch.save since 1.6: a zip of <root>/data.pkl and <root>/data/<key>, not compressed ---


def read_zip(path: Path, stream: IO[bytes], size: int) -> TensorFile:
    """The tensors of a file of `size` bytes; `stream` is at its beginning. Raises ModelError as `read_tensor_file`."""
    if directory_bytes(stream, size) > _MOST_DIRECTORY_BYTES:
        raise ModelError(f"{path} is no checkpoint: its list of members has more than {_MOST_DIRECTORY_BYTES:,} bytes.")
    try:
        with zipfile.ZipFile(stream) as archive:
            listed = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error) as error:
        raise ModelError(f"{path} is damaged or cut short ({error}).", DOWNLOAD_AGAIN) from None
    members = {member.filename: member for member in listed}
    if len({name.casefold() for name in members}) != len(listed):
        # PyTorch takes no notice of letter case, and may open another one than was looked into here.
        raise damaged(path, "two of its members have the same name")
    pickles = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ModelError(
            f"{path} is a zip archive, but no checkpoint of PyTorch.",
            "Unpack it, or choose another file.",
        )
    root = pickles[0].removesuffix("data.pkl")
    _check_byte_order(path, stream, size, members.get(f"{root}byteorder"))
    place = _member(path, stream, size, members[pickles[0]])
    if place.nbytes > MAX_PICKLE_BYTES:
        raise ModelError(f"{path}: its list of tensors has {place.nbytes:,} bytes: it is no checkpoint.")
    stream.seek(place.offset)
    top, _ = read_pickle(io.BytesIO(stream.read(place.nbytes)), str(path))
    places: dict[str, _Storage] = {}

    def locate(storage: StorageReference) -> _Storage:
        if storage.key not in places:
            member = members.get(f"{root}data/{storage.key}")
            if member is None:
                raise damaged(path, f"the block {storage.key} of its weights is missing")
            places[storage.key] = _member(path, stream, size, member)
        return places[storage.key]

    tensors = {
        name: _stored_info(path, name, tensor, locate(tensor.storage))
        for name, tensor in _named_tensors(path, top).items()
    }
    return TensorFile(path, "ckpt", tensors)


def _member(path: Path, stream: IO[bytes], size: int, member: zipfile.ZipInfo) -> _Storage:
    """Where a member's content lies: after its local header, whose extra field is its own."""
    if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
        raise ModelError(
            f"{path} is compressed or encrypted inside, which checkpoints never are.",
            "Use the .safetensors version, or save it again with torch.save.",
        )
    if member.header_offset < 0:
        raise damaged(path, f"its member {member.filename[:100]!a} lies before the file")
    stream.seek(member.header_offset)
    local = stream.read(30)
    if len(local) != 30 or local[:4] != b"PK\x03\x04":
        raise damaged(path, f"its member {member.filename[:100]!a} has no header")
    name_bytes, extra_bytes = struct.unpack("<HH", local[26:30])
    offset = member.header_offset + 30 + name_bytes + extra_bytes
    if offset + member.file_size > size:
        raise cut_short(path, size, offset + member.file_size)
    return _Storage(offset, member.file_size)


def _check_byte_order(path: Path, stream: IO[bytes], size: int, member: zipfile.ZipInfo | None) -> None:
    if member is None:  # older versions of torch don't say
        return
    place = _member(path, stream, size, member)
    stream.seek(place.offset)
    if stream.read(min(place.nbytes, 16)) != b"little":
        raise _big_endian(path)


def _big_endian(path: Path) -> ModelError:
    return ModelError(f"{path} was saved on a big-endian machine, which can't be read.")


# --- torch.save before 1.6: magic number, protocol, system, object, storage keys, storages ---


def read_legacy(path: Path, stream: IO[bytes], size: int) -> TensorFile:
    """As `read_zip`, for a file of the older kind."""
    source = str(path)
    _refuse_tar(path, stream)
    if read_pickle(stream, source).value != _LEGACY_MAGIC:
        raise ModelError(f"{path} is a pickle, but no checkpoint of PyTorch.")
    if read_pickle(stream, source).value != _LEGACY_PROTOCOL:
        raise ModelError(f"{path} was saved by a version of PyTorch that can't be read.")
    system = read_pickle(stream, source).value
    if isinstance(system, dict) and cast("dict[str, object]", system).get("little_endian") is False:
        raise _big_endian(path)
    top, storages = read_pickle(stream, source)
    keys = read_pickle(stream, source).value
    if not isinstance(keys, list):
        raise damaged(path, "it has no list of storages")
    places = _legacy_places(path, stream, size, cast("list[object]", keys), storages)
    tensors: dict[str, TensorInfo] = {}
    for name, tensor in _named_tensors(path, top).items():
        place = places.get(tensor.storage.key)
        if place is None:
            raise damaged(path, f"the weights of {name} are missing")
        tensors[name] = _stored_info(path, name, tensor, place)
    return TensorFile(path, "ckpt", tensors)


def _refuse_tar(path: Path, stream: IO[bytes]) -> None:
    """PyTorch looks for a tar archive first, whose pickle would then be another one than was looked into here."""
    head = stream.read(tarfile.BLOCKSIZE)
    stream.seek(0)
    with contextlib.suppress(tarfile.HeaderError, ValueError):
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
        raise ModelError(f"{path} is a tar archive, which can't be read.", "Use the .safetensors version of it.")


def _legacy_places(
    path: Path,
    stream: IO[bytes],
    size: int,
    keys: list[object],
    storages: dict[str, StorageReference],
) -> dict[str, _Storage]:
    """Each storage is its element count (int64) and its elements, in the order of `keys`."""
    places: dict[str, _Storage] = {}
    for key in keys:
        try:
            name = storage_key(key)
        except (TypeError, ValueError):
            raise damaged(path, "its list of storages can't be read") from None
        storage = storages.get(name)
        if storage is None:
            raise damaged(path, f"nothing says what the block {ascii(name[:100])[1:-1]} of its weights is")
        count = stream.read(8)
        if len(count) != 8:
            raise cut_short(path, size, stream.tell() + 8)
        nbytes = struct.unpack("<q", count)[0] * ITEM_BYTES[storage.dtype]
        place = _Storage(stream.tell(), nbytes)
        if nbytes < 0 or place.offset + nbytes > size:
            raise cut_short(path, size, place.offset + max(nbytes, 0))
        places[storage.key] = place
        stream.seek(place.offset + nbytes)
    return places


# --- both: what the pickle describes ---


def _named_tensors(path: Path, top: object) -> dict[str, StoredTensor]:
    if isinstance(top, dict):
        values = cast("dict[str, object]", top)
        inner = values.get("state_dict")
        if isinstance(inner, dict):
            values = cast("dict[str, object]", inner)
        vectors = values.get("string_to_param")
        if isinstance(vectors, dict):  # a textual inversion, whose token is the key
            named_vectors = cast("dict[str, object]", vectors)
            values = {f"string_to_param.{key}": value for key, value in named_vectors.items()}
        named = {name: value for name, value in values.items() if isinstance(value, StoredTensor)}
        for name in named:
            require_usable(path, name)
        if named:
            return named
    raise ModelError(f"{path} holds no tensors with names.", "Choose a checkpoint of a model.")


def _stored_info(path: Path, name: str, tensor: StoredTensor, place: _Storage) -> TensorInfo:
    item_bytes = ITEM_BYTES[tensor.dtype]
    numel = math.prod(tensor.shape)
    contiguous = _row_major_stride(tensor.shape)
    strides = zip(tensor.shape, tensor.stride, contiguous, strict=True)
    is_contiguous = numel == 0 or all(n == 1 or have == want for n, have, want in strides)
    last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride, strict=True))
    nbytes = (last + 1) * item_bytes if numel else 0
    begin = tensor.offset * item_bytes
    # A stride of 0 makes a tensor of any size from one number; who loads it asks for its whole size.
    if begin + nbytes > place.nbytes or numel * item_bytes > max(place.nbytes, _LARGEST_REPEATED_BYTES):
        raise damaged(path, f"{name} reaches beyond its block of {place.nbytes:,} bytes")
    stride = None if is_contiguous else tensor.stride
    return TensorInfo(name, tensor.dtype, tensor.shape, place.offset + begin, nbytes, stride)


def _row_major_stride(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
