"""The last results of something that takes a while: several open pages ask for the same every second.

Older ones are forgotten: those of versions that were deleted, or that nobody looks at any more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Key = TypeVar("Key")
Made = TypeVar("Made")

_MOST = 8
_MOST_BY_KEY = 24
"""Versions that pages show at the same time."""


class Remembered(Generic[Made]):
    """Safe to use from several threads. What was made is shared, so nobody changes it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: list[tuple[object, object, Made]] = []

    def of(
        self, source: object, key: object, make: Callable[[], Made], is_lasting: Callable[[Made], bool] = lambda _: True
    ) -> Made:
        """What `make` gave for this very `source` (compared by identity, for it is large) and an equal `key`.

        What is not lasting, such as a failure that may pass, is made anew each time.
        """
        with self._lock:
            for kept_source, kept_key, made in self._kept:
                if kept_source is source and kept_key == key:
                    return made
        made = make()
        if not is_lasting(made):
            return made
        with self._lock:
            self._kept = [(source, key, made), *self._kept[: _MOST - 1]]
        return made


class RememberedByKey(Generic[Key, Made]):
    """Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[Key, Made] = {}

    def of(self, key: Key) -> Made | None:
        """What was put there last; None for what is not known any more."""
        with self._lock:
            if key not in self._kept:
                return None
            self._kept[key] = made = self._kept.pop(key)  # the last one now
            return made

    def put(self, key: Key, made: Made) -> None:
        with self._lock:
            self._kept.pop(key, None)
            self._kept[key] = made
            if len(self._kept) > _MOST_BY_KEY:
                del self._kept[next(iter(self._kept))]
