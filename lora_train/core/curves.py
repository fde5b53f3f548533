"""The curves of a training, read from its events: the loss and learning rate of every step."""

from __future__ import annotations

from typing import NamedTuple

from lora_train.core import events as ev
from lora_train.core.jobs import JobFolder


class Point(NamedTuple):
    step: int
    loss: float
    lr: float


class CurveReader:
    """Reads a training's curve again and again, each time only the events that are new."""

    def __init__(self, job: JobFolder) -> None:
        self._path = job.events_path
        self._offset_bytes = 0
        self._points: list[Point] = []

    def read(self, most: int) -> list[Point]:
        """The curve in at most `most` points; where there are more steps, the mean of neighbours."""
        events, self._offset_bytes = ev.read_events(self._path, self._offset_bytes)
        for event in events:
            if isinstance(event, ev.Step):
                self._points.append(Point(event.step, event.loss, event.lr))
            elif isinstance(event, ev.Started) and event.step is not None:
                self._forget_after(event.step)
        return thinned(self._points, most)

    def _forget_after(self, step: int) -> None:
        """A start from an earlier state does the steps after it again."""
        while self._points and self._points[-1].step > step:
            self._points.pop()


def thinned(points: list[Point], most: int) -> list[Point]:
    """At most `most` points: each the mean loss of as many neighbours, at the step of the last of them."""
    if len(points) <= most:
        return list(points)
    size = -(-len(points) // most)
    groups = (points[start : start + size] for start in range(0, len(points), size))
    return [Point(group[-1].step, sum(p.loss for p in group) / len(group), group[-1].lr) for group in groups]
