"""How long a zip's list of its members is, before anybody reads it: zipfile takes as much memory as it is told.

Format: APPNOTE.TXT of PKWARE, 4.3.14 to 4.3.16.
"""

from __future__ import annotations

import struct
from typing import IO

_END, _LONG_END, _LONG_PLACE = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_END_BYTES, _LONG_PLACE_BYTES = 22, 20
_LONGEST_COMMENT_BYTES = 65_535
_TOLD_ELSEWHERE = 0xFFFFFFFF


def directory_bytes(stream: IO[bytes], size: int) -> int:
    """What a zip of `size` bytes says of its list; 0 where it says nothing. `stream` then stands at its beginning."""
    start = max(0, size - _END_BYTES - _LONGEST_COMMENT_BYTES - _LONG_PLACE_BYTES)
    stream.seek(start)
    tail = stream.read()
    is_last = tail[-_END_BYTES:].startswith(_END) and tail.endswith(
        b"\0\0"
    )  # without a comment, as zipfile looks first
    at = len(tail) - _END_BYTES if is_last else tail.rfind(_END)
    told = 0
    if 0 <= at <= len(tail) - _END_BYTES:
        (told,) = struct.unpack_from("<I", tail, at + 12)
        place = tail[max(0, at - _LONG_PLACE_BYTES) : at]
        if place.startswith(_LONG_PLACE) and len(place) == _LONG_PLACE_BYTES:
            told = max(told if told != _TOLD_ELSEWHERE else 0, _long(stream, start + at))
    stream.seek(0)
    return told


def _long(stream: IO[bytes], end: int) -> int:
    """Of the record of large archives; zipfile looks for it right before the note of its place."""
    stream.seek(max(0, end - _LONG_PLACE_BYTES - 56))
    record = stream.read(56)
    return struct.unpack_from("<Q", record, 40)[0] if record.startswith(_LONG_END) and len(record) == 56 else 0
