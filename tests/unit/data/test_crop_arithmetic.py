"""The arithmetic of cutting holds for pictures of every size and settings within their ranges."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from lora_train.core.dataset_settings import DatasetSettings
from lora_train.data.preprocess import (
    MOST_TILES,
    auto_size,
    candidate_sizes,
    kept_share,
    largest_box,
    planned_cuts,
    tile_boxes,
    whole_pixels,
)

hypothesis = pytest.importorskip("hypothesis", reason="a WebUI's own packages have no hypothesis")
st = pytest.importorskip("hypothesis.strategies")
given = hypothesis.given

sides = st.integers(1, 20_000)
sizes = st.tuples(sides, sides)
targets = st.tuples(st.integers(64, 2048), st.integers(64, 2048))
shares = st.floats(0, 1)


def settings_of(target_px: tuple[int, int], **values: object) -> DatasetSettings:
    return DatasetSettings(width_px=target_px[0], height_px=target_px[1], **values)  # type: ignore[arg-type]


@given(sizes, targets, st.tuples(st.floats(-1e4, 1e5), st.floats(-1e4, 1e5)))
def test_the_largest_box(size_px: tuple[int, int], shape_px: tuple[int, int], centre: tuple[float, float]) -> None:
    """Inside, of the shape, touching two opposite borders, and around the centre as far as the borders allow."""
    left, top, right, bottom = largest_box(size_px, shape_px, centre)
    assert 0 <= left < right <= size_px[0] + 1e-6
    assert 0 <= top < bottom <= size_px[1] + 1e-6
    assert math.isclose((right - left) / (bottom - top), shape_px[0] / shape_px[1], rel_tol=1e-6)
    assert math.isclose(right - left, size_px[0]) or math.isclose(bottom - top, size_px[1])
    for low, high, at, side in ((left, right, centre[0], size_px[0]), (top, bottom, centre[1], size_px[1])):
        wanted = min(max(at, (high - low) / 2), side - (high - low) / 2)
        assert math.isclose((low + high) / 2, wanted, abs_tol=1e-3)


@given(sizes, targets, shares, st.floats(0, 0.9))
def test_tiles(size_px: tuple[int, int], target_px: tuple[int, int], threshold: float, overlap: float) -> None:
    """Of the target's shape, both ends covered, evenly spaced, as many as the overlap asks for."""
    settings = settings_of(target_px, split=True, split_threshold=threshold, split_overlap=overlap)
    boxes = tile_boxes(size_px, settings)
    kept = kept_share(size_px, target_px)
    if kept > threshold or kept == 1:
        assert boxes == []
    if not boxes:
        return
    assert 2 <= len(boxes) <= MOST_TILES
    along = 0 if size_px[0] * target_px[1] > size_px[1] * target_px[0] else 1
    for box in boxes:
        assert (box[1 - along], box[3 - along]) == (0, size_px[1 - along])
        shape = (box[2] - box[0]) / (box[3] - box[1])
        assert math.isclose(shape, target_px[0] / target_px[1], rel_tol=1e-6)
    assert boxes[0][along] == 0
    assert math.isclose(boxes[-1][along + 2], size_px[along])
    length = boxes[0][along + 2] - boxes[0][along]
    steps = [after[along] - before[along] for before, after in pairwise(boxes)]
    assert max(steps) - min(steps) < 1e-6 * size_px[along]
    rounding_px = size_px[1 - along] / target_px[1 - along] + 1e-6  # a pixel of the scaled picture
    assert steps[0] <= length * (1 - overlap) + rounding_px
    if len(boxes) > 2:  # one tile less would leave too little overlap
        assert (size_px[along] - length) / (len(boxes) - 2) >= length * (1 - overlap) - rounding_px


@given(
    sizes,
    st.tuples(st.integers(64, 2048), st.integers(64, 2048)),
    st.tuples(st.integers(64 * 64, 2048**2), st.integers(64 * 64, 2048**2)),
    shares,
    st.sampled_from(["Maximize area", "Minimize error"]),
)
def test_auto_sizes(
    size_px: tuple[int, int], bounds_px: tuple[int, int], areas_px: tuple[int, int], threshold: float, objective: str
) -> None:
    """Within all bounds, near enough, and no other candidate is better."""
    settings = DatasetSettings(
        multicrop=True,
        multicrop_min_side_px=bounds_px[0],
        multicrop_max_side_px=bounds_px[1],
        multicrop_min_area_px=areas_px[0],
        multicrop_max_area_px=areas_px[1],
        multicrop_threshold=threshold,
        multicrop_objective=objective,  # type: ignore[arg-type]
    )
    candidates = candidate_sizes(settings)
    for width, height in candidates:
        assert bounds_px[0] <= min(width, height)
        assert max(width, height) <= bounds_px[1]
        assert areas_px[0] <= width * height <= areas_px[1]
        assert (width - bounds_px[0]) % 64 == (height - bounds_px[0]) % 64 == 0
    near = [other for other in candidates if 1 - kept_share(size_px, other) <= threshold]
    chosen = auto_size(size_px, settings)
    assert (chosen is None) == (not near)
    if chosen is None:
        return
    assert chosen in near
    if objective == "Maximize area":
        assert chosen[0] * chosen[1] == max(width * height for width, height in near)
    else:
        assert kept_share(size_px, chosen) == max(kept_share(size_px, other) for other in near)


@given(
    sizes,
    targets,
    st.fixed_dictionaries({name: st.booleans() for name in ("as_is", "split", "focal_crop", "multicrop")}),
    st.none() | st.tuples(st.floats(0, 20_000), st.floats(0, 20_000)),
)
def test_every_cut(
    size_px: tuple[int, int], target_px: tuple[int, int], on: dict[str, bool], focus: tuple[float, float] | None
) -> None:
    """At least one, inside, of the shape it is resized to; where the focus is does not change how many there are."""
    settings = settings_of(target_px, **on)
    cuts = planned_cuts(size_px, settings, focus)
    assert [(cut.size_px, cut.kind) for cut in cuts] == [
        (cut.size_px, cut.kind) for cut in planned_cuts(size_px, settings)
    ]
    assert cuts
    kinds = {cut.kind for cut in cuts}
    if on["as_is"]:
        assert [(cut.box, cut.size_px) for cut in cuts] == [((0, 0, *size_px), size_px)]
        return
    assert ("plain" in kinds) == (len(cuts) == 1 and not kinds & {"tile", "focal", "auto-sized"})
    assert on["focal_crop"] or "focal" not in kinds
    for cut in cuts:
        left, top, right, bottom = whole_pixels(cut.box, size_px)
        assert 0 <= left < right <= size_px[0]
        assert 0 <= top < bottom <= size_px[1]
        assert cut.kind == "auto-sized" or cut.size_px == target_px
        shape = (cut.box[2] - cut.box[0]) / (cut.box[3] - cut.box[1])
        assert math.isclose(shape, cut.size_px[0] / cut.size_px[1], rel_tol=1e-6)
