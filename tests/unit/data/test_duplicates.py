"""Near-duplicates: found on real photographs, the same from both sides, never two different ones."""

from __future__ import annotations

import io
import time
from itertools import combinations

import pytest
from PIL import Image, ImageEnhance, ImageOps

pytest.importorskip("hypothesis")

from hypothesis import given
from hypothesis import strategies as st

from lora_train.data.duplicates import NEAR_BITS, SAME_COLOUR, Look, Pair, linked, near_pairs, same
from lora_train.data.facts import has_imagehash, picture_facts

PHOTOGRAPHS = ("astronaut", "camera", "chelsea", "coffee", "coins", "rocket", "retina", "moon", "grass", "gravel")
GREY = (128, 128, 128)
hashes = st.integers(0, 2**64 - 1)


def look(phash: int, mirrored: int = 2**64 - 1, rgb: tuple[int, int, int] = GREY) -> Look:
    return Look(phash, mirrored, rgb)


def look_at(picture: Image.Image) -> Look:
    found = picture_facts(picture.convert("RGB"))
    return Look(int(found.phash, 16), int(found.mirrored_phash, 16), found.mean_rgb)


def bits_between(one: Image.Image, other: Image.Image) -> int:
    return bin(look_at(one).phash ^ look_at(other).phash).count("1")


# --- arithmetic ---


def test_the_limit_itself() -> None:
    """So many bits are near, one more is not."""
    near, far = (1 << NEAR_BITS) - 1, (1 << (NEAR_BITS + 1)) - 1
    assert near_pairs([look(0), look(near)]) == [Pair(0, 1, NEAR_BITS, False)]
    assert near_pairs([look(0), look(far)]) == []
    assert near_pairs([look(0), look(0, rgb=(128, 128, 128 + SAME_COLOUR))]) != []
    assert near_pairs([look(0), look(0, rgb=(128, 128, 129 + SAME_COLOUR))]) == []


def test_a_mirror_image_is_told_as_such() -> None:
    mirrored, far = 0b111 << 60, 2**64 - 1
    assert near_pairs([look(far ^ 0b1, mirrored), look(mirrored ^ 0b1, far)]) == [Pair(0, 1, 1, True)]
    # One that is its own mirror image is no mirrored copy.
    assert near_pairs([look(0, 0), look(1, 1)]) == [Pair(0, 1, 1, False)]


def test_none_and_one() -> None:
    assert near_pairs([]) == []
    assert near_pairs([look(5)]) == []


def test_the_highest_bits_count_too() -> None:
    assert near_pairs([look(2**63), look(2**63 + 1)]) == [Pair(0, 1, 1, False)]


@given(st.lists(st.tuples(st.integers(0, 2**12 - 1), st.integers(0, 2**12 - 1)), max_size=12), st.data())
def test_the_order_does_not_matter(pairs: list[tuple[int, int]], data: st.DataObject) -> None:
    """Hashes that differ in 12 bits at most, so that both near and far ones are drawn."""
    looks = [look(phash, mirrored) for phash, mirrored in pairs]
    order = data.draw(st.permutations(range(len(looks))))
    back = [
        Pair(*sorted((order[pair.first], order[pair.second])), pair.bits, pair.is_mirrored)
        for pair in near_pairs([looks[place] for place in order])
    ]
    assert sorted(back) == near_pairs(looks)


@given(hashes, st.sets(st.integers(0, 63), max_size=12))
def test_distance_is_the_number_of_changed_bits(phash: int, changed: set[int]) -> None:
    other = phash ^ sum(1 << place for place in changed)
    mirrored = ~phash & (2**64 - 1)  # as far away as can be
    for looks in ([look(phash, mirrored), look(other, mirrored)], [look(other, mirrored), look(phash, mirrored)]):
        expected = [Pair(0, 1, len(changed), False)] if len(changed) <= NEAR_BITS else []
        assert near_pairs(looks) == expected


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 8)), max_size=20))
def test_groups_are_what_links_reach(links: list[tuple[int, int, int]]) -> None:
    pairs = [Pair(min(a, b), max(a, b), bits, False) for a, b, bits in links if a != b]
    groups = linked(pairs)
    places = [place for group, _ in groups for place in group]
    assert len(places) == len(set(places))
    assert set(places) == {place for pair in pairs for place in pair[:2]}
    for group, most in groups:
        inside = [pair for pair in pairs if pair.first in group]
        assert all(pair.second in group for pair in inside)
        assert most == max(pair.bits for pair in inside)
        reached = {group[0]}
        for _ in group:
            reached |= {place for pair in inside if reached & set(pair[:2]) for place in pair[:2]}
        assert reached == set(group)


def test_many_pictures_that_are_all_alike_take_no_minutes() -> None:
    """Frames of a film: each is linked to each. 0.2 s on one slow core; joining sets took 20 s."""
    begun = time.process_time()
    assert linked(Pair(one, other, 1, False) for one in range(800) for other in range(one + 1, 800)) == [
        (tuple(range(800)), 1)
    ]
    assert time.process_time() - begun < 5


def test_groups_of_equal_values() -> None:
    assert same({"a": "x", "b": "y", "c": "x", "d": "z", "e": "y"}) == [("a", "c"), ("b", "e")]
    assert same({}) == []


# --- real photographs ---

pictures_need = pytest.mark.skipif(not has_imagehash(), reason="imagehash is not installed")


@pytest.fixture(scope="module")
def photographs() -> dict[str, Image.Image]:
    data = pytest.importorskip("skimage.data")
    return {name: Image.fromarray(getattr(data, name)()).convert("RGB") for name in PHOTOGRAPHS}


@pictures_need
def test_copies_of_a_photograph_are_near(photographs: dict[str, Image.Image]) -> None:
    """Measured over the ten: JPEG at quality 30 0-2 bits, at 10 0-8, half the size 0-2, 120 % bright 0-6, 1 % cut off
    each side 2-6."""
    for name, picture in photographs.items():
        width_px, height_px = picture.size
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=30)
        cut = picture.crop(
            (width_px // 100, height_px // 100, width_px - width_px // 100, height_px - height_px // 100)
        )
        copies = [
            Image.open(stream),
            picture.resize((width_px // 2, height_px // 2), Image.Resampling.LANCZOS),
            cut,
            ImageEnhance.Brightness(picture).enhance(1.1),
        ]
        for copy in copies:
            (pair,) = near_pairs([look_at(picture), look_at(copy)])
            assert not pair.is_mirrored, name
        (pair,) = near_pairs([look_at(picture), look_at(ImageOps.mirror(cut))])
        assert pair.is_mirrored, name


@pictures_need
def test_different_photographs_are_far_apart(photographs: dict[str, Image.Image]) -> None:
    """The nearest two of the ten are rocket and gravel, 22 bits apart."""
    nearest = min(bits_between(one, other) for one, other in combinations(photographs.values(), 2))
    assert nearest >= 2 * NEAR_BITS
    assert near_pairs([look_at(picture) for picture in photographs.values()]) == []


@pictures_need
def test_plain_pictures_of_different_colours_are_no_copies() -> None:
    """Their hashes are the same."""
    plain = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue", "red")]
    assert [pair[:2] for pair in near_pairs(list(map(look_at, plain)))] == [(0, 2)]
