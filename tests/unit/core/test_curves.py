"""The curve of a training, read again and again from its events."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_train.core import events as ev
from lora_train.core.curves import Point, thinned
from lora_train.core.jobs import JobFolder, StatusReader


@pytest.fixture
def job(tmp_path: Path) -> JobFolder:
    return JobFolder(tmp_path)


def tell(job: JobFolder, *events: ev.Event) -> None:
    writer = ev.EventWriter(job.events_path)
    writer.write(*events)
    writer.close()


def steps(first: int, last: int, lr: float = 1e-4) -> list[ev.Event]:
    return [ev.Step(step=n, epoch=1, loss=n / 10, lr=lr, s_per_step=0.1) for n in range(first, last + 1)]


def started(step: int | None) -> ev.Started:
    return ev.Started(pid=1, total_steps=100, epochs=1, step=step)


def test_before_the_first_step(job: JobFolder) -> None:
    reader = StatusReader(job)
    assert reader.curve(400) == []
    tell(job, started(None), ev.Phase("loading the base model"), started(0))
    assert reader.curve(400) == []


def test_it_grows(job: JobFolder) -> None:
    reader = StatusReader(job)
    tell(job, started(0), *steps(1, 2))
    assert reader.curve(400) == [Point(1, 0.1, 1e-4), Point(2, 0.2, 1e-4)]
    assert reader.curve(400) == [Point(1, 0.1, 1e-4), Point(2, 0.2, 1e-4)]
    with job.events_path.open("ab") as stream:
        stream.write(b'{"kind":"step","step":3,"epoch":1,"loss":0.3,')
    assert len(reader.curve(400)) == 2, "half a line waits"
    with job.events_path.open("ab") as stream:
        stream.write(b'"lr":0.0001,"s_per_step":0.1}\n')
    assert reader.curve(400)[-1] == Point(3, 0.3, 1e-4)


def test_steps_that_are_done_again_are_told_once(job: JobFolder) -> None:
    """After a kill, or a roll-back from a NaN, the training goes on from an earlier state."""
    reader = StatusReader(job)
    tell(job, started(0), *steps(1, 30))
    assert len(reader.curve(400)) == 30
    tell(job, started(None))
    assert len(reader.curve(400)) == 30, "it does not know yet where it goes on"
    tell(job, started(20), *steps(21, 25, lr=5e-5))
    points = reader.curve(400)
    assert [point.step for point in points] == [*range(1, 26)]
    assert [point.lr for point in points[19:21]] == [1e-4, 5e-5]


def test_thinned_by_hand() -> None:
    points = [Point(n, float(n), n / 100) for n in range(1, 8)]
    assert thinned(points, 7) == points
    assert thinned(points, 3) == [Point(3, 2.0, 0.03), Point(6, 5.0, 0.06), Point(7, 7.0, 0.07)]
    assert thinned(points, 1) == [Point(7, 4.0, 0.07)]
    assert thinned([], 3) == []


@pytest.mark.parametrize("count", [1, 399, 400, 401, 799, 800, 801, 12_345])
def test_never_more_than_asked_for_and_always_up_to_the_last(count: int) -> None:
    found = thinned([Point(n, 1.0, 0.1) for n in range(1, count + 1)], 400)
    assert min(count, 200) <= len(found) <= 400
    assert found[-1].step == count
    assert all(point.loss == 1.0 for point in found)
