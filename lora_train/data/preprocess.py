"""What *Update Dataset* does to one picture: which parts are cut out of it, and to which sizes they are brought.

Legend: sizes are (width_px, height_px); boxes are (left, top, right, bottom) in the upright original, fractions of
pixels included; the shape of a size is width / height.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

from PIL import Image, ImageDraw, ImageOps

from lora_train.core.dataset_settings import DatasetSettings
from lora_train.data.subjects import Attraction, Box, Point, attractions, focus_of

Size = tuple[int, int]
ExactBox = tuple[float, float, float, float]
Kind = Literal["as it is", "plain", "tile", "focal", "auto-sized"]

MOST_TILES = 500
"""Of one picture: a strip of 1x30000 pixels would become 37500."""

_SIZE_STEP_PX = 64
"""Between the candidates of *Auto-sized crop*."""

_SHARPER = 2.0
"""How many times larger than needed a picture is decoded at least: the last reduction is then a good one."""

_DEBUG_PX = 1024
"""Longer side of a debug picture."""

_COLOURS = {"face": "magenta", "subject": "magenta", "entropy": "cyan", "edges": "yellow"}


class Cut(NamedTuple):
    """A part of the original, and the size it is brought to."""

    box: ExactBox
    size_px: Size
    kind: Kind


class Plan(NamedTuple):
    """What is cut out of a picture of this size, and what was found in it."""

    origin_px: Size
    cuts: list[Cut]
    found: list[Attraction]
    """Points and boxes in pixels of the original; empty where the focal point plays no part."""


class Piece(NamedTuple):
    """A trained picture, and the part of the original that it shows."""

    picture: Image.Image
    box_px: Box
    kind: Kind


def planned_cuts(origin_px: Size, settings: DatasetSettings, focus: Point | None = None) -> list[Cut]:
    """The cuts of a picture of this size, at least one. `focus` moves the focal one, and changes nothing else.

    Each option of the settings that fits the picture replaces the plain cut; several may.
    """
    if settings.as_is:
        return [Cut((0, 0, *origin_px), origin_px, "as it is")]
    target_px = settings.width_px, settings.height_px
    middle = origin_px[0] / 2, origin_px[1] / 2
    cuts = [Cut(box, target_px, "tile") for box in tile_boxes(origin_px, settings)]
    if settings.focal_crop and kept_share(origin_px, target_px) < 1:
        cuts.append(Cut(largest_box(origin_px, target_px, focus or middle), target_px, "focal"))
    if (size_px := auto_size(origin_px, settings)) is not None:
        cuts.append(Cut(largest_box(origin_px, size_px, middle), size_px, "auto-sized"))
    return cuts or [Cut(largest_box(origin_px, target_px, middle), target_px, "plain")]


def plan(picture: Image.Image, settings: DatasetSettings, origin_px: Size | None = None) -> Plan:
    """The cuts of an upright RGB picture, which may be a reduced copy of an original of `origin_px`."""
    origin_px = origin_px or picture.size
    cuts = planned_cuts(origin_px, settings)
    if all(cut.kind != "focal" for cut in cuts):
        return Plan(origin_px, cuts, [])
    weights = settings.focal_face_weight, settings.focal_entropy_weight, settings.focal_edges_weight
    found = [_enlarged(its, picture.size, origin_px) for its in attractions(picture, *weights)]
    return Plan(origin_px, planned_cuts(origin_px, settings, focus_of(found, origin_px)), found)


def pieces(picture: Image.Image, its_plan: Plan) -> Iterator[Piece]:
    """Cut out what was planned for the picture, one after the other: all at once may be gigabytes."""
    for cut in its_plan.cuts:
        part = _cut_out(picture, cut, its_plan.origin_px, Image.Resampling.LANCZOS)
        yield Piece(part, whole_pixels(cut.box, its_plan.origin_px), cut.kind)


def mask_pieces(mask: Image.Image, its_plan: Plan) -> Iterator[Image.Image]:
    """The same parts of the picture's mask. They are resized without the overshoot of Lanczos."""
    for cut in its_plan.cuts:
        yield _cut_out(mask, cut, its_plan.origin_px, Image.Resampling.BILINEAR)


