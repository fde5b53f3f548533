"""Takes the WebUI's model off the card while a training needs it, and always gives it back.

While it is parked nobody may make a picture: the host's functions that would are wrapped, and answer with a sentence.
Another checkpoint or VAE may be chosen, and is loaded when the card is free again. The host's queue lock is held only
while the model moves.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from lora_train.core.errors import TrainToolsError

_GIVE_BACK_TRIES = 5
_GIVE_BACK_PAUSE_S = 3.0
"""Between them; a worker's memory may take a moment to become free."""

_MARK = "_train_tools_guard"
_log = logging.getLogger(__name__)


class CardInUse(TrainToolsError):  # noqa: N818  (people see the name in front of the sentence)
    """A picture was asked for while a training has the card."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.status_code = 503  # both are read by the host's API when it answers for an exception
        self.detail = message


class Parking:
    """One WebUI's model.

    unload     moves it off the card
    reload     moves it back, and whether there is one: what was postponed makes no sense without
    lock       gives the host's queue lock
    refused    names what must not be called meanwhile: (module or other owner, attribute)
    postponed  names what is called when the model is back, if it was asked for meanwhile
    sentence   what the person is told who is refused
    """

    def __init__(
        self,
        *,
        unload: Callable[[], None],
        reload: Callable[[], bool],
        lock: Callable[[], AbstractContextManager[Any]],
        refused: Callable[[], list[tuple[Any, str]]],
        postponed: Callable[[], list[tuple[Any, str]]],
        sentence: Callable[[], str],
    ) -> None:
        self._unload = unload
        self._reload = reload
        self._lock = lock
        self._refused = refused
        self._postponed = postponed
        self._sentence = sentence
        self._mutex = threading.Lock()
        self._users = 0
        self._is_parked = False
        self._undo: list[Callable[[], None]] = []
        self._asked_for: dict[str, Callable[[], Any]] = {}
        self.is_waiting = False
        """Whether a training waits for the host to finish a picture."""

    @property
    def is_parked(self) -> bool:
        """Whether the model is off the card, and pictures are refused."""
        return self._is_parked

    @contextmanager
    def parked(self) -> Iterator[None]:
        """Park on entering, after the picture that is being made; give back on leaving. Several may be inside."""
        with self._mutex:
            if self._users == 0:
                self._park()
            self._users += 1
        try:
            yield
        finally:
            with self._mutex:
                self._users -= 1
                if self._users == 0:
                    self._give_back()

    def guard_again(self) -> None:
        """Wrap anew what another extension has put back to the original while the model is parked."""
        if self._is_parked:
            self._guard()

    def _park(self) -> None:
        self.is_waiting = True
        try:
            with self._lock():
                self.is_waiting = False
                self._is_parked = True
                try:
                    self._guard()
                    self._unload()
                except Exception:  # the host's own code; the training may still find enough room
                    _log.exception("The WebUI's model could not be taken off the card.")
                except BaseException:  # nobody will come to give it back
                    self._undo_all()
                    self._has_come_back()
                    raise
        finally:
            self.is_waiting = False

    def _give_back(self) -> None:
        with self._lock():
            self._undo_all()
            asked_for, self._asked_for = self._asked_for, {}
            if not self._has_come_back():
                return
            for name, call in asked_for.items():
                try:
                    call()
                except Exception:  # the host's own code
                    _log.exception("%s, asked for during the training, failed.", name)

    def _has_come_back(self) -> bool:
        """Move the model back, with some patience, and whether there is one on the card then."""
        for _ in range(_GIVE_BACK_TRIES - 1):
            try:
                return self._reload()
            except Exception as error:  # the host's own code, and the card may still be full
                _log.warning("The WebUI's model does not come back yet: %s", error)
                time.sleep(_GIVE_BACK_PAUSE_S)
        try:
            return self._reload()
        except Exception:  # as above
            _log.exception(
                "The WebUI's model could not be put back onto the card. Free some of its memory, and in Settings, "
                "Actions press Load SD checkpoint to VRAM from RAM."
            )
            return False

    def _guard(self) -> None:
        for owner, name in self._refused():
            self._wrap(owner, name, self._refuse)
        for owner, name in self._postponed():
            self._wrap(owner, name, functools.partial(self._postpone, name))

    def _refuse(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if args and hasattr(args[0], _MARK):  # one of ours, sent to the host's main thread
            return original(*args, **kwargs)
        raise CardInUse(self._sentence())

    def _postpone(self, name: str, original: Callable[..., Any], *_args: Any, **_kwargs: Any) -> None:
        self._asked_for[name] = original  # which then asks the settings what to load

    def _wrap(self, owner: Any, name: str, instead: Callable[..., Any]) -> None:
        """Have `instead(original, ...)` called while the model is parked."""
        original = getattr(owner, name, None)
        if original is None or hasattr(original, _MARK):
            return

        @functools.wraps(original)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            if self._is_parked:
                return instead(original, *args, **kwargs)
            return original(*args, **kwargs)  # another extension has kept this function

        setattr(guarded, _MARK, True)
        setattr(owner, name, guarded)

        def undo() -> None:
            if getattr(owner, name) is guarded:
                setattr(owner, name, original)

        self._undo.append(undo)

    def _undo_all(self) -> None:
        self._is_parked = False
        while self._undo:
            self._undo.pop()()
