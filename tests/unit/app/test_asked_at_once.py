from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from lora_train.app.asked_at_once import AskedAtOnce

_LIMIT_S = 10


class Maker:
    """Makes numbers, each only when it is let."""

    def __init__(self) -> None:
        self.begun = 0
        self.go_on = threading.Semaphore(0)

    def __call__(self) -> int:
        self.begun += 1
        number = self.begun
        assert self.go_on.acquire(timeout=_LIMIT_S)
        return number


def wait_until(is_true: Callable[[], bool]) -> None:
    until = time.monotonic() + _LIMIT_S
    while not is_true():
        assert time.monotonic() < until
        time.sleep(0.001)


def test_who_asks_meanwhile_gets_what_is_made_next() -> None:
    asked, make = AskedAtOnce[int](), Maker()
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(asked.of, "key", make)
        wait_until(lambda: make.begun == 1)
        later = [pool.submit(asked.of, "key", make) for _ in range(5)]
        other = pool.submit(asked.of, "other key", lambda: 70)
        assert other.result(_LIMIT_S) == 70, "nobody waits for another question"
        time.sleep(0.05)  # all five are in
        make.go_on.release()
        assert first.result(_LIMIT_S) == 1
        make.go_on.release()
        assert [answer.result(_LIMIT_S) for answer in later] == [2] * 5
    make.go_on.release()
    assert asked.of("key", make) == 3, "nothing is kept"
    assert (asked._next, asked._turns) == ({}, {})


def test_all_are_told_what_went_wrong() -> None:
    asked, begin = AskedAtOnce[int](), threading.Event()

    def fail() -> int:
        begin.wait(_LIMIT_S)
        raise ValueError("no")

    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(asked.of, 1, fail) for _ in range(4)]
        begin.set()
        for answer in answers:
            with pytest.raises(ValueError, match="no"):
                answer.result(_LIMIT_S)
    assert asked.of(1, lambda: 5) == 5
