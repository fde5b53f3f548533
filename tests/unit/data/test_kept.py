"""Which part of an original is trained: what is lost, and by whom."""

from __future__ import annotations

import pytest

pytest.importorskip("hypothesis")

from hypothesis import given
from hypothesis import strategies as st

from lora_train.data.buckets import Size
from lora_train.data.images import fit
from lora_train.data.kept import kept_in_bucket, kept_of
from lora_train.data.manifest import Made

sides = st.integers(1, 4000)
sizes = st.tuples(sides, sides)
buckets = st.tuples(st.integers(1, 32), st.integers(1, 32)).map(lambda steps: (steps[0] * 64, steps[1] * 64))


def made(origin_px: Size, box_px: tuple[int, int, int, int], is_flipped: bool = False) -> Made:
    return Made("a.jpg", "", is_flipped, origin_px=origin_px, box_px=box_px)


def test_a_crop_by_hand() -> None:
    """1024 x 768, its middle square made 512 x 512: a quarter is lost, and 768 px became 512."""
    kept = kept_of((512, 512), (512, 512), made((1024, 768), (128, 0, 896, 768)))
    assert kept.outline_px == (1024, 768)
    assert kept.rectangle_px == (128, 0, 896, 768)
    assert (kept.lost_by_update, kept.lost_by_bucket, kept.lost_share) == (0.25, 0, 0.25)
    assert kept.enlargement == pytest.approx(512 / 768)


def test_the_bucket_takes_more() -> None:
    """Stored as 800 x 400 and trained at 512 x 512: the middle 400 x 400 of it, a quarter of 1600 x 800 is left."""
    kept = kept_of((800, 400), (512, 512), made((1600, 1600), (0, 0, 1600, 800)))
    assert kept.rectangle_px == (400, 0, 1200, 800)
    assert (kept.lost_by_update, kept.lost_by_bucket, kept.lost_share) == (0.5, 0.5, 0.75)
    assert kept.enlargement == pytest.approx(512 / 800)


def test_a_small_original_is_enlarged_twice() -> None:
    """300 px became 512, which are trained at 1024."""
    kept = kept_of((512, 512), (1024, 1024), made((300, 300), (0, 0, 300, 300)))
    assert kept.enlargement == pytest.approx(1024 / 300)


@pytest.mark.parametrize("unknown", [None, Made("a.jpg", ""), made((10, 10), (5, 5, 5, 5)), made((0, 9), (0, 0, 1, 1))])
def test_where_the_original_is_not_known(unknown: Made | None) -> None:
    """As for pictures that are kept as they are, and sets of earlier releases."""
    kept = kept_of((300, 200), (256, 256), unknown)
    assert kept.outline_px == (300, 200)
    assert kept.rectangle_px == (50, 0, 250, 200)
    assert (kept.lost_by_update, kept.lost_by_bucket) == (0, pytest.approx(1 / 3))
    assert kept.enlargement == pytest.approx(1.28)


@given(sizes, buckets)
def test_a_bucket_keeps_the_middle_in_its_own_shape(size: Size, bucket: Size) -> None:
    left, top, right, bottom = kept_in_bucket(size, bucket)
    tolerance = 1e-6 * max(size)
    assert left == pytest.approx(size[0] - right, abs=tolerance)
    assert top == pytest.approx(size[1] - bottom, abs=tolerance)
    assert -tolerance <= left < right
    assert -tolerance <= top < bottom
    assert min(left, top) == pytest.approx(0, abs=tolerance)  # one side is kept whole
    assert (right - left) * bucket[1] == pytest.approx((bottom - top) * bucket[0])


@given(sizes, buckets, st.data())
def test_losses_add_up(size: Size, bucket: Size, data: st.DataObject) -> None:
    """What is kept is what both keep, one after the other; nothing lies outside of the original."""
    left, top = data.draw(st.integers(0, 500)), data.draw(st.integers(0, 500))
    right, bottom = left + data.draw(sides), top + data.draw(sides)
    outline = (right + data.draw(st.integers(0, 500)), bottom + data.draw(st.integers(0, 500)))
    box = (left, top, right, bottom)
    kept = kept_of(size, bucket, made(outline, box))
    assert 1 - kept.lost_share == pytest.approx((1 - kept.lost_by_update) * (1 - kept.lost_by_bucket), abs=1e-9)
    assert all(0 <= share <= 1 for share in (kept.lost_by_update, kept.lost_by_bucket, kept.lost_share))
    inner = kept.rectangle_px
    tolerance = 1e-6 * max(outline)
    assert left - tolerance <= inner[0] <= inner[2] <= right + tolerance
    assert top - tolerance <= inner[1] <= inner[3] <= bottom + tolerance
    assert kept_of(size, bucket, made(outline, box, is_flipped=True)) == kept


@pytest.mark.parametrize(("size", "bucket"), [((300, 200), (256, 256)), ((97, 401), (64, 128)), ((64, 64), (128, 64))])
def test_it_is_what_training_cuts(size: Size, bucket: Size) -> None:
    """Where `fit` cuts, back in the picture's pixels; it rounds to whole ones."""
    how = fit(size, bucket)
    left, top, right, bottom = kept_in_bucket(size, bucket)
    scale = bucket[0] / (right - left)
    assert how.crop_left_top == (pytest.approx(left * scale, abs=1), pytest.approx(top * scale, abs=1))
    assert bucket[1] == pytest.approx((bottom - top) * scale)
