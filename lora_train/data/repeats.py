"""Automatic repeats: how often an epoch shows each picture, so that the whole training has the steps aimed at.

The folder with the smallest number is shown a whole number of times, and the others in proportion to their own
numbers: `1_cat` and `3_dog` may become 7 and 21.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import msgspec

from lora_train.core.config import TrainSettings
from lora_train.data.dataset import AUTOMATIC, Dataset
from lora_train.data.epochs import Bucket, EpochPlanner, Source, total_steps

MOST_REPEATS = 10_000
"""Of the folder with the smallest number, as the schema allows for one that is typed."""


class Counted(NamedTuple):
    """What of a picture counts for steps: its bucket, the number of its folder, and whether it is shown for that."""

    bucket: Bucket
    number: int
    is_regularisation: bool


class Run(NamedTuple):
    """What of the settings counts for steps."""

    epochs: int
    batch_size: int
    accumulation: int


def with_aimed_repeats(dataset: Dataset, buckets: Sequence[Bucket], settings: TrainSettings) -> Dataset:
    """The dataset with the repeats that meet `aimed_steps`; as it is where repeats were typed or there is no aim.

    `dataset` has the numbers of its folders, `buckets` are in its order.
    """
    if settings.repeats != AUTOMATIC or not settings.aimed_steps:
        return dataset
    counted = tuple(
        Counted(bucket, picture.repeats, picture.is_regularisation)
        for picture, bucket in zip(dataset.pictures, buckets, strict=True)
    )
    run = Run(settings.epochs, settings.batch_size, settings.gradient_accumulation_steps)
    level = choose_level(counted, run, settings.aimed_steps)
    smallest = _smallest(counted)
    return with_folder_repeats(
        dataset,
        {
            picture.folder: _scaled(picture.repeats, level, smallest)
            for picture in dataset.pictures
            if not picture.is_regularisation
        },
    )


@lru_cache(maxsize=64)  # a page asks every second
def choose_level(pictures: tuple[Counted, ...], run: Run, aimed_steps: int) -> int:
    """Repeats, 1 to MOST_REPEATS, of the folder with the smallest number, with which the steps are nearest to the aim.

    The fewer where two are as near. Steps are counted as the loop does: partial batches, accumulation and
    regularisation pictures included.
    """
    steps_with = partial(_steps, pictures, run)
    count = sum(not picture.is_regularisation for picture in pictures)
    # At least count x level views an epoch: this level is enough.
    enough = -(-aimed_steps * run.batch_size * run.accumulation // (run.epochs * count))
    enough = min(MOST_REPEATS, max(1, enough))
    reached = 1 + bisect_left(range(1, enough), aimed_steps, key=steps_with)
    below = max(1, reached - 1)
    return below if aimed_steps - steps_with(below) <= steps_with(reached) - aimed_steps else reached


def folder_repeats(dataset: Dataset) -> dict[str, int]:
    """The repeats of each folder of training pictures, for `with_folder_repeats`."""
    return {picture.folder: picture.repeats for picture in dataset.pictures if not picture.is_regularisation}


def with_folder_repeats(dataset: Dataset, repeats: Mapping[str, int]) -> Dataset:
    """The dataset with these repeats for its training pictures, by folder; folders not in there keep their own."""
    pictures = (
        picture
        if picture.is_regularisation
        else msgspec.structs.replace(picture, repeats=repeats.get(picture.folder, picture.repeats))
        for picture in dataset.pictures
    )
    return msgspec.structs.replace(dataset, pictures=tuple(pictures))


def _steps(pictures: tuple[Counted, ...], run: Run, level: int) -> int:
    smallest = _smallest(pictures)
    sources = [
        Source(
            picture.bucket,
            picture.number if picture.is_regularisation else _scaled(picture.number, level, smallest),
            caption="",
            is_regularisation=picture.is_regularisation,
        )
        for picture in pictures
    ]
    return total_steps(EpochPlanner(sources, batch_size=run.batch_size, seed=0), run.epochs, run.accumulation)


def _smallest(pictures: Sequence[Counted]) -> int:
    return min(picture.number for picture in pictures if not picture.is_regularisation)


def _scaled(number: int, level: int, smallest: int) -> int:
    """`level` times `number` / `smallest`, to the nearest whole number (a half goes up)."""
    return (2 * level * number + smallest) // (2 * smallest)
