"""Opening a picture of any usual kind as 8-bit RGB, and fitting it to a bucket.

Legend: H height_px, W width_px. Sizes are (width_px, height_px) everywhere, arrays (H, W, 3).
"""

from __future__ import annotations

import io
import struct
import threading
import warnings
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin, UnidentifiedImageError, features
from PIL.JpegImagePlugin import JpegImageFile

from lora_train.core.errors import DatasetError

PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"})
"""Lower-case; compare with `path.suffix.lower()`."""

LARGEST_MEGAPIXELS = 120
"""A photograph of a phone with 108 fits. What is that large takes 1 to 8 seconds and up to 2 GB, by its format."""

# Only these decoders are tried, whatever the suffix says: a file called .png that is really
# PostScript would otherwise be handed to Ghostscript. MPO is what many phones call .jpg.
_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "GIF", "TIFF", "AVIF")

_USUAL_SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif"}

_MOST_HEADER_READS = 20_000
"""A camera's header takes about a hundred."""
_MOST_READS = 400_000
"""The largest PNG, in parts of 8 kB, takes 200,000."""

_STRIP_PX = 256
"""Rows that are worked out together."""

_ORIENTATION_TAG = 0x0112
_EXIF_IFD_TAG, _USER_COMMENT_TAG = 0x8769, 0x9286

# EXIF 2.32, table "Orientation": the operation that makes the stored picture upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDES_SWAPPED = (5, 6, 7, 8)

# Pillow has no error of its own for damaged files; its decoders let all of these through.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    OverflowError,
    RuntimeError,
    struct.error,
    zlib.error,
)

# `warnings.catch_warnings` changes the filters of the whole process, so one thread at a time.
_warnings_lock = threading.Lock()


class Fit(msgspec.Struct, frozen=True):
    """How a picture is cut to its bucket; SDXL wants to know it."""

    resized_size: tuple[int, int]
    """(width_px, height_px) that just covers the bucket, aspect ratio kept."""

    crop_left_top: tuple[int, int]
    """(left_px, top_px) of the cut, measured in the resized picture."""

    mirrored_left_px: int
    """Left of the cut where the picture is mirrored: what lies right of it."""


def open_picture(path: Path, least_px: tuple[int, int] | None = None) -> Image.Image:
    """Decode the first frame as an upright 8-bit RGB picture.

    EXIF orientation is applied, transparency is flattened onto white, 16-bit and float values are
    scaled to 0-255. With `least_px` (width_px, height_px of the upright picture) a JPEG may come
    reduced to 1/2, 1/4 or 1/8, not below that size: it is decoded in half the time.

    Raises DatasetError, naming file and reason: missing, not a picture, damaged, cut short, or
    more than LARGEST_MEGAPIXELS (known from the header, before anything is decoded).
    """
    with _opened(path) as image:
        if least_px is not None and isinstance(image, JpegImageFile):
            width_px, height_px = least_px
            is_swapped = _orientation(image) in _SIDES_SWAPPED
            image.draft(None, (height_px, width_px) if is_swapped else least_px)
        image.load()
        return _upright(image, _as_rgb(image))


def open_alpha(path: Path) -> Image.Image | None:
    """How opaque every pixel of the upright picture is, in one channel: 0 transparent, 255 opaque.

    None where all of it is opaque. Raises DatasetError as `open_picture`.
    """
    with _opened(path) as image:
        if not _has_transparency(image):
            return None
        image.load()
        alpha = _upright(image, _alpha_of(image))
        return None if alpha.getextrema()[0] == 255 else alpha


def picture_size(path: Path) -> tuple[int, int]:
    """(width_px, height_px) of the upright picture, from the header alone.

    Raises DatasetError as `open_picture` does, except for damage behind the header.
    """
    with _opened(path) as image:
        width_px, height_px = image.size
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            # New Pillow swaps `size` on opening, old Pillow while loading; the tags never change.
            width_px, height_px = int(image.tag_v2[256]), int(image.tag_v2[257])
        if _orientation(image) in _SIDES_SWAPPED:
            width_px, height_px = height_px, width_px
        return width_px, height_px


def usual_suffix(path: Path) -> str:
    """The suffix that suits the picture's content, for one whose name has none. Raises DatasetError for no picture."""
    with _opened(path) as image:
        return _USUAL_SUFFIXES.get(image.format or "", f".{(image.format or 'png').lower()}")


def texts_in_picture(path: Path) -> tuple[str, bytes]:
    """What a program may have noted in the header: PNG's text `parameters`, and the EXIF user comment, as it is.

    Empty where there is none. Raises DatasetError for what is no picture.
    """
    with _opened(path) as image:
        parameters = image.info.get("parameters", "")
        comment = Image.Image.getexif(image).get_ifd(_EXIF_IFD_TAG).get(_USER_COMMENT_TAG, b"")
        return (
            parameters if isinstance(parameters, str) else "",
            comment if isinstance(comment, bytes) else str(comment).encode("utf-8"),
        )


