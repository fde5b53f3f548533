"""Where a picture's subject is: faces where OpenCV finds them, and what stands out, by mathematics of our own.

Legend: H, W are sides of a small copy of the picture in pixels; boxes are (left, top, right, bottom) and points
(x, y) in pixels of the picture that was given.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Box = tuple[int, int, int, int]
Point = tuple[float, float]
Map = NDArray[np.float64]

_SMALL_PX = 128
"""Longer side of the copy on which detail is measured."""

_SALIENCY_PX = 64
"""Hou and Zhang's size: small enough that textures vanish and things remain."""

_FACE_PX = 640
"""Longer side of the copy in which faces are looked for: a face of a tenth of it is 64 pixels wide."""

_FACE_SHARE = 0.08
"""The smallest face that is looked for, as a share of the shorter side."""

_CENTRE_SIGMA = 0.35
"""Who takes a picture points at the subject: width of the prior, as a share of each side."""

_KEPT_OF_OTSU = 0.7
"""Share of Otsu's threshold from which on a place belongs to the subject: at 1 only its brightest parts do."""

_CASCADE = "haarcascade_frontalface_alt2.xml"

_of_thread = threading.local()
"""OpenCV's classifiers keep state while they look, so each thread has its own."""


class Attraction(NamedTuple):
    """What attracts the crop, and how much."""

    kind: str
    point: Point
    weight: float
    boxes: list[Box]


def attractions(
    picture: Image.Image, face_weight: float, entropy_weight: float, edges_weight: float
) -> list[Attraction]:
    """The points of an RGB picture by which its focus is found; those whose weight is 0 are left out.

    Where no face is found (or OpenCV is missing), the box that stands out takes the place of the faces.
    """
    found: list[Attraction] = []
    if face_weight > 0:
        boxes = faces(picture)
        kind = "face" if boxes else "subject"
        boxes = boxes or [subject_box(picture)]
        found.append(Attraction(kind, _middle_of(boxes), face_weight, boxes))
    if entropy_weight > 0:
        found.append(Attraction("entropy", entropy_point(picture), entropy_weight, []))
    if edges_weight > 0:
        found.append(Attraction("edges", edges_point(picture), edges_weight, []))
    return found


def focus_of(found: list[Attraction], size_px: tuple[int, int]) -> Point:
    """The weighted mean of the points; the picture's middle where there are none."""
    total = sum(its.weight for its in found)
    if total == 0:
        return size_px[0] / 2, size_px[1] / 2
    return (
        sum(its.weight * its.point[0] for its in found) / total,
        sum(its.weight * its.point[1] for its in found) / total,
    )


def faces(picture: Image.Image) -> list[Box]:
    """Faces seen from the front, the largest first; none where OpenCV or its cascade is missing or broken.

    Viola and Jones 2001, with the trees that come with OpenCV 4; OpenCV 5 has none.
    """
    cascade = _cascade()
    if cascade is None:
        return []
    small, scale = _reduced(picture.convert("L"), _FACE_PX)
    least_px = max(24, round(_FACE_SHARE * min(small.size)))
    try:
        found = cascade.detectMultiScale(np.asarray(small), 1.1, 5, minSize=(least_px, least_px))
    except Exception:  # whatever OpenCV's error class is called in this version: no faces, never no update
        return []
    rows = [tuple(int(value) for value in row) for row in found]
    boxes = [_scaled((x, y, x + width, y + height), scale, picture.size) for x, y, width, height in rows]
    return sorted(boxes, key=_area_px, reverse=True)


def subject_box(picture: Image.Image) -> Box:
    """The box around most of what stands out in an RGB picture; all of it where nothing does."""
    saliency = saliency_map(picture)
    height, width = saliency.shape
    mass = np.where(saliency >= _KEPT_OF_OTSU * _otsu(saliency), saliency, 0.0)
    if mass.sum() <= 0:
        return 0, 0, *picture.size
    left, right = _quantiles(mass.sum(axis=0))
    top, bottom = _quantiles(mass.sum(axis=1))
    across, down = picture.width / width, picture.height / height
    return (
        int(left * across),
        int(top * down),
        min(picture.width, max(1, round(right * across))),
        min(picture.height, max(1, round(bottom * down))),
    )


