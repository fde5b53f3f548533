"""Pictures that are the same, or nearly so. They are shown, never dropped: which one stays is the person's choice."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

NEAR_BITS = 8
"""Perceptual hashes of 64 bits that differ in at most so many tell near-duplicates.

Measured on the 22 pictures of scikit-image: JPEG at quality 10, half the size, a brightness of 120 %, or 1 % cut off
each side change 0-8 bits (but for a wall of bricks and a colour chart); two different pictures differ in 20 or more. A
cut of 2.5 % changes 4-14, so half of those are found; a higher limit would also join drawings that are only alike.
"""

SAME_COLOUR = 40
"""Hashes know no colour, and those of two plain pictures are always equal. Pictures whose mean red, green or blue
(0-255) are further apart are no near-duplicates; a brightness of 120 % moves them by 25 at middle grey."""


class Look(NamedTuple):
    """What is compared of a picture."""

    phash: int
    """64 bits."""
    mirrored_phash: int
    """Of the picture with left and right changed."""
    mean_rgb: tuple[int, int, int]


class Pair(NamedTuple):
    """Two near-duplicates by their places in the sequence, `first` < `second`."""

    first: int
    second: int
    bits: int
    """In which the hashes differ."""
    is_mirrored: bool
    """The second one is nearer to the mirrored first one than to the first one itself."""


def near_pairs(looks: Sequence[Look]) -> list[Pair]:
    """All pairs of near-duplicates, in order. Each picture is compared with all others: 2000 take 0.3 s."""
    return list(_near_pairs(tuple(looks)))


def same(values: Mapping[str, Hashable]) -> list[tuple[str, ...]]:
    """The names that share a value with another name, grouped by it, in order."""
    groups: dict[Hashable, list[str]] = {}
    for name, value in values.items():
        groups.setdefault(value, []).append(name)
    return [tuple(names) for names in groups.values() if len(names) > 1]


def linked(pairs: Iterable[Pair]) -> list[tuple[tuple[int, ...], int]]:
    """Groups of places that pairs link, directly or over others, and the most bits of a pair in each; in order."""
    parents: dict[int, int] = {}
    bits_of: dict[int, int] = {}
    for pair in pairs:
        one, other = sorted((_root(pair.first, parents), _root(pair.second, parents)))
        parents[other] = one  # the first place of a group stands for it
        bits_of[one] = max(pair.bits, bits_of.get(one, 0), bits_of.get(other, 0))
    groups: dict[int, list[int]] = {}
    for place in sorted(parents):
        groups.setdefault(_root(place, parents), []).append(place)
    return [(tuple(places), bits_of[root]) for root, places in groups.items()]


def _root(place: int, parents: dict[int, int]) -> int:
    """The place that stands for a group; the way there is short the next time. (Tarjan, Efficiency of a good but not
    linear set union algorithm, 1975, with path halving.)
    """
    parents.setdefault(place, place)
    while parents[place] != place:
        parents[place] = place = parents[parents[place]]
    return place


@lru_cache(maxsize=8)
def _near_pairs(looks: tuple[Look, ...]) -> tuple[Pair, ...]:
    """The page asks every second, and nothing has changed."""
    hashes = _bits([look.phash for look in looks])
    mirrored = _bits([look.mirrored_phash for look in looks])
    colours = np.array([look.mean_rgb for look in looks], dtype=np.int16)
    pairs: list[Pair] = []
    for first in range(len(looks) - 1):
        rest = slice(first + 1, None)
        direct = (hashes[rest] ^ hashes[first]).sum(axis=1)
        # Two mirrored pictures may be a bit further apart than the pictures; the order must not matter.
        across = np.minimum((hashes[rest] ^ mirrored[first]).sum(axis=1), (mirrored[rest] ^ hashes[first]).sum(axis=1))
        bits = np.minimum(direct, across)
        is_same_colour = np.abs(colours[rest] - colours[first]).max(axis=1) <= SAME_COLOUR
        for place in np.flatnonzero((bits <= NEAR_BITS) & is_same_colour).tolist():
            pairs.append(Pair(first, first + 1 + place, int(bits[place]), bool(across[place] < direct[place])))
    return tuple(pairs)


def _bits(numbers: Sequence[int]) -> NDArray[np.uint8]:
    """(N, 64) zeros and ones. (numpy counts the bits of numbers only from version 2 on.)"""
    return np.array([[number >> place & 1 for place in range(64)] for number in numbers], dtype=np.uint8)
