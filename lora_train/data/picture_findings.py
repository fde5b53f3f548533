"""What the health check finds at pictures: too small, blurred, alike, cut a lot. Thresholds are here, with reasons."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from lora_train.core.health import Finding, Group, Shown
from lora_train.data.dataset import Picture
from lora_train.data.duplicates import NEAR_BITS, Look, Pair, linked, near_pairs, same
from lora_train.data.facts import PictureFacts
from lora_train.data.kept import Kept
from lora_train.data.manifest import Made

MOST_ENLARGEMENT = 1.5
"""From here on detail is visibly made up: a 512 px picture needs 341 px of the original."""

BLURRED_BELOW = 30.0
"""Sharpness (see `facts.PictureFacts`). Of 22 pictures of scikit-image the 17 that are in focus have 65-5300; blurred
with a sigma of 2 px they have 2-24. The other 5 (a blurred clock, a colour chart, cells, a blurred text, an aged page)
are smooth anyway."""
BLURRED_BESIDE_OTHERS = 0.1
"""A picture with less than this share of the set's median is soft beside the others ..."""
SHARP_ABOVE = 100.0
"""... unless it has this much, which a blurred one hardly has: a smooth subject among grass and gravel is no blur."""
LEAST_FOR_A_MEDIAN = 3

WIDEST_RATIO = 2.0
"""Longer to shorter side. A square crop of more than 2:1 loses over half of the picture."""


class Looked(NamedTuple):
    """A training picture with all that is known of it."""

    picture: Picture
    kept: Kept
    made: Made | None
    """None for a picture that *Update Dataset* did not make."""
    facts: PictureFacts | None
    """None for a picture that was not looked at yet."""

    @property
    def is_copy(self) -> bool:
        return self.made is not None and self.made.is_flipped


def picture_findings(looked: Sequence[Looked]) -> list[Finding]:
    """Everything that is found at single pictures and pairs of them. Flipped copies of our own are passed over."""
    own = [one for one in looked if not one.is_copy]
    found = (
        _too_small(own),
        _blurred(own),
        _same_files(own),
        *_near_duplicates(own),
        _extreme_ratios(own),
        _grey(own),
    )
    return [finding for finding in found if finding is not None]


def blur_limit(sharpness: Sequence[float]) -> float:
    """The sharpness below which a picture of a set is told as blurred."""
    if len(sharpness) < LEAST_FOR_A_MEDIAN:
        return BLURRED_BELOW
    return min(SHARP_ABOVE, max(BLURRED_BELOW, BLURRED_BESIDE_OTHERS * median(sharpness)))


def _too_small(looked: Sequence[Looked]) -> Finding | None:
    small = [
        Shown(one.picture.path, round(one.kept.enlargement, 2))
        for one in looked
        if one.kept.enlargement > MOST_ENLARGEMENT
    ]
    if not small:
        return None
    return Finding(
        kind="too_small",
        level="warning",
        title="Some pictures are enlarged a lot: the LoRA will learn how soft they are.",
        remedy="Upload larger originals, cut less off, or train at a lower resolution.",
        limit=MOST_ENLARGEMENT,
        unit="×",
        pictures=tuple(small),
    )


def _blurred(looked: Sequence[Looked]) -> Finding | None:
    known = {one.picture.path: one.facts.sharpness for one in looked if one.facts is not None}
    limit = blur_limit(list(known.values()))
    blurred = [Shown(file, sharpness) for file, sharpness in known.items() if sharpness < limit]
    if not blurred:
        return None
    return Finding(
        kind="blurred",
        level="warning",
        title="Some pictures look blurred.",
        remedy="Look at them, and remove those that are: a LoRA learns blur like anything else.",
        limit=round(limit, 2),
        unit="sharpness",
        pictures=tuple(blurred),
    )


def _same_files(looked: Sequence[Looked]) -> Finding | None:
    groups = same({one.picture.path: one.picture.content for one in looked if one.picture.content})
    if not groups:
        return None
    return Finding(
        kind="same_files",
        level="warning",
        title="Some pictures are there more than once.",
        remedy="Keep one of each: what is there twice is learned twice as strongly.",
        groups=tuple(Group(files) for files in groups),
    )


def _near_duplicates(looked: Sequence[Looked]) -> tuple[Finding | None, Finding | None]:
    """Those that look alike, and those that look like another's mirror image."""
    known: list[Looked] = []
    looks: list[Look] = []
    for one in looked:
        if one.facts is not None and one.facts.phash:
            known.append(one)
            looks.append(Look(int(one.facts.phash, 16), int(one.facts.mirrored_phash, 16), one.facts.mean_rgb))
    pairs = [pair for pair in near_pairs(looks) if not _is_told_already(known[pair.first], known[pair.second])]
    direct = _grouped(known, [pair for pair in pairs if not pair.is_mirrored])
    across = _grouped(known, [pair for pair in pairs if pair.is_mirrored])
    near = Finding(
        kind="near_duplicates",
        level="warning",
        title="Some pictures look almost the same.",
        remedy="Keep the best of each, unless the difference is what you want to be learned.",
        limit=NEAR_BITS,
        unit="bits",
        groups=direct,
    )
    mirrored = Finding(
        kind="mirrored_duplicates",
        level="info",
        title="Some pictures are mirror images of others.",
        remedy="Remove them where the sides of the subject differ, or where there is writing.",
        limit=NEAR_BITS,
        unit="bits",
        groups=across,
    )
    return near if direct else None, mirrored if across else None


def _is_told_already(one: Looked, other: Looked) -> bool:
    """The same file, or parts that *Update Dataset* made of the same original."""
    if one.picture.content == other.picture.content:
        return True
    return one.made is not None and other.made is not None and one.made.origin == other.made.origin


def _grouped(known: Sequence[Looked], pairs: Sequence[Pair]) -> tuple[Group, ...]:
    return tuple(Group(tuple(known[place].picture.path for place in places), bits) for places, bits in linked(pairs))


def _extreme_ratios(looked: Sequence[Looked]) -> Finding | None:
    extreme: list[Shown] = []
    for one in looked:
        width_px, height_px = one.kept.outline_px
        ratio = max(width_px, height_px) / min(width_px, height_px)
        if ratio > WIDEST_RATIO:
            extreme.append(Shown(one.picture.path, round(ratio, 2), round(one.kept.lost_share, 3)))
    if not extreme:
        return None
    return Finding(
        kind="extreme_ratios",
        level="warning",
        title="Some originals are very long or very wide. What is cut off of them is not learned.",
        remedy="Cut out by hand what matters, or let Update Dataset split oversized images.",
        limit=WIDEST_RATIO,
        unit=":1",
        pictures=tuple(extreme),
    )


def _grey(looked: Sequence[Looked]) -> Finding | None:
    """Some among coloured ones; a set of drawings in ink is meant so."""
    known = [one for one in looked if one.facts is not None]
    grey = [one for one in known if one.facts is not None and one.facts.is_grey]
    if not grey or len(grey) == len(known):
        return None
    return Finding(
        kind="grey",
        level="info",
        title="Some pictures have no colours, others have.",
        remedy="Write it into their captions, or the LoRA may take colours away.",
        pictures=tuple(Shown(one.picture.path) for one in grey),
    )
