"""The validations of a training, read from its events, and where over-training begins."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_train.core import events as ev
from lora_train.core.curves import ValidationPoint, turning_point
from lora_train.core.jobs import JobFolder, StatusReader
from tests.unit.core.folding import status_of


def points(*losses: float) -> list[ValidationPoint]:
    return [ValidationPoint(10 * index, loss, 0.3) for index, loss in enumerate(losses)]


def test_what_is_done_again_counts_once(tmp_path: Path) -> None:
    """A start at step 10 forgets the validation of step 20; the one of step 10 comes again and replaces itself."""
    job = JobFolder(tmp_path)
    writer = ev.EventWriter(job.events_path)
    writer.write(*(ev.Validated(step, loss, 0.3) for step, loss in ((0, 0.3), (10, 0.2), (20, 0.1))))
    reader = StatusReader(job)
    assert [point.step for point in reader.validations()] == [0, 10, 20]
    writer.write(ev.Started(pid=1, step=10), ev.Validated(10, 0.2, 0.3), ev.Validated(20, 0.15, 0.3))
    writer.close()
    assert reader.validations() == [(0, 0.3, 0.3), (10, 0.2, 0.3), (20, 0.15, 0.3)]
    status = StatusReader(job).read()
    assert (status.validation_loss, status.base_validation_loss) == (0.15, 0.3)


def test_a_start_from_an_earlier_state_forgets_what_was_measured_after_it(tmp_path: Path) -> None:
    """The worker tells again which validation its state knows."""
    told: list[ev.Event] = [ev.Validated(10, 0.2, 0.3), ev.Validated(20, 0.1, 0.3), ev.Started(pid=1, step=15)]
    assert status_of(told).validation_loss is None
    assert status_of([*told, ev.Validated(10, 0.2, 0.3)]).validation_loss == 0.2


@pytest.mark.parametrize(
    ("losses", "step"),
    [
        ((0.3, 0.2, 0.15, 0.16, 0.17), 20),
        ((0.3, 0.2, 0.15, 0.16), None),  # one worse validation is not enough
        ((0.3, 0.2, 0.15, 0.151, 0.17), None),  # within 1 %
        ((0.3, 0.2, 0.1, 0.09), None),
        ((0.3, 0.31, 0.33), None),  # it never got better than the base model
        ((), None),
    ],
)
def test_where_it_turns(losses: tuple[float, ...], step: int | None) -> None:
    turn = turning_point(points(*losses))
    assert (turn.step if turn else None) == step