def saliency_map(picture: Image.Image) -> Map:
    """(H, W), 0 to 1: how much each place of an RGB picture stands out.

    The mean of two maps, times a Gaussian around the middle: the spectral residual of the brightness (Hou and Zhang,
    "Saliency Detection: A Spectral Residual Approach", CVPR 2007) and the contrast of each colour to all others of
    the picture by how often they occur (Cheng et al., "Global Contrast based Salient Region Detection", CVPR 2011).
    """
    small, _ = _reduced(picture.convert("RGB"), _SALIENCY_PX)
    pixels = np.asarray(small, dtype=np.float64) / 255
    height, width = pixels.shape[:2]
    if np.ptp(pixels, axis=(0, 1)).max() < 1 / 255:  # rounding errors would stand out
        return np.zeros((height, width))
    both = _normalized(_spectral_residual(pixels.mean(axis=2))) + _normalized(_colour_contrast(pixels))
    y, x = _places(height) / height - 0.5, _places(width) / width - 0.5
    prior = np.exp(-(y[:, None] ** 2 + x[None, :] ** 2) / (2 * _CENTRE_SIGMA**2))
    return _normalized(both * prior)


def entropy_point(picture: Image.Image) -> Point:
    """Where the picture is rich: the centre of gravity of the entropy of its 8x8 blocks, above its mean."""
    grey, _ = _reduced(picture.convert("L"), _SMALL_PX)
    return _centroid(_block_entropy(np.asarray(grey)), picture.size)


def edges_point(picture: Image.Image) -> Point:
    """Where lines are: the centre of gravity of the gradient's length, above its mean."""
    grey, _ = _reduced(picture.convert("L"), _SMALL_PX)
    values = np.asarray(grey, dtype=np.float64)
    across = np.diff(values, axis=1, append=values[:, -1:])
    down = np.diff(values, axis=0, append=values[-1:])
    return _centroid(np.hypot(across, down), picture.size)


def _spectral_residual(grey: Map) -> Map:
    """What is left of the log spectrum without its running mean of 3x3, turned back into a picture and smoothed."""
    spectrum = np.fft.fft2(grey)
    log_amplitude = np.log(np.abs(spectrum) + 1e-9)
    padded = np.pad(log_amplitude, 1, mode="wrap")
    height, width = grey.shape
    mean = sum(padded[y : y + height, x : x + width] for y in range(3) for x in range(3)) / 9
    residual = np.abs(np.fft.ifft2(np.exp(log_amplitude - mean + 1j * np.angle(spectrum)))) ** 2
    return _blurred(_normalized(residual), 2.5)


def _colour_contrast(pixels: Map) -> Map:
    """Distance of each colour, in eight steps a channel, to the picture's other colours, weighted by their number."""
    steps = np.minimum((pixels * 8).astype(np.int64), 7)
    codes = steps[..., 0] * 64 + steps[..., 1] * 8 + steps[..., 2]
    _, where, counts = np.unique(codes, return_inverse=True, return_counts=True)
    sums = [np.bincount(where.ravel(), weights=pixels[..., channel].ravel()) for channel in range(3)]
    colours = np.stack(sums, axis=1) / counts[:, None]
    distances = np.linalg.norm(colours[:, None] - colours[None], axis=2)
    contrast = distances @ (counts / counts.sum())
    return _blurred(_normalized(contrast[where].reshape(len(pixels), -1)), 2.0)