def fit(size: tuple[int, int], bucket: tuple[int, int]) -> Fit:
    """How a picture of `size` (width_px, height_px) is resized and cut to a bucket."""
    width_px, height_px = size
    bucket_width_px, bucket_height_px = bucket
    scale = max(bucket_width_px / width_px, bucket_height_px / height_px)
    resized_width_px = max(bucket_width_px, round(width_px * scale))
    resized_height_px = max(bucket_height_px, round(height_px * scale))
    left_px = (resized_width_px - bucket_width_px) // 2
    top_px = (resized_height_px - bucket_height_px) // 2
    right_px = resized_width_px - bucket_width_px - left_px
    return Fit((resized_width_px, resized_height_px), (left_px, top_px), right_px)


def fit_to_bucket(picture: Image.Image, bucket: tuple[int, int]) -> NDArray[np.uint8]:
    """(H, W, 3), 0-255: the RGB picture resized (Lanczos, aspect ratio kept) until it just covers the bucket
    (width_px, height_px), then its centre.
    """
    return _cut(picture, fit(picture.size, bucket), bucket, Image.Resampling.LANCZOS)


def fit_mask_to_bucket(mask: Image.Image, bucket: tuple[int, int]) -> NDArray[np.uint8]:
    """(H, W) of a mask, cut as `fit_to_bucket` cuts a picture of its size. It is resized without overshoot."""
    return _cut(mask, fit(mask.size, bucket), bucket, Image.Resampling.BILINEAR)


def _cut(picture: Image.Image, how: Fit, bucket: tuple[int, int], resampling: Image.Resampling) -> NDArray[np.uint8]:
    (left_px, top_px), (width_px, height_px) = how.crop_left_top, bucket
    resized = picture.resize(how.resized_size, resampling)
    return np.array(resized.crop((left_px, top_px, left_px + width_px, top_px + height_px)), dtype=np.uint8)


class _Parts(io.BufferedReader):
    """A file that is read so many times and no more. Pillow goes from part to part in Python, and joins the comments of
    a GIF block by block: a file of some megabytes with nothing but tiny parts would keep it busy for minutes.
    """

    left = _MOST_HEADER_READS

    def read(self, size: int | None = -1, /) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise OSError("it has too many parts")
        return super().read(size)


@contextmanager
def _opened(path: Path) -> Generator[Image.Image, None, None]:
    """The picture with its header read; whatever goes wrong inside becomes a DatasetError."""
    try:
        with _Parts(io.FileIO(path)) as file:
            image = _read_header(file)
            file.left = _MOST_READS
            if image.format == "BMP":  # Pillow reads a compressed one byte by byte
                file.left = max(_MOST_READS, path.stat().st_size)
            _check_size(path, image.size)
            yield image
    except Image.DecompressionBombError as error:
        raise _too_large(path) from error
    except MemoryError as error:
        raise _unusable(path, "there is not enough memory to decode it; make it smaller") from error
    except _DAMAGED as error:
        raise _unusable(path, _why_unreadable(path, error)) from error


def _read_header(file: BinaryIO) -> Image.Image:
    Image.init()
    formats = [name for name in _FORMATS if name in Image.OPEN]
    with _warnings_lock, warnings.catch_warnings():
        # Pillow warns from 89 megapixels on, and about decoders it lacks; we say both ourselves.
        warnings.simplefilter("ignore")
        return Image.open(file, formats=formats)


def _check_size(path: Path, size: tuple[int, int]) -> None:
    width_px, height_px = size
    if width_px < 1 or height_px < 1:
        raise _unusable(path, f"its size is {width_px}x{height_px}, so it has no pixels")
    if width_px * height_px > LARGEST_MEGAPIXELS * 1_000_000:
        raise _too_large(path, f" ({width_px}x{height_px})")


def _too_large(path: Path, size_text: str = "") -> DatasetError:
    reason = f"it is too large{size_text}: the limit is {LARGEST_MEGAPIXELS} megapixels"
    return _unusable(path, f"{reason}; make it smaller")


def _unusable(path: Path, reason: str) -> DatasetError:
    return DatasetError(f"{path} can't be used: {reason}.")


def _why_unreadable(path: Path, error: Exception) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        return f"the file can't be read ({error.strerror})"
    if not isinstance(error, UnidentifiedImageError):
        return f"it is damaged or cut short ({error})"
    if path.stat().st_size == 0:
        return "the file is empty"
    if path.suffix.lower() == ".avif" and not _reads_avif():
        return f"Pillow {PIL.__version__} can't read AVIF (11.3 and newer can); save it as PNG"
    return "it is not a picture of a kind that can be read, whatever its name says"


