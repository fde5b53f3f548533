"""JSON files that know whether they are as they were written: their last member is a check over all before it.

A disk that rots, or a copy that went wrong, may turn a 3 into a 1: the file is still JSON, and means something else.
"""

from __future__ import annotations

import re
import zlib

import msgspec

CHECK = "check"
_CHECK = re.compile(rb',\s*"check":\s*"([0-9a-f]{8})"\s*\}\s*$')

_CHECK_BYTES = 64
"""More than the check and the space around it."""


class BrokenSealError(ValueError):
    """The content is not what was written."""


def sealed(content: bytes) -> bytes:
    """A JSON object with a check at its end: the CRC-32 of what stands before it. An empty object stays as it is."""
    body = _body(content)
    if body == b"{":
        return content
    space, end = (b"\n  ", b"\n}") if content.rstrip().endswith(b"\n}") else (b"", b"}")
    return body + b',%b"check": "%08x"%b' % (space, zlib.crc32(body), end)


def sealed_json(content: object) -> bytes:
    """Indented JSON of an object, sealed."""
    return sealed(msgspec.json.format(msgspec.json.encode(content), indent=2))


def unsealed(content: bytes) -> bytes:
    """What `sealed` was given; content without a check is given back as it is.

    Raises BrokenSealError where the content was changed after it was sealed.
    """
    found = _CHECK.search(content, max(0, len(content) - _CHECK_BYTES))
    if found is None:
        return content
    body = content[: found.start()]
    if zlib.crc32(body) != int(found[1], 16):
        raise BrokenSealError("it was changed or damaged after it was written")
    return body + b"\n}"


def is_broken(content: bytes) -> bool:
    """Whether content was changed after it was sealed."""
    try:
        unsealed(content)
    except BrokenSealError:
        return True
    return False


def _body(content: bytes) -> bytes:
    """Without the last brace and the space around it."""
    return content.rstrip()[:-1].rstrip()
