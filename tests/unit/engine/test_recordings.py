"""What is recorded, when, and that a replay does the work on the new inputs: without a GPU, on a tape."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch

from lora_train.engine.recordings import FEWEST_REPLAYS, RUNS_BEFORE, Recordings


class Inputs(NamedTuple):
    numbers: torch.Tensor
    more: list[torch.Tensor]
    none: None = None


class Sums:
    """Adds a function of its inputs to a tensor that stays where it is, and returns a scalar."""

    def __init__(self) -> None:
        self.total = torch.zeros(2)
        self.calls = 0

    def work(self, inputs: Inputs, factor: float | torch.Tensor) -> torch.Tensor:
        self.calls += 1
        found = inputs.numbers.sum() * factor + inputs.more[0].sum()
        self.total += found
        return found


def inputs(seed: int, size: int = 3) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    return Inputs(torch.randn(size, generator=generator), [torch.randn(2, 2, generator=generator)])


@pytest.fixture
def recorder(tapes: Any) -> Any:
    return tapes.TapeRecorder()


def make(recorder: Any, notes: list[str] | None = None) -> Recordings:
    return Recordings(recorder, torch.device("cpu"), ([] if notes is None else notes).append)


def run(recordings: Recordings, sums: Sums, steps: int, total: int, size: int = 3) -> list[float]:
    """The results of the first steps of a run of `total`."""
    found: list[float] = []
    for step in range(steps):
        recordings.begin_step(total - step)
        found.append(recordings.do("sum", sums.work, (inputs(step, size), 0.5 + step)).item())
    return found


def test_replays_give_what_the_work_gives(recorder: Any) -> None:
    plain, recorded = Sums(), Sums()
    wanted = run(Recordings(), plain, 20, 100)
    found = run(make(recorder), recorded, 20, 100)
    assert found == pytest.approx(wanted, rel=1e-6)
    torch.testing.assert_close(recorded.total, plain.total)
    assert (recorder.runs, recorder.recordings, recorder.replays) == (RUNS_BEFORE, 1, 20 - RUNS_BEFORE)
    assert recorded.calls == RUNS_BEFORE + 1, "a replay runs none of the work's Python"


def test_results_are_no_memory_of_the_recording(recorder: Any) -> None:
    recordings, sums = make(recorder), Sums()
    run(recordings, sums, 5, 100)
    first = recordings.do("sum", sums.work, (inputs(1), 1.0))
    before = first.item()
    recordings.do("sum", sums.work, (inputs(2), 1.0))
    assert first.item() == before


def test_every_shape_and_kind_of_work_has_its_own_recording(recorder: Any) -> None:
    recordings, sums = make(recorder), Sums()
    for step in range(20):
        recordings.begin_step(1000)
        for size in (3, 4):
            recordings.do("sum", sums.work, (inputs(step, size), 1.0))
        recordings.do("other", sums.work, (inputs(step), 1.0))
    assert recorder.recordings == recordings.count == 3


@pytest.mark.parametrize(("left", "is_recorded"), [(FEWEST_REPLAYS - 1, False), (FEWEST_REPLAYS, True)])
def test_nothing_is_recorded_that_hardly_comes_again(recorder: Any, left: int, is_recorded: bool) -> None:
    recordings, sums = make(recorder), Sums()
    for step in range(RUNS_BEFORE + 1):
        recordings.begin_step(left + RUNS_BEFORE - step)
        recordings.do("sum", sums.work, (inputs(step), 1.0))
    assert bool(recordings.count) == is_recorded


def test_nothing_is_recorded_while_it_pauses(recorder: Any) -> None:
    recordings, sums = make(recorder), Sums()
    for step in range(2 * RUNS_BEFORE):
        recordings.pauses = step < 2 * RUNS_BEFORE - 1
        assert recordings.count == 0
        recordings.begin_step(100)
        recordings.do("sum", sums.work, (inputs(step), 1.0))
    assert recordings.count == 1


def test_a_shape_that_is_rare_stays_as_it_is(recorder: Any) -> None:
    """Every 20th step of 120 has it: at its fourth time, step 80, 2 more are to be expected."""
    recordings, sums = make(recorder), Sums()
    for step in range(120):
        recordings.begin_step(120 - step)
        recordings.do("sum", sums.work, (inputs(step, 4 if step % 20 == 19 else 3), 1.0))
    assert recordings.count == 1
    assert recorder.runs == RUNS_BEFORE + 6


def test_what_can_not_be_recorded_is_told_once_and_done_as_before(recorder: Any) -> None:
    notes: list[str] = []
    recordings, plain, recorded = make(recorder, notes), Sums(), Sums()

    class Asking(Sums):
        def work(self, inputs: Inputs, factor: float | torch.Tensor) -> torch.Tensor:
            if inputs.numbers[0].item() > 100:  # a CUDA graph can't ask
                return super().work(inputs, -factor)
            return super().work(inputs, factor)

    recorded = Asking()
    found = run(recordings, recorded, 20, 100)
    assert found == run(Recordings(), plain, 20, 100)
    assert torch.equal(recorded.total, plain.total), "the recording that failed did nothing"
    (note,) = notes
    assert note.startswith("Steps run without CUDA graphs: recording failed (RuntimeError: operation not permitted")
    assert note.endswith(").")
    assert not recordings.is_on
    assert recordings.count == 0


def test_forgotten_work_is_recorded_anew(recorder: Any) -> None:
    recordings, sums = make(recorder), Sums()
    run(recordings, sums, 6, 100)
    recordings.forget()
    sums.total = torch.zeros(2)  # somewhere else in memory
    found = run(recordings, sums, 6, 100)
    assert recorder.recordings == 2
    assert recorder.runs == 2 * RUNS_BEFORE
    torch.testing.assert_close(sums.total, torch.full((2,), sum(found)))


def test_a_reason_ends_recording_before_it_began(recorder: Any) -> None:
    notes: list[str] = []
    recordings = make(recorder, notes)
    recordings.end("dropout is drawn anew for every layer")
    recordings.end("another reason")
    run(recordings, Sums(), 10, 100)
    assert notes == ["Steps run without CUDA graphs: dropout is drawn anew for every layer."]
    assert (recorder.runs, recorder.recordings) == (0, 0)
