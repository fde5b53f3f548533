"""How *Update Dataset* makes the trained pictures: one more part of the schema (see `core.config`).

Labels, ranges and defaults are those that the tutorial's reader knows, except that flipped copies are off and captions
that come along are kept.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

CaptionAction = Literal["ignore", "copy", "prepend", "append"]
SizeObjective = Literal["Maximize area", "Minimize error"]


class DatasetSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Lengths are pixels, areas square pixels, weights and thresholds shares from 0 to 1."""

    width_px: Annotated[
        int, Meta(title="Width", description="Pixels of the trained pictures; a multiple of 8.", ge=64, le=2048)
    ] = 512
    height_px: Annotated[
        int, Meta(title="Height", description="Pixels of the trained pictures; a multiple of 8.", ge=64, le=2048)
    ] = 512
    as_is: Annotated[
        bool,
        Meta(
            title="Keep pictures as they are",
            description="Crops nothing: pictures of all shapes are trained in sizes that fit them.",
        ),
    ] = False
    flip: Annotated[
        bool,
        Meta(
            title="Create flipped copies",
            description="Doubles the pictures; not for things whose sides differ, or writing.",
        ),
    ] = False
    caption_action: Annotated[
        CaptionAction,
        Meta(
            title="Existing Caption txt Action",
            description="What becomes of caption files that come with the pictures.",
        ),
    ] = "copy"
    split: Annotated[
        bool,
        Meta(
            title="Split oversized images",
            description="Long pictures become several that overlap, instead of losing their ends.",
        ),
    ] = False
    split_threshold: Annotated[
        float,
        Meta(
            title="Split image threshold",
            description="Split where a crop would keep at most this share of the picture.",
            ge=0,
            le=1,
        ),
    ] = 0.5
    split_overlap: Annotated[
        float,
        Meta(
            title="Split image overlap ratio",
            description="Share that neighbouring parts have in common, at least.",
            ge=0,
            le=0.9,
        ),
    ] = 0.2
    focal_crop: Annotated[
        bool,
        Meta(
            title="Auto focal point crop",
            description="Crops around what matters (faces, detail, edges) instead of the middle.",
        ),
    ] = False
    focal_face_weight: Annotated[
        float,
        Meta(title="Focal point face weight", description="How much faces attract the crop.", ge=0, le=1),
    ] = 0.9
    focal_entropy_weight: Annotated[
        float,
        Meta(title="Focal point entropy weight", description="How much rich areas attract the crop.", ge=0, le=1),
    ] = 0.15
    focal_edges_weight: Annotated[
        float,
        Meta(title="Focal point edges weight", description="How much edges attract the crop.", ge=0, le=1),
    ] = 0.5
    focal_debug: Annotated[
        bool,
        Meta(
            title="Create debug image",
            description="Also draws what was found and the crop, into the dataset's debug folder.",
        ),
    ] = False
    multicrop: Annotated[
        bool,
        Meta(
            title="Auto-sized crop",
            description="Each picture is cut around its middle to the size within these bounds that suits it best.",
        ),
    ] = False
    multicrop_min_side_px: Annotated[
        int, Meta(title="Dimension lower bound", description="Pixels of the shorter side.", ge=64, le=2048)
    ] = 384
    multicrop_max_side_px: Annotated[
        int, Meta(title="Dimension upper bound", description="Pixels of the longer side.", ge=64, le=2048)
    ] = 768
    multicrop_min_area_px: Annotated[
        int, Meta(title="Area lower bound", description="Width × height in pixels.", ge=64 * 64, le=2048 * 2048)
    ] = 4096
    multicrop_max_area_px: Annotated[
        int, Meta(title="Area upper bound", description="Width × height in pixels.", ge=64 * 64, le=2048 * 2048)
    ] = 409_600
    multicrop_objective: Annotated[
        SizeObjective,
        Meta(title="Resizing objective", description="The largest size that is near enough, or the nearest one."),
    ] = "Maximize area"
    multicrop_threshold: Annotated[
        float,
        Meta(
            title="Error threshold",
            description="How far the shape of a size may be from the picture's; 0.1 is a tenth.",
            ge=0,
            le=1,
        ),
    ] = 0.1
