"""How much may be asked at once: passwords tried by one address, and calls that are worked on at the same time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

TRIES = 10
"""Wrong passwords in a row that an address may send at once."""
NEXT_TRY_S = 6.0
"""How long it then waits for each further one: ten in a minute."""
_ADDRESSES = 1000
"""That are remembered, the latest."""


class WrongPasswords:
    """Who has sent wrong passwords lately. Cookies and tokens are too long to be guessed, so they are not counted."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._free_at: dict[str, float] = {}
        """Address -> the time at which all its tries are forgotten."""

    def are_too_many(self, address: str) -> bool:
        """Whether the address has to wait before a password of it is looked at again."""
        return self._free_at.get(address, 0.0) - self._clock() > (TRIES - 1) * NEXT_TRY_S

    def note(self, address: str) -> None:
        """The address has sent a wrong password."""
        free_at = max(self._free_at.pop(address, 0.0), self._clock()) + NEXT_TRY_S
        self._free_at[address] = free_at
        if len(self._free_at) > _ADDRESSES:
            del self._free_at[next(iter(self._free_at))]


class Busy(Exception):  # noqa: N818  (an answer, not a failure)
    """So many calls wait already that another one is not taken."""


class Turns:
    """At most `at_once` calls are worked on at a time, and `waiting` wait for their turn.

    A host's server has about 40 threads for everything; its own page must always find some.
    """

    def __init__(self, at_once: int, waiting: int) -> None:
        self._semaphore = asyncio.Semaphore(at_once)
        self._places = at_once + waiting

    @asynccontextmanager
    async def turn(self) -> AsyncGenerator[None, None]:
        """Waits for a turn. Raises Busy where too many wait."""
        if self._places == 0:
            raise Busy
        self._places -= 1
        try:
            async with self._semaphore:
                yield
        finally:
            self._places += 1
