"""The picture of a LoRA's card: 2:3, as hosts show cards, from a preview of any shape and size."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image, ImageEnhance, ImageFilter, PngImagePlugin

from lora_train.data.images import open_picture, texts_in_picture

CARD_SIZE_PX = (512, 768)
_MOST_CUT = 1 / 3
"""Of a picture's width or height; what then is too wide still gets a soft frame of itself."""
_BLUR_PX = 24
_FRAME_BRIGHTNESS = 0.6


def card_thumbnail(preview: Path) -> bytes:
    """A PNG of `CARD_SIZE_PX` from a picture file, with its generation parameters.

    A square loses a third of its width; of a wider picture the middle is kept whole above and below a blurred, darker
    copy of it. Raises DatasetError for what is no picture.
    """
    parameters, _ = texts_in_picture(preview)
    picture = open_picture(preview)
    card = _cover(picture, CARD_SIZE_PX)
    kept = _cut(picture)
    scale = min(CARD_SIZE_PX[0] / kept.width, CARD_SIZE_PX[1] / kept.height)
    size = max(1, round(kept.width * scale)), max(1, round(kept.height * scale))
    if size != CARD_SIZE_PX:
        card = ImageEnhance.Brightness(card.filter(ImageFilter.GaussianBlur(_BLUR_PX))).enhance(_FRAME_BRIGHTNESS)
        place = (CARD_SIZE_PX[0] - size[0]) // 2, (CARD_SIZE_PX[1] - size[1]) // 2
        card.paste(kept.resize(size, Image.Resampling.LANCZOS), place)
    info = PngImagePlugin.PngInfo()
    if parameters:
        info.add_itxt("parameters", parameters)
    stream = io.BytesIO()
    card.save(stream, format="PNG", pnginfo=info)
    return stream.getvalue()


def _cut(picture: Image.Image) -> Image.Image:
    """The middle of the picture, as near to the card's shape as the cut that is allowed brings it."""
    width, height = picture.size
    shape = CARD_SIZE_PX[0] / CARD_SIZE_PX[1]
    wanted_width, wanted_height = min(width, height * shape), min(height, width / shape)
    kept_width = max(1, round(max(wanted_width, width * (1 - _MOST_CUT))))
    kept_height = max(1, round(max(wanted_height, height * (1 - _MOST_CUT))))
    left, top = (width - kept_width) // 2, (height - kept_height) // 2
    return picture.crop((left, top, left + kept_width, top + kept_height))


def _cover(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The middle of the picture, as much of it as fills `size`."""
    scale = max(size[0] / picture.width, size[1] / picture.height)
    width, height = size[0] / scale, size[1] / scale
    left, top = (picture.width - width) / 2, (picture.height - height) / 2
    box = (left, top, left + width, top + height)
    return picture.resize(size, Image.Resampling.LANCZOS, box=box)
