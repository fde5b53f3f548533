"""How much pictures differ, and whether one shows anything at all."""

from __future__ import annotations

from PIL import Image, ImageChops, ImageStat


def difference_levels(one: Image.Image, other: Image.Image) -> float:
    """Mean over pixels and the three channels of two pictures of one size, in levels of 255."""
    return sum(ImageStat.Stat(ImageChops.difference(one, other)).mean) / 3


def spread_levels(picture: Image.Image) -> float:
    """The largest standard deviation of a channel, in levels of 255."""
    return max(ImageStat.Stat(picture).stddev)
