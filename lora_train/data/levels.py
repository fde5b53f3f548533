"""How different two pictures are, and whether one shows anything, in levels of 255."""

from __future__ import annotations

from PIL import Image, ImageChops, ImageStat


def mean_difference(one: Image.Image, other: Image.Image) -> float:
    """Mean over pixels and channels of two RGB pictures of one size."""
    channels = ImageStat.Stat(ImageChops.difference(one, other)).mean
    return sum(channels) / len(channels)


def spread(picture: Image.Image) -> float:
    """Standard deviation of the channel that varies most; 0 for a picture of one colour."""
    return max(ImageStat.Stat(picture).stddev)
