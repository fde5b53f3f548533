"""Work that comes again and again with inputs of the same shapes: recorded once, and replayed from then on.

A replay costs the host one call instead of thousands. What is recorded may read nothing but its inputs and tensors that
stay where they are (weights, gradients, optimizer state), and may leave nothing behind but in such tensors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch

RUNS_BEFORE = 3
"""Work runs so often as it is first: libraries choose their kernels then, and optimizers make their state."""
FEWEST_REPLAYS = 10
"""A recording stops the device and goes through the work once more; with fewer replays to come that hardly pays."""


class Recorder(Protocol):
    """What can record the work of a device; for CUDA see `graphs.CudaRecorder`."""

    def run(self, work: Callable[[], torch.Tensor | None]) -> torch.Tensor | None:
        """Do the work, where and as it will be recorded later."""
        ...

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Returns what does the work again, on the same tensors. The work itself is not done."""
        ...


class _Recording(NamedTuple):
    replay: Callable[[], None]
    inputs: Any
    result: torch.Tensor


class Recordings:
    """All recordings of a run.

    `recorder` is None where nothing is recorded: then work is simply done. `tell` hears, once, why recording ended.
    """

    def __init__(
        self,
        recorder: Recorder | None = None,
        device: torch.device | None = None,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._recorder = recorder
        self._device = device or torch.device("cpu")
        self._tell = tell
        self._made: dict[Any, _Recording] = {}
        self._seen: Counter[Any] = Counter()
        self._steps = 0
        self._steps_left = 0
        self.pauses = False
        """While it is set nothing is recorded, and what was recorded before is replayed."""

    @property
    def is_on(self) -> bool:
        """Whether work is recorded: gradients then stay in the same memory from step to step."""
        return self._recorder is not None

    @property
    def count(self) -> int:
        """How many recordings there are."""
        return len(self._made)

    def begin_step(self, steps_left: int) -> None:
        """Called before each step; `steps_left` are those to come, with this one."""
        self._steps += 1
        self._steps_left = steps_left

    def do(self, name: str, work: Callable[..., Any], inputs: tuple[Any, ...]) -> Any:
        """`work(*inputs)`, done or replayed; it returns a scalar or None.

        `inputs` are tensors, numbers, None, and tuples and lists of them. In a recording each number is a scalar on
        the device (float32), so that it may be another one at every replay.
        """
        if self._recorder is None:
            return work(*inputs)
        key = (name, _shapes(inputs))
        self._seen[key] += 1
        made = self._made.get(key)
        if made is not None:
            _fill(made.inputs, inputs)
        elif self._pays(key):
            made = self._record(self._recorder, key, work, inputs)
        if made is not None:
            made.replay()
            return made.result.clone()
        # Not `self._recorder`: a recording that failed has ended them all.
        return self._recorder.run(lambda: work(*inputs)) if self.is_on else work(*inputs)

    def forget(self) -> None:
        """Drop all recordings, and the memory that they hold: what they read or write is about to move.

        Shapes are recorded anew when they have come up often enough again.
        """
        self._made.clear()
        self._seen.clear()
        self._steps = 0

    def end(self, reason: str) -> None:
        """Record nothing any more, and drop what was recorded; `reason` is told, as a part of a sentence."""
        if self.is_on:
            self._recorder = None
            self.forget()
            self._tell(f"Steps run without CUDA graphs: {reason}.")

    def _pays(self, key: Any) -> bool:
        """Whether this work came up often enough, and will, if it goes on so to the end of the run."""
        seen = self._seen[key]
        return not self.pauses and seen > RUNS_BEFORE and seen / self._steps * self._steps_left >= FEWEST_REPLAYS

    def _record(
        self, recorder: Recorder, key: Any, work: Callable[..., Any], inputs: tuple[Any, ...]
    ) -> _Recording | None:
        own = _own(inputs, self._device)
        result = torch.zeros((), device=self._device)

        def onto_own() -> None:
            found = work(*own)
            if found is not None:
                result.copy_(found)

        try:
            self._made[key] = _Recording(recorder.record(onto_own), own, result)
        except Exception as error:  # whatever a library does that can't be recorded
            cause = error.__context__ or error  # the end of a capture fails too, and knows nothing of the reason
            self.end(f"recording failed ({type(cause).__name__}: {(str(cause) or 'no reason given').splitlines()[0]})")
        return self._made.get(key)


def _shapes(value: Any) -> Any:
    """What two inputs must have in common for one recording; hashable."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.dtype
    if isinstance(value, (tuple, list)):
        return tuple(map(_shapes, value))
    return None if value is None else float


def _own(value: Any, device: torch.device) -> Any:
    """The inputs of a recording: copies, numbers as scalars on the device."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, (tuple, list)):
        parts = [_own(part, device) for part in value]
        if isinstance(value, list):
            return parts
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return None if value is None else torch.full((), float(value), device=device)


def _fill(own: Any, value: Any) -> None:
    """Copy new inputs of the same shapes into those of a recording."""
    if isinstance(own, torch.Tensor):
        if isinstance(value, torch.Tensor):
            own.copy_(value)
        else:
            own.fill_(value)
    elif own is not None:
        for own_part, part in zip(own, value, strict=True):
            _fill(own_part, part)
