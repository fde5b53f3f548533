"""Which tensors a model file holds and where, read from its header alone.

Formats, told apart by content: safetensors (https://github.com/huggingface/safetensors#format), the
zip files of `torch.save` (.ckpt, .pt, .bin) and its older pickle stream. Nothing in a file is run,
and no weights are read.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import math
import os
import struct
import zipfile
from pathlib import Path
from typing import IO, Literal, NamedTuple, cast

import msgspec

from lora_train.core.errors import ModelError
from lora_train.core.pickles import (
    MAX_DIMENSIONS,
    MAX_PICKLE_BYTES,
    StorageReference,
    StoredTensor,
    read_pickle,
)

MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library itself."""

ITEM_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "I64": 8,
    "U64": 8,
    "F64": 8,
    "C64": 8,
}

_READ_BYTES = 1 << 20
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_DOWNLOAD_AGAIN = "The download may be incomplete: download the file again."


class TensorInfo(msgspec.Struct, frozen=True):
    """One tensor of a file. To read it: seek to `offset`, read `nbytes` (`tensor_bytes` does).

    offset  bytes from the start of the file to the first element
    nbytes  bytes from the first element to the end of the last one, gaps of a strided view included
    stride  None when the elements lie in row-major order without gaps, else elements per dimension
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    stride: tuple[int, ...] | None = None


class TensorFile(msgspec.Struct, frozen=True):
    """The tensors of a file by name, in the file's order. Only safetensors have `metadata`."""

    path: Path
    format: Literal["safetensors", "ckpt"]
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str] = {}


class _Storage(NamedTuple):
    """Where the bytes of a torch storage lie in the file."""

    offset: int
    nbytes: int


def read_tensor_file(path: Path) -> TensorFile:
    """Read the header of a model file; takes milliseconds whatever its size.

    Of a torch checkpoint, the tensors of its `state_dict` where it has one, else of its top level.
    Raises ModelError for files that are no model, are damaged or cut short, or whose pickle wants
    to run code.
    """
    try:
        with path.open("rb") as stream:
            return _read(path, stream)
    except FileNotFoundError:
        raise ModelError(f"{path} does not exist.") from None
    except IsADirectoryError:
        raise ModelError(f"{path} is a folder, not a model file.") from None
    except OSError as error:
        raise ModelError(f"{path} can't be read: {error.strerror or error}.") from error


def tensor_bytes(path: Path, info: TensorInfo) -> bytearray:
    """The bytes of one tensor, `info.nbytes` of them. Raises ModelError for a file cut short."""
    try:
        with path.open("rb") as stream:
            return read_span(stream, path, info)
    except OSError as error:
        raise ModelError(f"{path} can't be read: {error.strerror or error}.") from error


def read_span(stream: IO[bytes], path: Path, info: TensorInfo) -> bytearray:
    """`tensor_bytes` from a file that is open already (in binary mode, seekable)."""
    content = bytearray(info.nbytes)
    stream.seek(info.offset)
    count = cast("io.BufferedReader", stream).readinto(content)
    if count != info.nbytes:
        raise ModelError(
            f"{path} ends within {info.name}: {count:,} of {info.nbytes:,} bytes are there.",
            _DOWNLOAD_AGAIN,
        )
    return content


def file_sha256(path: Path) -> str:
    """SHA-256 of a whole file, 64 hex digits; its first ten are what model sites call AutoV2."""
    return _sha256(path, 0, None)


def tensor_part_sha256(path: Path) -> str:
    """SHA-256 of a safetensors file without its header, 64 hex digits: as in `sshs_model_hash`."""
    with path.open("rb") as stream:
        (header_bytes,) = struct.unpack("<Q", stream.read(8))
    return _sha256(path, 8 + header_bytes, None)


def legacy_checkpoint_hash(path: Path) -> str:
    """First 8 hex digits of SHA-256 over 64 KiB at 1 MiB: what WebUIs showed in brackets."""
    return _sha256(path, 0x100000, 0x10000)[:8]


def _sha256(path: Path, start: int, length: int | None) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        stream.seek(start)
        if length is not None:
            digest.update(stream.read(length))
        else:
            while block := stream.read(_READ_BYTES):
                digest.update(block)
    return digest.hexdigest()


def _read(path: Path, stream: IO[bytes]) -> TensorFile:
    head = stream.read(512)
    size = os.fstat(stream.fileno()).st_size
    stream.seek(0)
    _refuse_what_is_no_model(path, head)
    if head[8:9] == b"{":
        return _read_safetensors(path, stream, size)
    if head[:4] == b"PK\x03\x04":
        return _read_zip(path, stream, size)
    if head[:1] == b"\x80":
        return _read_legacy(path, stream, size)
    raise ModelError(
        f"{path} is neither a safetensors file nor a checkpoint of PyTorch.",
        "Choose a .safetensors or .ckpt file.",
    )


def _refuse_what_is_no_model(path: Path, head: bytes) -> None:
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        raise ModelError(f"{path} is empty.", "Download the file again.")
    if start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        raise ModelError(
            f"{path} is a web page, not a model: the download saved the page around it.",
            "Download the real file with the download button or its direct link.",
        )
    if start.startswith(b"version https://git-lfs"):
        raise ModelError(
            f"{path} is a Git LFS pointer: a note of a few lines that stands for the model.",
            "Run `git lfs pull` in its folder, or download the real file.",
        )
    if head.startswith(b"GGUF"):
        raise ModelError(f"{path} is a GGUF file.", "Choose the .safetensors version of the model.")


def _damaged(path: Path, what: str) -> ModelError:
    return ModelError(f"{path} is damaged: {what}.", "Download the file again.")


# --- safetensors: 8 bytes length, a JSON object of that length, the tensors ---


