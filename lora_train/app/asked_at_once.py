"""One answer for all who ask the same at the same time: many open pages ask for the same every second."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

Made = TypeVar("Made")


class AskedAtOnce(Generic[Made]):
    """Safe to use from several threads. What was made is shared, so nobody changes it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next: dict[Hashable, Future[Made]] = {}
        self._turns: dict[Hashable, threading.Lock] = {}

    def of(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What `make` gives for the key. It was never begun before it was asked for: who asks while it is being made
        gets what is made after that, together with all others who asked meanwhile. Raises what `make` raises.
        """
        with self._lock:
            is_first = key not in self._next
            answer = self._next.setdefault(key, Future())
            turn = self._turns.setdefault(key, threading.Lock())
        if is_first:
            with turn:
                with self._lock:
                    del self._next[key]
                try:
                    answer.set_result(make())
                except BaseException as error:
                    answer.set_exception(error)
                with self._lock:
                    if key not in self._next:  # nobody waits for this turn
                        del self._turns[key]
        return answer.result()