def _cut_out(picture: Image.Image, cut: Cut, origin_px: Size, resampling: Image.Resampling) -> Image.Image:
    if cut.kind == "as it is":
        return picture
    across, down = picture.width / origin_px[0], picture.height / origin_px[1]
    left, top, right, bottom = cut.box
    box = left * across, top * down, min(picture.width, right * across), min(picture.height, bottom * down)
    return picture.resize(cut.size_px, resampling, box=box)


def least_px(origin_px: Size, cuts: list[Cut]) -> Size:
    """The size from which on a reduced copy of the original gives the same pieces for the eye."""
    scale = max(cut.size_px[0] / (cut.box[2] - cut.box[0]) for cut in cuts) * _SHARPER
    return math.ceil(origin_px[0] * scale), math.ceil(origin_px[1] * scale)


def why_not(origin_px: Size, settings: DatasetSettings) -> list[str]:
    """A sentence for each option that was asked for and can't be had for a picture of this size.

    The picture's name is to stand before it.
    """
    reasons: list[str] = []
    if settings.as_is:
        return reasons
    if (count := _tile_count(origin_px, settings)) > MOST_TILES:
        reasons.append(f"is not split: it would become {count} pictures, and the limit is {MOST_TILES}.")
    if settings.multicrop and auto_size(origin_px, settings) is None:
        nearest_px = max(candidate_sizes(settings), key=lambda size_px: kept_share(origin_px, size_px))
        error = 1 - kept_share(origin_px, nearest_px)
        reasons.append(
            f"({origin_px[0]}x{origin_px[1]}) gets no size of its own: the nearest one within the bounds, "
            f"{nearest_px[0]}x{nearest_px[1]}, is off by {error:.2f}, and the limit is "
            f"{settings.multicrop_threshold:.2f}."
        )
    return reasons


def kept_share(size_px: Size, target_px: Size) -> float:
    """Share of the picture that is left when it is cut to the target's shape, 0 to 1; 1 for the same shape."""
    one, other = size_px[0] * target_px[1], size_px[1] * target_px[0]
    return min(one, other) / max(one, other)


def largest_box(size_px: Size, shape_px: Size, centre: Point) -> ExactBox:
    """The largest box of this shape within a picture, as near to the centre as its borders allow."""
    scale = min(size_px[0] / shape_px[0], size_px[1] / shape_px[1])
    width, height = min(size_px[0], shape_px[0] * scale), min(size_px[1], shape_px[1] * scale)
    left = min(max(centre[0] - width / 2, 0.0), size_px[0] - width)
    top = min(max(centre[1] - height / 2, 0.0), size_px[1] - height)
    return left, top, left + width, top + height


def tile_boxes(size_px: Size, settings: DatasetSettings) -> list[ExactBox]:
    """The parts of a long picture, from its left or top on, evenly spaced and both ends covered.

    None where a cut to the target's shape keeps more than the threshold, or where there would be too many.
    """
    count = _tile_count(size_px, settings)
    if not 2 <= count <= MOST_TILES:
        return []
    width, height = size_px
    if width * settings.height_px > height * settings.width_px:
        side = settings.width_px * height / settings.height_px
        starts = [number * (width - side) / (count - 1) for number in range(count)]
        return [(start, 0.0, min(start + side, width), float(height)) for start in starts]
    side = settings.height_px * width / settings.width_px
    starts = [number * (height - side) / (count - 1) for number in range(count)]
    return [(0.0, start, float(width), min(start + side, height)) for start in starts]