def _reads_avif() -> bool:
    return "avif" in features.modules and features.check_module("avif")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation 1-8; 1 (upright) if there is none or it can't be read."""
    try:
        # The PNG class's own getexif would decode all pixels to look for EXIF behind them.
        value = Image.Image.getexif(image).get(_ORIENTATION_TAG, 1)
    except _DAMAGED:
        return 1
    return value if isinstance(value, int) else 1


def _upright(image: Image.Image, converted: Image.Image) -> Image.Image:
    """What was made of a picture as it is stored, turned as its EXIF says."""
    # Pillow turns TIFF by itself while loading, and old versions leave the tag in place.
    turned_already = isinstance(image, TiffImagePlugin.TiffImageFile)
    operation = None if turned_already else _UPRIGHT.get(_orientation(image))
    return converted if operation is None else converted.transpose(operation)


def _has_transparency(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "RGBa", "LA", "PA") or "transparency" in image.info


def _has_wide_numbers(image: Image.Image) -> bool:
    return image.mode == "F" or image.mode.startswith("I")


def _alpha_of(image: Image.Image) -> Image.Image:
    if "A" in image.getbands():
        return image.getchannel("A")
    if not _has_wide_numbers(image):
        return image.convert("RGBA").getchannel("A")
    # As in `_grey_to_8_bit`: one value may stand for transparent.
    transparent = image.info.get("transparency")
    opaque = np.asarray(image) != transparent if isinstance(transparent, int) else np.ones(image.size[::-1], bool)
    return Image.fromarray(opaque.astype(np.uint8) * 255)


def _as_rgb(image: Image.Image) -> Image.Image:
    if _has_wide_numbers(image):
        return _grey_to_8_bit(image).convert("RGB")
    return _on_white(image) if _has_transparency(image) else image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    """Strip by strip: whole layers of the largest pictures take gigabytes."""
    width_px, height_px = image.size
    flat = Image.new("RGB", image.size)
    white = Image.new("RGBA", (width_px, min(height_px, _STRIP_PX)), (255, 255, 255, 255))
    for top_px in range(0, height_px, _STRIP_PX):
        layer = image.crop((0, top_px, width_px, min(height_px, top_px + _STRIP_PX)))
        if layer.mode != "RGBA":  # else it would be copied
            layer = layer.convert("RGBA")
        if layer.size != white.size:
            white = white.crop((0, 0, *layer.size))
        flat.paste(Image.alpha_composite(white, layer), (0, top_px))  # all opaque now
    return flat


def _grey_to_8_bit(image: Image.Image) -> Image.Image:
    """Scale the grey modes I;16, I and F to L; Pillow's own `convert` clips them at 255.

    Full scale is 65535 for 16-bit pictures. 32-bit and float TIFFs don't say theirs: it is the
    smallest usual one (1 for float only, 255, 65535, 2^32 - 1) that holds the brightest value.
    """
    values = np.asarray(image)
    transparent = image.info.get("transparency")
    grey = np.empty(values.shape, dtype=np.uint8)
    if image.mode.startswith("I;16"):  # there are fewer numbers than pixels
        table = _scaled(np.arange(65536.0), 65535.0, transparent)
        for top_px in range(0, len(values), _STRIP_PX):
            grey[top_px : top_px + _STRIP_PX] = table[values[top_px : top_px + _STRIP_PX]]
        return Image.fromarray(grey)
    if image.format == "PNG":  # old Pillow opens one of 16 bits as I
        full_scale = 65535.0
    else:
        usual = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
        brightest = max(float(strip.max()) for _, strip in _strips(values))
        full_scale = next((scale for scale in usual if brightest <= scale), 2.0**32 - 1)
    for top_px, strip in _strips(values):
        grey[top_px : top_px + _STRIP_PX] = _scaled(strip, full_scale, transparent)
    return Image.fromarray(grey)


def _scaled(values: NDArray[np.float64], full_scale: float, transparent: object) -> NDArray[np.uint8]:
    """0-255, in the place of the values; the one that stands for transparent is white."""
    is_white = values == transparent if isinstance(transparent, int) else None
    np.minimum(values, full_scale, out=values)
    np.rint(np.multiply(values, 255.0 / full_scale, out=values), out=values)
    if is_white is not None:
        values[is_white] = 255
    return values.astype(np.uint8)


def _strips(values: NDArray[Any]) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Top of each strip, and its values, none of them negative or not finite. All at once they take eight times the
    memory of the picture.
    """
    for top_px in range(0, len(values), _STRIP_PX):
        strip = values[top_px : top_px + _STRIP_PX].astype(np.float64)
        if values.dtype.kind == "f":
            strip[~np.isfinite(strip)] = 0.0
        yield top_px, np.maximum(strip, 0.0, out=strip)
