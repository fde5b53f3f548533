"""Aspect-ratio buckets: the sizes pictures are cut to, so that a batch has one shape.

Sizes are (width_px, height_px). Aspect ratio = width / height. Pure arithmetic.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import TypedDict

from lora_train.core.errors import DatasetError

Size = tuple[int, int]
"""(width_px, height_px)"""


class BucketCount(TypedDict):
    """One bucket that is in use."""

    resolution: list[int]
    count: int


class BucketInfo(TypedDict):
    """The content of kohya's `ss_bucket_info`."""

    buckets: dict[str, BucketCount]
    mean_img_ar_error: float


def make_buckets(base_px: int, step_px: int, min_px: int, max_px: int) -> tuple[Size, ...]:
    """All buckets of about base_px x base_px pixels, sorted.

    kohya's scheme: for every width from min_px to max_px that is a multiple of step_px, the
    largest height that is one too and keeps the area <= base_px² (at most max_px, at least
    min_px); the same upright; and always the square.

    Raises DatasetError if not even one step fits.
    """
    square_px = base_px // step_px * step_px
    if square_px == 0:
        raise DatasetError(
            f"The resolution {base_px} is smaller than one bucket step of {step_px} pixels; choose at least {step_px}."
        )
    sizes = {(square_px, square_px)}
    smallest_px = -(-min_px // step_px) * step_px
    largest_px = max_px // step_px * step_px
    for width_px in range(smallest_px, largest_px + 1, step_px):
        height_px = min(largest_px, base_px * base_px // width_px // step_px * step_px)
        if height_px >= smallest_px:
            sizes |= {(width_px, height_px), (height_px, width_px)}
    return tuple(sorted(sizes))


def choose_bucket(
    width_px: int,
    height_px: int,
    buckets: Sequence[Size],
    *,
    step_px: int,
    upscale_limit: float,
) -> Size:
    """The bucket whose aspect ratio is nearest to the picture's.

    Near means a small quotient of the two ratios (their distance in log space), so that upright
    and wide pictures are treated alike. Among equally near ones the larger area wins, then the
    wider.

    A picture is never enlarged more than `upscale_limit` times: where covering the bucket would
    need more, both sides of the bucket shrink until it doesn't, and are rounded down to
    multiples of step_px. A side is never less than one step, and only a picture too small for
    that is enlarged further.
    """

    def preference(bucket: Size) -> tuple[Fraction, int, int]:
        return _ratio_quotient((width_px, height_px), bucket), -bucket[0] * bucket[1], -bucket[0]

    bucket_width_px, bucket_height_px = min(buckets, key=preference)
    enlargement = max(Fraction(bucket_width_px, width_px), Fraction(bucket_height_px, height_px))
    # Through text, because the float 1.1 is a little more than what was meant.
    shrink = min(Fraction(1), Fraction(str(upscale_limit)) / enlargement)
    return (
        max(1, int(bucket_width_px * shrink) // step_px) * step_px,
        max(1, int(bucket_height_px * shrink) // step_px) * step_px,
    )


def bucket_info(placed: Iterable[tuple[Size, Size, int]]) -> BucketInfo:
    """What kohya writes as `ss_bucket_info`, from (picture size, bucket, repeats) of each picture.

    The buckets in use are numbered in sorted order and counted with repeats. The error is the
    mean over pictures (without repeats) of |aspect ratio of the picture - that of its bucket|;
    0 for no pictures.
    """
    counts: Counter[Size] = Counter()
    errors: list[float] = []
    for (width_px, height_px), bucket, repeats in placed:
        counts[bucket] += repeats
        errors.append(abs(width_px / height_px - bucket[0] / bucket[1]))
    return {
        "buckets": {
            str(number): {"resolution": list(bucket), "count": counts[bucket]}
            for number, bucket in enumerate(sorted(counts))
        },
        "mean_img_ar_error": sum(errors) / len(errors) if errors else 0.0,
    }


def _ratio_quotient(one: Size, other: Size) -> Fraction:
    """The larger aspect ratio divided by the smaller one: 1 or more, exact."""
    first, second = one[0] * other[1], one[1] * other[0]
    return Fraction(max(first, second), min(first, second))
