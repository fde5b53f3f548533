"""What *Update Dataset* does to one picture: pure functions from picture to picture."""

from __future__ import annotations

from PIL import Image, ImageOps


def crop_and_resize(picture: Image.Image, width_px: int, height_px: int) -> Image.Image:
    """The picture at exactly this size: enlarged or reduced (Lanczos) until it covers it, the middle kept."""
    return ImageOps.fit(picture, (width_px, height_px), Image.Resampling.LANCZOS)


def flipped(picture: Image.Image) -> Image.Image:
    """Left and right changed."""
    return ImageOps.mirror(picture)