def auto_size(size_px: Size, settings: DatasetSettings) -> Size | None:
    """The candidate that suits a picture best by the objective; None where the option is off or none is near enough.

    The error of a candidate is 1 - `kept_share`: the part that the cut takes away.
    """
    if not settings.multicrop:
        return None
    errors = {other: 1 - kept_share(size_px, other) for other in candidate_sizes(settings)}
    near = [other for other, error in errors.items() if error <= settings.multicrop_threshold]
    if settings.multicrop_objective == "Maximize area":
        return max(near, key=lambda other: (other[0] * other[1], -errors[other]), default=None)
    return min(near, key=lambda other: (errors[other], -other[0] * other[1]), default=None)


def candidate_sizes(settings: DatasetSettings) -> list[Size]:
    """The sizes within the bounds of *Auto-sized crop*, in steps of 64 pixels from the lower one on."""
    sides = range(settings.multicrop_min_side_px, settings.multicrop_max_side_px + 1, _SIZE_STEP_PX)
    return [
        (width, height)
        for width in sides
        for height in sides
        if settings.multicrop_min_area_px <= width * height <= settings.multicrop_max_area_px
    ]


def whole_pixels(box: ExactBox, size_px: Size) -> Box:
    """The box in whole pixels of a picture of this size: never empty, never outside."""
    left, top = (min(int(box[side] + 0.5), size_px[side] - 1) for side in (0, 1))
    right, bottom = (min(max(int(box[side + 2] + 0.5), (left, top)[side] + 1), size_px[side]) for side in (0, 1))
    return left, top, right, bottom


def debug_picture(picture: Image.Image, its_plan: Plan) -> Image.Image:
    """A copy with what was found (faces or subject magenta, entropy cyan, edges yellow) and the focal cut (green)."""
    drawn = picture.copy()
    drawn.thumbnail((_DEBUG_PX, _DEBUG_PX))
    draw = ImageDraw.Draw(drawn)
    scale = drawn.width / its_plan.origin_px[0]
    for its in its_plan.found:
        for box in its.boxes:
            _draw_box(draw, box, scale, _COLOURS[its.kind])
        x, y = (value * scale for value in its.point)
        radius = 4 + 10 * its.weight
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=_COLOURS[its.kind], width=3)
    for cut in its_plan.cuts:
        if cut.kind == "focal":
            _draw_box(draw, cut.box, scale, "lime")
    return drawn


def flipped(picture: Image.Image) -> Image.Image:
    """Left and right changed."""
    return ImageOps.mirror(picture)


def _tile_count(size_px: Size, settings: DatasetSettings) -> int:
    """ceil((L - l * overlap) / (l * (1 - overlap))) for the long side L, when the short one has the target's length,
    and the target's side l: neighbours then have at least that share in common. 0 where nothing is split.
    """
    target_px = settings.width_px, settings.height_px
    kept = kept_share(size_px, target_px)
    if not settings.split or kept > settings.split_threshold or kept == 1:
        return 0
    is_wide = size_px[0] * target_px[1] > size_px[1] * target_px[0]
    side_px, other_px = target_px if is_wide else target_px[::-1]
    long_px, short_px = size_px if is_wide else size_px[::-1]
    scaled_px = round(long_px * other_px / short_px)
    overlap = settings.split_overlap
    # Without the small term, rounding makes a part too many of an exact multiple.
    return math.ceil((scaled_px - side_px * overlap) / (side_px * (1 - overlap)) - 1e-9)


def _enlarged(its: Attraction, size_px: Size, origin_px: Size) -> Attraction:
    """What was found in a copy of `size_px`, in pixels of the original."""
    across, down = origin_px[0] / size_px[0], origin_px[1] / size_px[1]
    boxes = [
        whole_pixels((left * across, top * down, right * across, bottom * down), origin_px)
        for left, top, right, bottom in its.boxes
    ]
    return its._replace(point=(its.point[0] * across, its.point[1] * down), boxes=boxes)


def _draw_box(draw: ImageDraw.ImageDraw, box: ExactBox, scale: float, colour: str) -> None:
    left, top, right, bottom = (value * scale for value in box)
    draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=colour, width=3)
