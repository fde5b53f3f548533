"""The curves of a training, kept from its events: loss and learning rate of every step, and its validations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from lora_train.core import events as ev


class Point(NamedTuple):
    step: int
    loss: float
    lr: float


class ValidationPoint(NamedTuple):
    """The loss on the held-out pictures, with the LoRA and of the base model alone."""

    step: int
    loss: float
    base_loss: float


_MOST_KEPT = 1600
"""Points of a curve that are kept; a curve of more steps is kept in means of 2, 4, 8 ... of them."""


class Curve(msgspec.Struct):
    """A curve of any length in bounded memory."""

    points: list[Point] = []
    """Each of `steps_per_point` steps: their mean loss, at the last of them."""
    steps_per_point: int = 1
    rest: list[Point] = []
    """The last steps, too few for a point yet."""
    validations: list[ValidationPoint] = []
    """In the order of steps."""

    def add(self, event: ev.Event) -> None:
        """Take one more event of the training."""
        match event:
            case ev.Step():
                self.rest.append(Point(event.step, event.loss, event.lr))
                if len(self.rest) >= self.steps_per_point:
                    self._close_point()
            case ev.Validated():
                while self.validations and self.validations[-1].step >= event.step:
                    self.validations.pop()
                self.validations.append(ValidationPoint(event.step, event.loss, event.base_loss))
            case ev.Started() if event.step is not None:
                self._forget_after(event.step)
            case _:
                pass

    def thinned(self, most: int) -> list[Point]:
        """The curve in at most `most` points; where there are more steps, the mean of neighbours."""
        return thinned([*self.points, *thinned(self.rest, 1)], most)

    def _close_point(self) -> None:
        self.points += thinned(self.rest, 1)
        self.rest.clear()
        if len(self.points) >= _MOST_KEPT:
            self.points = thinned(self.points, _MOST_KEPT // 2)
            self.steps_per_point *= 2

    def _forget_after(self, step: int) -> None:
        """A start from an earlier state does the steps after it again."""
        for points in (self.points, self.rest):
            while points and points[-1].step > step:
                points.pop()
        self.validations = [point for point in self.validations if point.step <= step]


def thinned(points: list[Point], most: int) -> list[Point]:
    """At most `most` points: each the mean loss of as many neighbours, at the step of the last of them."""
    if len(points) <= most:
        return list(points)
    size = -(-len(points) // most)
    groups = (points[start : start + size] for start in range(0, len(points), size))
    return [Point(group[-1].step, sum(p.loss for p in group) / len(group), group[-1].lr) for group in groups]


_CLEARLY_WORSE = 1.01
_LATER_VALIDATIONS = 2


def turning_point(points: Sequence[ValidationPoint]) -> ValidationPoint | None:
    """Where over-training begins: the lowest validation loss, if it is lower than the first, and all later ones, two
    at least, are more than 1 % above it. The noise of a validation is always the same, so 1 % is no chance.

    None as long as there is no such point.
    """
    if not points:
        return None
    best = min(points, key=lambda point: point.loss)
    later = [point for point in points if point.step > best.step]
    has_turned = len(later) >= _LATER_VALIDATIONS and all(point.loss > _CLEARLY_WORSE * best.loss for point in later)
    return best if has_turned and best.loss < points[0].loss else None
