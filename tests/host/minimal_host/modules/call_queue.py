"""One picture at a time, in the order of asking."""

from __future__ import annotations

import html
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from modules import shared


class FirstComeLock:
    """Not re-entrant."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._is_held = False
        self._waiting: deque[threading.Event] = deque()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def locked(self) -> bool:
        return self._is_held

    def __enter__(self) -> None:
        with self._mutex:
            if not self._is_held:
                self._is_held = True
                return
            turn = threading.Event()
            self._waiting.append(turn)
        turn.wait()

    def __exit__(self, *_: object) -> None:
        with self._mutex:
            if self._waiting:
                self._waiting.popleft().set()  # stays held, by the next one
            else:
                self._is_held = False


queue_lock = FirstComeLock()


def wrap_queued_call(function: Callable[..., Any]) -> Callable[..., Any]:
    def queued(*args: Any, **kwargs: Any) -> Any:
        with queue_lock:
            return function(*args, **kwargs)

    return queued


def wrap_gradio_gpu_call(function: Callable[..., Any], extra_outputs: list[Any]) -> Callable[..., Any]:
    """The last output is HTML; an exception becomes that, with the extra outputs before it."""

    def call(*args: Any) -> Any:
        try:
            with queue_lock:
                shared.state.begin(function.__name__)
                return function(*args)
        except Exception as error:
            print(f"*** Error completing request: {type(error).__name__}: {error}")
            return (*extra_outputs, f"<div class='error'>{html.escape(f'{type(error).__name__}: {error}')}</div>")
        finally:
            shared.state.end()

    return call
