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
    card = picture.resize(CARD_SIZE_PX, Image.Resampling.LANCZOS, box=_middle(picture, most_cut=1.0))
    box = _middle(picture, most_cut=_MOST_CUT)
    kept_width, kept_height = box[2] - box[0], box[3] - box[1]
    scale = min(CARD_SIZE_PX[0] / kept_width, CARD_SIZE_PX[1] / kept_height)
    size = max(1, round(kept_width * scale)), max(1, round(kept_height * scale))
    if size != CARD_SIZE_PX:
        card = ImageEnhance.Brightness(card.filter(ImageFilter.GaussianBlur(_BLUR_PX))).enhance(_FRAME_BRIGHTNESS)
        place = (CARD_SIZE_PX[0] - size[0]) // 2, (CARD_SIZE_PX[1] - size[1]) // 2
        card.paste(picture.resize(size, Image.Resampling.LANCZOS, box=box), place)
    info = PngImagePlugin.PngInfo()
    if parameters:
        info.add_itxt("parameters", parameters)
    stream = io.BytesIO()
    card.save(stream, format="PNG", pnginfo=info)
    return stream.getvalue()


def _middle(picture: Image.Image, *, most_cut: float) -> tuple[float, float, float, float]:
    """The middle of the picture, as near to the card's shape as a cut of this share brings it: left, top, right,
    bottom.
    """
    width, height = picture.size
    shape = CARD_SIZE_PX[0] / CARD_SIZE_PX[1]
    kept_width = max(min(width, height * shape), width * (1 - most_cut))
    kept_height = max(min(height, width / shape), height * (1 - most_cut))
    left, top = (width - kept_width) / 2, (height - kept_height) / 2
    return left, top, left + kept_width, top + kept_height
