"""What the health check of a dataset tells: measured numbers, and findings in fixed sentences.

Titles and remedies are fixed texts, which languages translate; everything measured stands beside them.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from lora_train.core.jobs import JobStatus

Level = Literal["error", "warning", "info"]
Unit = Literal["", "×", "%", ":1", "tokens", "bits", "sharpness"]


class Shown(msgspec.Struct, frozen=True):
    """A picture of a finding, with what was measured of it in the finding's unit, and what its crop loses (0-1)."""

    file: str
    number: float | None = None
    lost_share: float | None = None


class Group(msgspec.Struct, frozen=True):
    """Pictures that belong together, and the largest number that links two neighbours of them."""

    files: tuple[str, ...]
    number: int = 0


class Counted(msgspec.Struct, frozen=True):
    """A tag or a size, and how many pictures have it."""

    name: str
    count: int


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was found. `number`, `limit` and the pictures' numbers are all in `unit`."""

    kind: str
    """What it is about, for other programs; the page does not show it."""
    level: Level
    title: str
    remedy: str = ""
    number: float | None = None
    limit: float | None = None
    unit: Unit = ""
    pictures: tuple[Shown, ...] = ()
    groups: tuple[Group, ...] = ()
    counts: tuple[Counted, ...] = ()
    sentences: tuple[str, ...] = ()
    """As told by whoever noticed."""


class PictureHealth(msgspec.Struct, frozen=True, kw_only=True):
    """A picture of the trained set: what it is, and which part of its original is trained."""

    file: str
    width_px: int
    height_px: int
    caption: str
    is_regularisation: bool
    stamp: str
    """Changes with the file, for the address of its thumbnail."""
    bucket_px: tuple[int, int]
    """Width and height that it is trained at."""
    outline_px: tuple[int, int]
    """Width and height of the upright original; of the picture itself where the original is not known."""
    kept_px: tuple[float, float, float, float]
    """Left, top, right, bottom of the trained part, within the outline."""
    lost_by_update: float
    """Share of the original's area that *Update Dataset* cut off, 0-1."""
    lost_by_bucket: float
    """Share of the stored picture's area that the bucket cuts off, 0-1."""
    lost_share: float
    """Share of the original's area that is not trained, 0-1."""
    enlargement: float
    """How many times longer a length is in training than it was in the original."""


class BucketUse(msgspec.Struct, frozen=True):
    """A size that pictures are trained at."""

    width_px: int
    height_px: int
    pictures: int
    """Regularisation pictures included: they share its batches."""


class HealthReport(msgspec.Struct):
    """All that is known of a dataset's health."""

    pictures: list[PictureHealth] = []
    buckets: list[BucketUse] = []
    findings: list[Finding] = []
    """Errors first, then warnings, then what is good to know."""
    missing_facts: int = 0
    """Pictures that were not looked at yet: sharpness and likeness are not known of them."""
    check: JobStatus | None = None
    """The job that looks at them, running or not."""
