"""What is known of the tensors in a model file: number format, shape and place; and what is wrong with a file."""

from __future__ import annotations

import io
from pathlib import Path
from typing import IO, Literal, cast

import msgspec

from lora_train.core.errors import ModelError
from lora_train.core.safetensors_headers import is_unicode

_MOST_NAME_LENGTH = 500
"""Characters; the longest names of known models have about 150."""

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

DOWNLOAD_AGAIN = "The download may be incomplete: download the file again."


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
            DOWNLOAD_AGAIN,
        )
    return content


def damaged(path: Path, what: str) -> ModelError:
    """The error for a file that can't be right: `what` says why."""
    return ModelError(f"{path} is damaged: {what}.", "Download the file again.")


def cut_short(path: Path, size: int, expected: int) -> ModelError:
    """The error for a file of `size` bytes that goes on up to `expected`."""
    return ModelError(f"{path} is cut short: it has {size:,} bytes and should have {expected:,}.", DOWNLOAD_AGAIN)


def require_usable(path: Path, name: str) -> None:
    """Raise ModelError for a tensor's name that can't be written anywhere, or is none."""
    if len(name) > _MOST_NAME_LENGTH:
        raise damaged(path, f"the name of a tensor has {len(name):,} characters")
    if not is_unicode(name):
        raise damaged(path, f"the name of a tensor is no valid Unicode: {name!a}")