def _read_safetensors(path: Path, stream: IO[bytes], size: int) -> TensorFile:
    (header_bytes,) = struct.unpack("<Q", stream.read(8))
    if header_bytes > MAX_HEADER_BYTES:
        raise _damaged(path, f"a header of {header_bytes:,} bytes (the limit is {MAX_HEADER_BYTES:,})")
    if 8 + header_bytes > size:
        raise _cut_short(path, size, 8 + header_bytes)
    header = _parse_header(path, stream.read(header_bytes))
    metadata = header.pop("__metadata__", {})
    try:
        texts = msgspec.convert(metadata, dict[str, str])
        entries = msgspec.convert(header, dict[str, _Entry])
    except msgspec.ValidationError as error:
        raise _damaged(path, f"its header is not that of a safetensors file ({error})") from None
    start = 8 + header_bytes
    tensors = {name: _tensor_info(path, name, entry, start) for name, entry in entries.items()}
    _check_spans(path, tensors, size)
    return TensorFile(path, "safetensors", tensors, texts)


class _Entry(msgspec.Struct):
    """One tensor in the JSON header; `data_offsets` count from the end of the header."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def _parse_header(path: Path, raw: bytes) -> dict[str, object]:
    def without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
        result = dict(pairs)
        if len(result) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"{twice} stands in it twice")
        return result

    try:
        header: object = json.loads(raw.decode("utf-8"), object_pairs_hook=without_duplicates)
    except UnicodeDecodeError:
        raise _damaged(path, "its header is not UTF-8 text") from None
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"its header can't be read ({error})") from None
    if not isinstance(header, dict):
        raise _damaged(path, "its header is not a JSON object")
    return cast("dict[str, object]", header)


def _tensor_info(path: Path, name: str, entry: _Entry, start: int) -> TensorInfo:
    if entry.dtype not in ITEM_BYTES:
        raise ModelError(f"{path}: {name} has the number format {entry.dtype}, which is not known.")
    if len(entry.shape) > MAX_DIMENSIONS:
        raise _damaged(path, f"{name} has {len(entry.shape)} dimensions")
    begin, end = entry.data_offsets
    if begin < 0 or end < begin or any(length < 0 for length in entry.shape):
        raise _damaged(path, f"{name} has negative sizes or offsets")
    expected = math.prod(entry.shape) * ITEM_BYTES[entry.dtype]
    if end - begin != expected:
        raise _damaged(
            path,
            f"{name} has {end - begin:,} bytes, but {entry.dtype} {entry.shape} takes {expected:,}",
        )
    return TensorInfo(name, entry.dtype, tuple(entry.shape), start + begin, end - begin)


def _check_spans(path: Path, tensors: dict[str, TensorInfo], size: int) -> None:
    spans = sorted(tensors.values(), key=lambda info: (info.offset, info.nbytes))
    for previous, info in itertools.pairwise(spans):
        if previous.offset + previous.nbytes > info.offset:
            raise _damaged(path, f"{previous.name} and {info.name} overlap")
    end = max((info.offset + info.nbytes for info in spans), default=0)
    if end > size:
        raise _cut_short(path, size, end)


def _cut_short(path: Path, size: int, expected: int) -> ModelError:
    return ModelError(f"{path} is cut short: it has {size:,} bytes and should have {expected:,}.", _DOWNLOAD_AGAIN)


# --- torch.save since 1.6: a zip of <root>/data.pkl and <root>/data/<key>, not compressed ---


def _read_zip(path: Path, stream: IO[bytes], size: int) -> TensorFile:
    try:
        with zipfile.ZipFile(stream) as archive:
            members = {member.filename: member for member in archive.infolist()}
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise ModelError(f"{path} is damaged or cut short ({error}).", _DOWNLOAD_AGAIN) from None
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
                raise _damaged(path, f"the block {storage.key} of its weights is missing")
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
    stream.seek(member.header_offset)
    local = stream.read(30)
    if len(local) != 30 or local[:4] != b"PK\x03\x04":
        raise _damaged(path, f"its member {member.filename} has no header")
    name_bytes, extra_bytes = struct.unpack("<HH", local[26:30])
    offset = member.header_offset + 30 + name_bytes + extra_bytes
    if offset + member.file_size > size:
        raise _cut_short(path, size, offset + member.file_size)
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


def _read_legacy(path: Path, stream: IO[bytes], size: int) -> TensorFile:
    source = str(path)
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
        raise _damaged(path, "it has no list of storages")
    places = _legacy_places(path, stream, size, cast("list[object]", keys), storages)
    tensors: dict[str, TensorInfo] = {}
    for name, tensor in _named_tensors(path, top).items():
        place = places.get(tensor.storage.key)
        if place is None:
            raise _damaged(path, f"the weights of {name} are missing")
        tensors[name] = _stored_info(path, name, tensor, place)
    return TensorFile(path, "ckpt", tensors)


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
        storage = storages.get(str(key))
        if storage is None:
            raise _damaged(path, f"nothing says what the block {key} of its weights is")
        count = stream.read(8)
        if len(count) != 8:
            raise _cut_short(path, size, stream.tell() + 8)
        nbytes = struct.unpack("<q", count)[0] * ITEM_BYTES[storage.dtype]
        place = _Storage(stream.tell(), nbytes)
        if nbytes < 0 or place.offset + nbytes > size:
            raise _cut_short(path, size, place.offset + max(nbytes, 0))
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
    if begin + nbytes > place.nbytes:
        raise _damaged(path, f"{name} reaches beyond its block of {place.nbytes:,} bytes")
    stride = None if is_contiguous else tensor.stride
    return TensorInfo(name, tensor.dtype, tensor.shape, place.offset + begin, nbytes, stride)


def _row_major_stride(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