def _block_entropy(grey: NDArray[np.uint8], side: int = 8) -> Map:
    """Bits (0-4) of the grey values of each block, in 16 steps."""
    height, width = max(1, grey.shape[0] // side), max(1, grey.shape[1] // side)
    entropy = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            block = grey[y * side : (y + 1) * side, x * side : (x + 1) * side] // 16
            shares = np.bincount(block.ravel(), minlength=16) / block.size
            entropy[y, x] = -np.sum(shares * np.log2(shares, where=shares > 0, out=np.zeros(16)))
    return entropy


def _places(count: int) -> Map:
    """The middles of that many pixels."""
    return np.arange(count, dtype=np.float64) + 0.5


def _centroid(values: Map, size_px: tuple[int, int]) -> Point:
    """In pixels of a picture of this size; its middle where all values are alike."""
    weights = np.maximum(0.0, values - values.mean())
    total = weights.sum()
    if total <= 1e-9:
        return size_px[0] / 2, size_px[1] / 2
    height, width = values.shape
    x = float(weights.sum(axis=0) @ _places(width) / total)
    y = float(weights.sum(axis=1) @ _places(height) / total)
    return x * size_px[0] / width, y * size_px[1] / height


def _otsu(values: Map) -> float:
    """The threshold that parts low and high values best (Otsu 1979), for values 0 to 1."""
    counts, borders = np.histogram(values, bins=64, range=(0.0, 1.0))
    centres = (borders[:-1] + borders[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    sum_below = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = below * above * (sum_below / below - (sum_below[-1] - sum_below) / above) ** 2
    return float(borders[int(np.argmax(np.nan_to_num(apart))) + 1])


def _quantiles(mass: Map, cut: float = 0.03) -> tuple[int, int]:
    """First and behind-last place between which all but `cut` of the mass lies on either side."""
    running = np.cumsum(mass) / mass.sum()
    return int(np.searchsorted(running, cut)), int(np.searchsorted(running, 1 - cut)) + 1


def _normalized(values: Map) -> Map:
    low, high = float(values.min()), float(values.max())
    return (values - low) / (high - low) if high - low > 1e-9 else np.zeros_like(values)


def _blurred(values: Map, radius_px: float) -> Map:
    """Values 0 to 1, by Pillow's Gaussian."""
    image = Image.fromarray(np.rint(values * 255).clip(0, 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(radius_px)), dtype=np.float64) / 255


def _reduced(picture: Image.Image, longest_px: int) -> tuple[Image.Image, float]:
    """A copy that is no longer than that, and by how much the picture is larger."""
    scale = max(1.0, max(picture.size) / longest_px)
    size = (max(1, round(picture.width / scale)), max(1, round(picture.height / scale)))
    return picture.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0), scale


def _scaled(box: Box, scale: float, size_px: tuple[int, int]) -> Box:
    left, top, right, bottom = (round(value * scale) for value in box)
    return max(0, left), max(0, top), min(size_px[0], right), min(size_px[1], bottom)


def _middle_of(boxes: list[Box]) -> Point:
    """Of all boxes, a large one counting more."""
    total = sum(map(_area_px, boxes))
    x = sum(_area_px(box) * (box[0] + box[2]) / 2 for box in boxes) / total
    y = sum(_area_px(box) * (box[1] + box[3]) / 2 for box in boxes) / total
    return x, y


def _area_px(box: Box) -> int:
    return max(1, box[2] - box[0]) * max(1, box[3] - box[1])


def _cascade() -> Any:
    """This thread's classifier, or None. Read as text: OpenCV opens no path in another script on Windows."""
    if not hasattr(_of_thread, "cascade"):
        _of_thread.cascade = _load_cascade()
    return _of_thread.cascade


def _load_cascade() -> Any:
    try:
        import cv2

        opencv: Any = cv2  # its own types differ from version to version
        text = Path(opencv.data.haarcascades, _CASCADE).read_text(encoding="utf-8")
        storage = opencv.FileStorage(text, opencv.FILE_STORAGE_READ | opencv.FILE_STORAGE_MEMORY)
        cascade = opencv.CascadeClassifier()
        return cascade if cascade.read(storage.getFirstTopLevelNode()) else None
    except Exception:  # a host's OpenCV may be built for another numpy, or have no cascades: then there are no faces
        return None
