"""How far something long is: told by what does it, deep below, to whoever waits for it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar

_listener: ContextVar[Callable[[int, int], None] | None] = ContextVar("listener", default=None)


class StopAskedForError(Exception):
    """Raised by `tell` where the person wants no more. Whoever tells puts it into words: what is done, what is not."""


def tell(done: int, total: int) -> None:
    """`done` of `total` things are done. Raises StopAskedForError; without a listener nobody hears it."""
    listener = _listener.get()
    if listener is not None:
        listener(done, total)


@contextmanager
def telling(listener: Callable[[int, int], None]) -> Generator[None, None, None]:
    """What this thread tells within the block goes to `listener`."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
