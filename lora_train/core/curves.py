"""The curves of a training, read from its events: loss and learning rate of every step, and its validations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from lora_train.core import events as ev
from lora_train.core.jobs import JobFolder


class Point(NamedTuple):
    step: int
    loss: float
    lr: float


class ValidationPoint(NamedTuple):
    """The loss on the held-out pictures, with the LoRA and of the base model alone."""

    step: int
    loss: float
    base_loss: float


class CurveReader:
    """Reads a training's curve again and again, each time only the events that are new."""

    def __init__(self, job: JobFolder) -> None:
        self._path = job.events_path
        self._offset_bytes = 0
        self._points: list[Point] = []
        self._validations: dict[int, ValidationPoint] = {}

    def read(self, most: int) -> list[Point]:
        """The curve in at most `most` points; where there are more steps, the mean of neighbours."""
        self._read_on()
        return thinned(self._points, most)

    def validations(self) -> list[ValidationPoint]:
        """Every validation, in the order of steps."""
        self._read_on()
        return [self._validations[step] for step in sorted(self._validations)]

    def _read_on(self) -> None:
        events, self._offset_bytes = ev.read_events(self._path, self._offset_bytes)
        for event in events:
            if isinstance(event, ev.Step):
                self._points.append(Point(event.step, event.loss, event.lr))
            elif isinstance(event, ev.Validated):
                self._validations[event.step] = ValidationPoint(event.step, event.loss, event.base_loss)
            elif isinstance(event, ev.Started) and event.step is not None:
                self._forget_after(event.step)

    def _forget_after(self, step: int) -> None:
        """A start from an earlier state does the steps after it again."""
        while self._points and self._points[-1].step > step:
            self._points.pop()
        self._validations = {at: point for at, point in self._validations.items() if at <= step}


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
