"""Which parts of a picture *Masked loss* learns: white is learned, black is left out, grey is learned partly.

The mask of a picture is NAME.* in a folder `mask` beside it, or else the picture's own transparency.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageChops

from lora_train.core.errors import DatasetError
from lora_train.data.captions import caption_stem
from lora_train.data.images import PICTURE_SUFFIXES, open_alpha, open_picture, picture_size

MASK_FOLDER = "mask"


def is_mask_folder(name: str) -> bool:
    """Whether a folder of this name holds masks, and no pictures."""
    return name.casefold() == MASK_FOLDER


def masks_by_stem(folder: Path) -> dict[str, Path]:
    """The mask of each stem (NFC) of a folder of pictures; none where there is no folder.

    Raises DatasetError for one that can't be listed.
    """
    try:
        folders = sorted(path for path in folder.iterdir() if is_mask_folder(path.name) and path.is_dir())
        files = [path for masks in folders for path in sorted(masks.iterdir())]
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise DatasetError(f"The masks in {folder} can't be listed ({error.strerror}).") from error
    return {
        caption_stem(path): path
        for path in files
        if path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith(".") and path.is_file()
    }


def mask_path(picture: Path) -> Path:
    """Where the mask of a picture that we make goes."""
    return picture.parent / MASK_FOLDER / f"{picture.stem}.png"


def open_mask(picture: Path, mask: Path | None) -> Image.Image | None:
    """What is learned of a picture: a picture of one channel (0 left out, 255 learned) and of the same upright size.

    `mask` is its mask file, if it has one; what is transparent in that is left out too. None where everything is
    learned, because there is neither. Raises DatasetError as `images.open_picture`, also for a mask of another shape.
    """
    if mask is None:
        return open_alpha(picture)
    grey, alpha = open_picture(mask).convert("L"), open_alpha(mask)
    if alpha is not None:
        grey = ImageChops.multiply(grey, alpha)
    (width_px, height_px), size_px = grey.size, picture_size(picture)
    # Sides that were rounded to whole pixels are the same shape still.
    if abs(width_px * size_px[1] - height_px * size_px[0]) > max(sum(size_px), width_px + height_px):
        raise DatasetError(
            f"{mask} can't be used: it has {width_px}x{height_px} pixels, which is another shape than that of its "
            f"picture, {size_px[0]}x{size_px[1]}.",
            "Make it as large as the picture, or remove it.",
        )
    # Bilinear, here and wherever masks are made smaller: Lanczos would leave traces beside black areas.
    return grey if grey.size == size_px else grey.resize(size_px, Image.Resampling.BILINEAR)
