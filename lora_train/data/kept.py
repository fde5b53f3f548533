"""Which part of an original is trained: what *Update Dataset* took of it, and what the bucket takes of that.

Rectangles are (left, top, right, bottom) in pixels. Pure arithmetic.
"""

from __future__ import annotations

from typing import NamedTuple

from lora_train.data.buckets import Size
from lora_train.data.manifest import Made

Rectangle = tuple[float, float, float, float]


class Kept(NamedTuple):
    """The trained part of one picture."""

    outline_px: Size
    """Of the upright original; of the stored picture where the original is not known."""
    rectangle_px: Rectangle
    """Within the outline."""
    lost_by_update: float
    """Share of the original's area, 0-1."""
    lost_by_bucket: float
    """Share of the stored picture's area, 0-1."""
    lost_share: float
    """Share of the original's area that is not trained, 0-1."""
    enlargement: float
    """How many times longer a length is in training than it was in the original."""


def kept_in_bucket(size: Size, bucket: Size) -> Rectangle:
    """The middle part of a picture that `images.fit_to_bucket` trains, without its rounding to whole pixels."""
    width_px, height_px = size
    scale = _covering_scale(size, bucket)
    left_px, top_px = (width_px - bucket[0] / scale) / 2, (height_px - bucket[1] / scale) / 2
    return left_px, top_px, width_px - left_px, height_px - top_px


def kept_of(size: Size, bucket: Size, made: Made | None) -> Kept:
    """What is trained of a stored picture of this size; `made` tells where it was cut out, if it is known.

    The bucket cuts both sides alike, so a flipped copy loses what the picture itself loses.
    """
    whole = (0.0, 0.0, float(size[0]), float(size[1]))
    is_known = made is not None and 0 not in made.origin_px and _area(made.box_px) > 0
    outline_px, box_px = (made.origin_px, made.box_px) if made is not None and is_known else (size, whole)
    inner_px = kept_in_bucket(size, bucket)
    x_scale, y_scale = (box_px[2] - box_px[0]) / size[0], (box_px[3] - box_px[1]) / size[1]
    rectangle_px = (
        box_px[0] + inner_px[0] * x_scale,
        box_px[1] + inner_px[1] * y_scale,
        box_px[0] + inner_px[2] * x_scale,
        box_px[1] + inner_px[3] * y_scale,
    )
    return Kept(
        outline_px=outline_px,
        rectangle_px=rectangle_px,
        lost_by_update=_lost(box_px, outline_px),
        lost_by_bucket=_lost(inner_px, size),
        lost_share=_lost(rectangle_px, outline_px),
        enlargement=_covering_scale(size, bucket) / min(x_scale, y_scale),
    )


def _covering_scale(size: Size, bucket: Size) -> float:
    return max(bucket[0] / size[0], bucket[1] / size[1])


def _lost(rectangle_px: Rectangle, outline_px: Size) -> float:
    share = 1 - _area(rectangle_px) / (outline_px[0] * outline_px[1])
    return min(1.0, max(0.0, share))  # rounding may lead a little out of it


def _area(rectangle_px: Rectangle) -> float:
    return (rectangle_px[2] - rectangle_px[0]) * (rectangle_px[3] - rectangle_px[1])
