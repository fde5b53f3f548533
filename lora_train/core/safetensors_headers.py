"""The JSON header of a safetensors file, read as from somebody who means harm.

Format: https://github.com/huggingface/safetensors#format. The library itself refuses what is refused here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import cast

import msgspec

from lora_train.core.errors import MOST_OF_REASON, shown

MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library itself."""

_MOST_PARTS = 4_000_000
"""Commas and opening brackets, those in texts included: a base model has about 30,000, and each may take 100 bytes of
memory. A list of tags in the metadata, however long, stays far below."""
_MOST_DIGITS = 20
"""2^64 has so many; to read a number of a million digits can take minutes."""


class Entry(msgspec.Struct):
    """One tensor in the JSON header; `data_offsets` count from the end of the header."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def parse_header(raw: bytes) -> tuple[dict[str, str], dict[str, Entry]]:
    """Metadata and tensors of a header. Raises ValueError with the reason why it is none."""
    if sum(map(raw.count, (b",", b"[", b"{"))) > _MOST_PARTS:
        raise ValueError(f"its header has more than {_MOST_PARTS:,} parts")
    try:
        header: object = json.loads(raw.decode("utf-8"), object_pairs_hook=_without_repeats, parse_int=_whole_number)
    except UnicodeDecodeError:
        raise ValueError("its header is not UTF-8 text") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its header can't be read ({shown(error, MOST_OF_REASON)})") from None
    if not isinstance(header, dict):
        raise ValueError("its header is not a JSON object")
    entries = cast("dict[str, object]", header)
    metadata = entries.pop("__metadata__", {})
    try:
        texts = msgspec.convert(metadata, dict[str, str])
        tensors = msgspec.convert(entries, dict[str, Entry])
    except msgspec.ValidationError as error:
        raise ValueError(f"its header is not that of a safetensors file ({shown(error, MOST_OF_REASON)})") from None
    if not all(map(is_unicode, _texts(texts))):
        raise ValueError("its metadata is no valid Unicode")
    return texts, tensors


def is_unicode(text: str) -> bool:
    """Whether it can be written anywhere: JSON and pickles can hold halves of surrogate pairs."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _texts(metadata: dict[str, str]) -> Iterable[str]:
    yield from metadata
    yield from metadata.values()


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"{ascii(twice[:100])[1:-1]} stands in it twice")
    return result


def _whole_number(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"a number of {len(digits):,} digits stands in it")
    return int(digits)
