"""Which tensors a model file holds and where, read from its header alone.

Formats, told apart by content: safetensors (https://github.com/huggingface/safetensors#format), the
zip files of `torch.save` (.ckpt, .pt, .bin) and its older pickle stream. Nothing in a file is run,
and no weights are read.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import struct
from pathlib import Path
from typing import IO

from lora_train.core.errors import ModelError
from lora_train.core.pickles import MAX_DIMENSIONS
from lora_train.core.safetensors_headers import MAX_HEADER_BYTES, Entry, parse_header
from lora_train.core.tensor_infos import ITEM_BYTES, TensorFile, TensorInfo, cut_short, damaged, require_usable
from lora_train.core.torch_files import read_legacy, read_zip

_READ_BYTES = 1 << 20


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
        return read_zip(path, stream, size)
    if head[:1] == b"\x80":
        return read_legacy(path, stream, size)
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


# --- safetensors: 8 bytes length, a JSON object of that length, the tensors ---


def _read_safetensors(path: Path, stream: IO[bytes], size: int) -> TensorFile:
    (header_bytes,) = struct.unpack("<Q", stream.read(8))
    if header_bytes > MAX_HEADER_BYTES:
        raise damaged(path, f"a header of {header_bytes:,} bytes (the limit is {MAX_HEADER_BYTES:,})")
    if 8 + header_bytes > size:
        raise cut_short(path, size, 8 + header_bytes)
    try:
        metadata, entries = parse_header(stream.read(header_bytes))
    except ValueError as error:
        raise damaged(path, str(error)) from None
    start = 8 + header_bytes
    tensors = {name: _tensor_info(path, name, entry, start) for name, entry in entries.items()}
    _check_spans(path, tensors, size)
    return TensorFile(path, "safetensors", tensors, metadata)


def _tensor_info(path: Path, name: str, entry: Entry, start: int) -> TensorInfo:
    require_usable(path, name)
    if entry.dtype not in ITEM_BYTES:
        raise ModelError(f"{path}: {name} has the number format {ascii(entry.dtype[:20])[1:-1]}, which is not known.")
    if len(entry.shape) > MAX_DIMENSIONS:
        raise damaged(path, f"{name} has {len(entry.shape)} dimensions")
    begin, end = entry.data_offsets
    if begin < 0 or end < begin or any(length < 0 for length in entry.shape):
        raise damaged(path, f"{name} has negative sizes or offsets")
    expected = math.prod(entry.shape) * ITEM_BYTES[entry.dtype]
    if end - begin != expected:
        raise damaged(
            path,
            f"{name} has {end - begin:,} bytes, but {entry.dtype} {entry.shape} takes {expected:,}",
        )
    return TensorInfo(name, entry.dtype, tuple(entry.shape), start + begin, end - begin)


def _check_spans(path: Path, tensors: dict[str, TensorInfo], size: int) -> None:
    spans = sorted(tensors.values(), key=lambda info: (info.offset, info.nbytes))
    for previous, info in itertools.pairwise(spans):
        if previous.offset + previous.nbytes > info.offset:
            raise damaged(path, f"{previous.name} and {info.name} overlap")
    end = max((info.offset + info.nbytes for info in spans), default=0)
    if end > size:
        raise cut_short(path, size, end)
