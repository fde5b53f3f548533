"""Exactly what a picture is trained with: the texts of the plan's own views, and where the tokenizer cuts them."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import msgspec

from lora_train.data.captions import compose_caption, split_tags, trigger_and_rest
from lora_train.data.tokens import Chunks, chunks

if TYPE_CHECKING:
    from lora_train.core.config import TrainSettings
    from lora_train.data.dataset import Dataset
    from lora_train.data.epochs import EpochPlanner

_MOST_VIEWS = 100


class TextView(msgspec.Struct, frozen=True):
    """One time that the picture is seen."""

    position: int
    """Among all views of the epoch, from 0."""
    text: str
    """"" for a view without caption."""
    is_flipped: bool
    chunks: Chunks


class TrainedText(msgspec.Struct, frozen=True):
    """What one picture is trained with in one epoch."""

    file: str
    epoch: int
    """From 1."""
    fixed: str
    """What stands in front in every view that has a caption: the trigger word, the first tags, or all of it."""
    shuffled: list[str]
    """Tags that change places."""
    plain: Chunks
    """Of the caption without shuffle and dropout."""
    max_tokens: int
    dropout: float
    """The share of views without caption that is set (0 to 1) ..."""
    without_caption: int
    """... and how many they are in this epoch."""
    view_count: int
    """A regularisation picture may have none in an epoch."""
    views: list[TextView]
    """At most 100, in the order of training."""
    left_out: list[str] = []
    """Tags of the caption that training leaves out, because nearly all captions have them."""
    is_exact: bool = True
    """False where the base model is not chosen yet: its size has a part in the order."""


def plain_texts(dataset: Dataset, settings: TrainSettings, concept: str) -> list[str]:
    """What each picture is trained with when nothing is shuffled or dropped, in the dataset's order."""
    from lora_train.data.plan import make_planner  # numpy and Pillow: not for those who need the structs alone

    return _plain(make_planner(dataset, [(0, 0)] * len(dataset.pictures), settings, concept))


def trained_text(
    dataset: Dataset, planner: EpochPlanner, settings: TrainSettings, file: str, epoch: int
) -> TrainedText:
    """All views of the picture `file` in an epoch (from 1), as `planner`, that of the training, has them.

    Raises KeyError for a picture that is not in the dataset, DatasetError where tokens can't be counted.
    """
    index = {picture.path: index for index, picture in enumerate(dataset.pictures)}[file]
    views = [view for batch in planner.batches(epoch - 1) for view in batch.views if view.source == index]
    source, rules = planner.sources[index], planner.rules
    trigger = "" if source.is_regularisation else rules.trigger_word.strip()
    first, rest = trigger_and_rest(source.caption, trigger)
    moving = split_tags(rest)[rules.keep_tags :] if rules.shuffle else []
    kept = ", ".join(split_tags(rest)[: rules.keep_tags]) if rules.shuffle else rest
    own = split_tags(dataset.pictures[index].caption)
    return TrainedText(
        file=file,
        epoch=epoch,
        fixed=", ".join(part for part in (first, kept) if part),
        shuffled=moving,
        plain=chunks(_plain(planner)[index], settings.max_tokens),
        max_tokens=settings.max_tokens,
        dropout=rules.dropout,
        without_caption=sum(not view.caption for view in views),
        view_count=len(views),
        views=[
            TextView(view.position, view.caption, view.flip, chunks(view.caption, settings.max_tokens))
            for view in views[:_MOST_VIEWS]
        ],
        left_out=[tag for tag in own if tag not in split_tags(source.caption)],
    )


def _plain(planner: EpochPlanner) -> list[str]:
    rules = planner.rules
    return [
        compose_caption(
            source.caption,
            trigger_word="" if source.is_regularisation else rules.trigger_word,
            shuffle=False,
            keep_tags=0,
            dropout=0,
            random=random.Random(0),
        )
        for source in planner.sources
    ]
