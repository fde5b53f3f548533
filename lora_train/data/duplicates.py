"""Pictures that are the same, or nearly so. They are shown, never dropped: which one stays is the person's choice."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

HASH_BITS = 64
NEAR_BITS = 8
"""Perceptual hashes of 64 bits that differ in at most so many tell near-duplicates.

Measured on the 22 pictures of scikit-image: JPEG at quality 10, half the size, a brightness of 120 %, or 1 % cut off
each side change 0-8 bits (but for a wall of bricks and a colour chart); two different pictures differ in 20 or more. A
cut of 2.5 % changes 4-14, so half of those are found; a higher limit would also join drawings that are only alike.
"""

SAME_COLOUR = 40
"""Hashes know no colour, and those of two plain pictures are always equal. Pictures whose mean red, green or blue
(0-255) are further apart are no near-duplicates; a brightness of 120 % moves them by 25 at middle grey."""

_ROWS_AT_ONCE = 256
"""Of the table of all pairs; of 2000 pictures they take 2 MB."""


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
    """All pairs of near-duplicates, in order. Each picture is compared with all others: 2000 take 0.1 s."""
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
    if not looks:
        return ()
    hashes = _signs([look.phash for look in looks])
    mirrored = _signs([look.mirrored_phash for look in looks])
    colours = np.array([look.mean_rgb for look in looks], dtype=np.int16)
    pairs: list[Pair] = []
    for start in range(0, len(looks), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        direct = _bits_apart(hashes[rows], hashes[start:])
        # Two mirrored pictures may be a bit further apart than the pictures; the order must not matter.
        across = np.minimum(_bits_apart(hashes[rows], mirrored[start:]), _bits_apart(mirrored[rows], hashes[start:]))
        bits = np.minimum(direct, across)
        for first, second in np.argwhere(np.triu(bits <= NEAR_BITS, 1)).tolist():
            if np.abs(colours[start + first] - colours[start + second]).max() <= SAME_COLOUR:
                is_mirrored = bool(across[first, second] < direct[first, second])
                pairs.append(Pair(start + first, start + second, int(bits[first, second]), is_mirrored))
    return tuple(pairs)


def _signs(numbers: Sequence[int]) -> NDArray[np.float32]:
    """(N, 64) of 1 and -1, for `_bits_apart`."""
    bits = [[number >> place & 1 for place in range(HASH_BITS)] for number in numbers]
    return np.array(bits, dtype=np.float32) * 2 - 1


def _bits_apart(ones: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float32]:
    """In how many bits each differs from each of the others: exact, for their product adds up 1 where two bits are the
    same, and -1 where they are not. (numpy counts the bits of numbers only from version 2 on.)
    """
    return (HASH_BITS - np.inner(ones, others)) / 2
