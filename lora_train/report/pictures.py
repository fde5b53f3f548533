"""Pictures as text that stands in the page itself."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import NamedTuple

from lora_train.core.errors import DatasetError
from lora_train.data.images import open_picture

_LONGEST_SIDE_PX = 1600
_QUALITY = 82
"""A grid of 1600 px takes 200 to 500 kB."""


class Embedded(NamedTuple):
    """A picture as a data URI, with its size as it stands there."""

    uri: str
    width_px: int
    height_px: int


def embedded(path: Path, longest_side_px: int = _LONGEST_SIDE_PX) -> Embedded | None:
    """The picture as JPEG, made smaller where it is large; None where the file can't be read."""
    try:
        picture = open_picture(path)
    except (DatasetError, OSError):
        return None
    picture.thumbnail((longest_side_px, longest_side_px))
    stream = io.BytesIO()
    picture.convert("RGB").save(stream, "JPEG", quality=_QUALITY)
    text = base64.b64encode(stream.getvalue()).decode("ascii")
    return Embedded(f"data:image/jpeg;base64,{text}", picture.width, picture.height)
