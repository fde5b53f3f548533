"""Which picture is seen when: the order of an epoch, its batches, and how many steps a run has.

Everything is a function of (seed, epoch, position), so a run can go on from any step, and batch order and content
don't depend on what was drawn before.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from lora_train.core.seeds import derive_seed
from lora_train.data.captions import compose_caption

Bucket = tuple[int, int]
"""(width, height) in pixels."""


class Source(msgspec.Struct, frozen=True):
    """A picture as the plan needs it: its bucket, how often an epoch shows it, its caption."""

    bucket: Bucket
    repeats: int
    caption: str
    is_regularisation: bool = False


class CaptionRules(msgspec.Struct, frozen=True):
    """How a stored caption becomes the one that is trained with."""

    trigger_word: str = ""
    shuffle: bool = False
    keep_tags: int = 0
    dropout: float = 0.0


class View(msgspec.Struct, frozen=True):
    """One picture in one batch. `position` counts the views of the epoch and names their random draws."""

    source: int
    epoch: int
    position: int
    flip: bool
    caption: str


class Batch(msgspec.Struct, frozen=True):
    """Views of one bucket that go through the model together."""

    bucket: Bucket
    views: tuple[View, ...]
    whole: tuple[View, ...] = ()
    """Of a part (see `parts`): all views of its batch, whose longest caption sets the length of every text in it."""
    first: int = 0
    """Of a part: where in `whole` its views begin."""


class EpochPlanner:
    """Plans epochs over fixed sources. Pure: the same arguments always give the same plan."""

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        batch_size: int,
        seed: int,
        rules: CaptionRules | None = None,
        flip: bool = False,
    ) -> None:
        self.sources = sources
        self.batch_size = batch_size
        self.seed = seed
        self.rules = rules or CaptionRules()
        self.flip = flip
        self._training = _repeated(sources, is_regularisation=False)
        self._regularisation = _repeated(sources, is_regularisation=True)
        self._batch_counts: dict[int, int] = {}

    def batches(self, epoch: int) -> list[Batch]:
        """The batches of one epoch (counted from 0), in the order in which they are trained."""
        order = list(self.shown(epoch))
        draw = random.Random(derive_seed(self.seed, epoch, "order"))
        draw.shuffle(order)
        groups: list[tuple[Bucket, list[int]]] = []
        open_groups: dict[Bucket, list[int]] = {}
        for source in order:
            bucket = self.sources[source].bucket
            group = open_groups.get(bucket)
            if group is None:
                group = open_groups[bucket] = []
                groups.append((bucket, group))
            group.append(source)
            if len(group) == self.batch_size:
                del open_groups[bucket]
        draw.shuffle(groups)
        return self._with_views(groups, epoch)

    def shown(self, epoch: int) -> Iterable[int]:
        """Sources of one epoch, with repeats, in the order of the dataset.

        There are as many regularisation views as training views; where there are more regularisation pictures than
        that, the next epoch goes on where this one ended, so all of them get their turn.
        """
        yield from self._training
        count, pool = len(self._training), self._regularisation
        if pool:
            yield from (pool[(epoch * count + index) % len(pool)] for index in range(count))

    def batch_count(self, epoch: int) -> int:
        """How many batches `batches(epoch)` has; a bucket's last batch may be a partial one."""
        pool = self._regularisation
        start = epoch * len(self._training) % len(pool) if pool else 0  # epochs differ in nothing else
        if start not in self._batch_counts:
            counts = Counter(self.sources[source].bucket for source in self.shown(epoch))
            self._batch_counts[start] = sum(math.ceil(count / self.batch_size) for count in counts.values())
        return self._batch_counts[start]

    def _with_views(self, groups: list[tuple[Bucket, list[int]]], epoch: int) -> list[Batch]:
        batches: list[Batch] = []
        position = 0
        for bucket, group in groups:
            views: list[View] = []
            for source in group:
                views.append(self._view(source, epoch, position))
                position += 1
            batches.append(Batch(bucket, tuple(views)))
        return batches

    def _view(self, source: int, epoch: int, position: int) -> View:
        flip_draw = random.Random(derive_seed(self.seed, epoch, position, "flip"))
        caption = compose_caption(
            self.sources[source].caption,
            trigger_word="" if self.sources[source].is_regularisation else self.rules.trigger_word,
            shuffle=self.rules.shuffle,
            keep_tags=self.rules.keep_tags,
            dropout=self.rules.dropout,
            random=random.Random(derive_seed(self.seed, epoch, position, "caption")),
        )
        return View(
            source=source,
            epoch=epoch,
            position=position,
            flip=self.flip and flip_draw.random() < 0.5,
            caption=caption,
        )


def parts(batch: Batch, count: int) -> list[Batch]:
    """The batch in `count` parts of consecutive views, as equal as can be; the last ones are empty where there are
    fewer views than parts. What is drawn for a view, and how long its text is, does not depend on the part.
    """
    whole = batch.whole or batch.views
    size, larger = divmod(len(batch.views), count)
    found: list[Batch] = []
    start = 0
    for index in range(count):
        end = start + size + (index < larger)
        found.append(Batch(batch.bucket, batch.views[start:end], whole, batch.first + start))
        start = end
    return found


def total_steps(planner: EpochPlanner, epochs: int, gradient_accumulation_steps: int) -> int:
    """Optimizer steps of a whole run. An epoch's last step may have fewer batches than the others."""
    return sum(math.ceil(planner.batch_count(epoch) / gradient_accumulation_steps) for epoch in range(epochs))


def _repeated(sources: Sequence[Source], *, is_regularisation: bool) -> list[int]:
    return [
        index
        for index, source in enumerate(sources)
        if source.is_regularisation == is_regularisation
        for _ in range(source.repeats)
    ]
