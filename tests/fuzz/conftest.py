"""What holds for every case of bad input, and how a valid file becomes a damaged one.

A case may succeed or raise one of `core.errors`, in words that can be shown; it takes less than `LONGEST_S` of the
processor. Anything else is a fault of ours. Seeds are fixed, so that a case that failed once fails again.
"""

from __future__ import annotations

import importlib
import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import SearchStrategy

from lora_train.core.errors import TrainToolsError

LONGEST_S = 5.0
"""Of the processor's time: the machine may have more to do."""
LONGEST_WAIT_S = 60.0
"""Of the clock's, for what waits and works nothing."""
LONGEST_MESSAGE = 2_000
"""Characters: a message that nobody can read to its end says nothing."""


class HungError(BaseException):
    """A case took longer than it may. No `Exception`: nothing in the product may catch it."""


class Guard:
    """Runs one case after the other and holds it to what is promised."""

    def __init__(self) -> None:
        self.cases = 0
        self.refused = 0
        self.slowest_s = 0.0

    def __call__(self, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """What the call returns; the error that it raises, where that is one for a person."""
        self.cases += 1
        begun = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, LONGEST_S)
        signal.setitimer(signal.ITIMER_REAL, LONGEST_WAIT_S)
        try:
            return call(*arguments, **named)
        except TrainToolsError as error:
            refusal = error
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            self.slowest_s = max(self.slowest_s, time.process_time() - begun)
        self.refused += 1
        require_readable(refusal)
        return refusal


def require_readable(error: TrainToolsError) -> None:
    """A sentence, short enough to be read, that a log, a page and a JSON answer can take."""
    problems = getattr(error, "problems", None) or [error.message]
    assert all(problem.strip() for problem in problems), "an empty message"
    length, beginning = len(error.message), error.message[:200]
    assert length <= LONGEST_MESSAGE, f"a message too long to be read: {beginning!a}"
    for text in (error.message, error.hint):
        msgspec.json.encode(text)
        json.dumps(text)
        text.encode("utf-8")


@pytest.fixture
def guard(count: Callable[[str, int], None]) -> Iterator[Guard]:
    def give_up(_signal: int, _frame: FrameType | None) -> None:
        raise HungError

    before = signal.signal(signal.SIGPROF, give_up), signal.signal(signal.SIGALRM, give_up)
    guard = Guard()
    yield guard
    signal.signal(signal.SIGPROF, before[0])
    signal.signal(signal.SIGALRM, before[1])
    count("cases", guard.cases)
    count("refused", guard.refused)


@pytest.fixture
def each(share: Callable[[int], int]) -> Callable[..., None]:
    """`each(strategy, most, case)`: hypothesis gives the case its values, the same ones each time."""

    def run(strategy: SearchStrategy[Any], most: int, case: Callable[[Any], None]) -> None:
        def one(value: Any) -> None:
            case(value)

        chosen = settings(
            max_examples=share(most),
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.explicit, Phase.generate],
        )
        chosen(given(value=strategy)(one))()

    return run


@pytest.fixture(scope="session")
def odd() -> Any:
    """`tests/assets/odd_values.py`."""
    return _asset("odd_values")


@pytest.fixture(scope="session")
def hostile_pickles() -> Any:
    """`tests/assets/hostile_pickles.py`."""
    return _asset("hostile_pickles")


def _asset(name: str) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[1] / "assets")
        return importlib.import_module(name)


@pytest.fixture(scope="session")
def damaged() -> Callable[[bytes, Random], bytes]:
    """Makes of the bytes of a valid file those of a damaged one."""
    return _damaged


_TELLING = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)


def _damaged(raw: bytes, random: Random) -> bytes:
    """One to four of: bits flipped, bytes cut out, put in, repeated or moved, a length or offset made another."""
    changed = bytearray(raw)
    for _ in range(random.choice((1, 1, 2, 4))):
        place = random.randrange(len(changed) + 1)
        length = random.choice((1, 2, 4, 8, 16, 100, 1000))
        match random.randrange(7):
            case 0 if place < len(changed):
                changed[place] ^= 1 << random.randrange(8)
            case 1:
                del changed[place : place + length]
            case 2:
                changed[place:place] = random.randbytes(length)
            case 3:
                changed[place:place] = changed[place : place + length]
            case 4:
                source = random.randrange(len(changed) + 1)
                changed[place : place + length] = changed[source : source + length]
            case 5:
                size = random.choice((1, 2, 4, 8))
                number = random.choice(_TELLING) % 256**size
                changed[place : place + size] = number.to_bytes(size, random.choice(("little", "big")))
            case _:
                del changed[place:]
    return bytes(changed)
