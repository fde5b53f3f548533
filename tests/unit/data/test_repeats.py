"""Automatic repeats: the training has the steps aimed at, as near as whole numbers allow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_train.core.config import TrainSettings
from lora_train.data.dataset import Dataset, Picture, fingerprint, with_regularisation, with_repeats
from lora_train.data.epochs import Bucket, total_steps
from lora_train.data.plan import make_planner
from lora_train.data.repeats import MOST_REPEATS, folder_repeats, with_aimed_repeats, with_folder_repeats

SQUARE, WIDE = (64, 64), (96, 64)


def dataset(*folders: tuple[str, int, int], regularisation: int = 0) -> Dataset:
    """Folders of (name, number, pictures)."""
    found = [
        Picture(f"{name}/{index}.png", name, name, number, False, "a", 64, 64, f"{name}{index}")
        for name, number, count in folders
        for index in range(count)
    ]
    found += [Picture(f"reg/{n}.png", "reg", "", 1, True, "", 64, 64, f"reg{n}") for n in range(regularisation)]
    return Dataset(Path(), tuple(found), ())


def steps(found: Dataset, buckets: list[Bucket], chosen: TrainSettings) -> int:
    plan = make_planner(found, buckets, chosen, "")
    return total_steps(plan, chosen.epochs, chosen.gradient_accumulation_steps)


def aimed(found: Dataset, buckets: list[Bucket] | None = None, **values: Any) -> tuple[dict[str, int], int]:
    """The repeats of the folders, and the steps with them."""
    buckets = buckets or [SQUARE] * len(found.pictures)
    chosen = TrainSettings(**values)
    meant = with_aimed_repeats(found, buckets, chosen)
    return folder_repeats(meant), steps(meant, buckets, chosen)


def test_by_hand() -> None:
    """10 pictures x 32 repeats x 10 epochs / batch 2 = 1600 steps."""
    ten = dataset(("16_cat", 16, 10))
    assert aimed(ten, aimed_steps=1600, epochs=10, batch_size=2) == ({"16_cat": 32}, 1600)
    assert aimed(ten, aimed_steps=1600, epochs=10, batch_size=2, gradient_accumulation_steps=4)[0] == {"16_cat": 128}
    assert aimed(dataset(("16_cat", 16, 60)), aimed_steps=1600, epochs=10, batch_size=2) == ({"16_cat": 5}, 1500)
    assert aimed(dataset(("", 16, 1000)), aimed_steps=1600, epochs=10, batch_size=2) == ({"": 1}, 5000)


def test_regularisation_pictures_halve_the_repeats() -> None:
    """They double the views of an epoch."""
    both = dataset(("16_cat", 16, 10), regularisation=4)
    assert aimed(both, aimed_steps=1600, epochs=10, batch_size=2) == ({"16_cat": 16}, 1600)


def test_folders_keep_their_proportions() -> None:
    """5 x 1 and 4 x 3 are 17 views at level 1: 47 levels make 799 steps an epoch."""
    two = dataset(("1_cat", 1, 5), ("3_dog", 3, 4))
    assert aimed(two, aimed_steps=800, epochs=1, batch_size=1) == ({"1_cat": 47, "3_dog": 141}, 799)
    large = dataset(("10_cat", 10, 5), ("25_dog", 25, 4))
    assert aimed(large, aimed_steps=1, epochs=1) == ({"10_cat": 1, "25_dog": 3}, 17), "a half goes up, none below 1"


def test_partial_batches_count() -> None:
    """Two buckets of 3 pictures in fours: 3 x 3 views make 3 batches each, 24 steps in 4 epochs; so do 3 x 4."""
    six = dataset(("1_cat", 1, 6))
    buckets = [SQUARE] * 3 + [WIDE] * 3
    assert aimed(six, buckets, aimed_steps=24, epochs=4, batch_size=4) == ({"1_cat": 3}, 24)


def test_without_an_aim_or_with_typed_repeats_nothing_is_chosen() -> None:
    two = dataset(("1_cat", 1, 5), ("3_dog", 3, 4))
    assert with_aimed_repeats(two, [SQUARE] * 9, TrainSettings(aimed_steps=0)) is two
    typed = with_repeats(two, 7)
    assert with_aimed_repeats(typed, [SQUARE] * 9, TrainSettings(repeats=7, aimed_steps=800)) is typed


def test_there_is_a_limit() -> None:
    assert aimed(dataset(("", 1, 1)), aimed_steps=1_000_000, epochs=1)[0] == {"": MOST_REPEATS}


def test_what_was_chosen_comes_back_from_the_job() -> None:
    two = dataset(("1_cat", 1, 5), ("3_dog", 3, 4), regularisation=2)
    meant = with_aimed_repeats(two, [SQUARE] * 11, TrainSettings(aimed_steps=800))
    again = with_folder_repeats(two, folder_repeats(meant))
    assert again == meant
    assert fingerprint(again) == fingerprint(meant) != fingerprint(two)
    assert with_folder_repeats(two, {}) == two


FOLDERS = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 12)), min_size=1, max_size=3)


@settings(deadline=None, max_examples=60)
@given(
    FOLDERS,
    st.integers(1, 3000),
    st.integers(1, 12),
    st.integers(1, 6),
    st.integers(1, 3),
    st.integers(0, 4),
    st.data(),
)
def test_no_other_number_is_nearer(
    folders: list[tuple[int, int]], aim: int, epochs: int, batch: int, accumulation: int, regularisation: int, data: Any
) -> None:
    found = dataset(*[(f"f{n}", *folder) for n, folder in enumerate(folders)], regularisation=regularisation)
    buckets = data.draw(st.lists(st.sampled_from([SQUARE, WIDE]), min_size=(n := len(found.pictures)), max_size=n))
    chosen = TrainSettings(aimed_steps=aim, epochs=epochs, batch_size=batch, gradient_accumulation_steps=accumulation)
    meant = with_aimed_repeats(found, buckets, chosen)
    assert with_regularisation(meant, []).root == found.root
    repeats = folder_repeats(meant)
    smallest = min(number for number, _ in folders)
    level = min(repeats.values())
    assert level >= 1

    def off(at: int) -> int:
        scaled = {f"f{n}": int(at * number / smallest + 0.5 + 1e-9) for n, (number, _) in enumerate(folders)}
        if at == level:
            assert scaled == repeats
        return abs(steps(with_folder_repeats(found, scaled), buckets, chosen) - aim)

    # With regularisation pictures, partial batches may shrink as repeats grow: by a batch a bucket and epoch at most.
    slack = 2 * epochs if regularisation else 0
    others = [at for at in (level - 2, level - 1, level + 1, level + 2) if 1 <= at <= MOST_REPEATS]
    assert all(off(level) <= off(at) + slack for at in others)
    assert off(level) == abs(steps(meant, buckets, chosen) - aim)


@pytest.mark.parametrize("pictures", [1, 7, 12, 40, 160])
def test_any_number_of_pictures_gets_about_the_same_steps(pictures: int) -> None:
    """Half a repeat is the most that is missing or too much."""
    found = dataset(("1_cat", 1, pictures))
    _, total = aimed(found, aimed_steps=1600, epochs=10, batch_size=1)
    assert abs(total - 1600) <= pictures * 10 / 2
