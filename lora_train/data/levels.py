"""How different two pictures are, and whether one shows anything, in levels of 255."""

from __future__ import annotations

from PIL import Image, ImageChops, ImageStat


def mean_difference(one: Image.Image, other: Image.Image) -> float:
    """Mean over pixels and channels of two RGB pictures of one size."""
    channels = ImageStat.Stat(ImageChops.difference(one, other)).mean
    return sum(channels) / len(channels)


def largest_difference(one: Image.Image, other: Image.Image) -> int:
    """Of any pixel and channel of two RGB pictures of one size."""
    return max(high for _, high in ImageStat.Stat(ImageChops.difference(one, other)).extrema)


def spread(picture: Image.Image) -> float:
    """Standard deviation of the channel that varies most; 0 for a picture of one colour."""
    return max(ImageStat.Stat(picture).stddev)
