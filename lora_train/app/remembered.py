"""The last results of something that takes a while: several open pages ask for the same every second."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Made = TypeVar("Made")

_MOST = 8


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
