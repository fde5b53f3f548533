"""The processes that share a training, and the line between them, on which each hears at once that another is gone.

The first process reads requests and writes the job's folder. It starts the others itself, or `accelerate launch` has
started all of them, also on several machines, and says in the environment which is which. What they compute together
is in `processes`; here is no torch.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener, wait
from typing import NamedTuple

import msgspec

from lora_train.core import events as ev
from lora_train.core.errors import TrainToolsError
from lora_train.core.jobs import JobFolder
from lora_train.core.places import Place, place_of

_LOOK_EVERY_S = 0.5
_GRACE_S = 5.0
"""So long a process that hears of an end may take to come to its own, before it is ended."""
_CAUSE_FIRST_S = 2.0
"""What one process's end does to another is told this much later than the end itself."""
_LINE = "LORA_TRAIN_LINE"
_OVER = b"over"
_HINT = "Resume goes on from the last saved state, with as many processes as you like."
_NO_WINDOW = subprocess.CREATE_NO_WINDOW if sys.platform == "win32" else 0


class Address(NamedTuple):
    """Where the first process listens, and the word that lets in."""

    host: str
    port: int
    word: str


class Team:
    """This process's side of the line."""

    def __init__(self, place: Place, job: JobFolder) -> None:
        self.place = place
        self.events = ev.EventWriter(job.events_path) if self.is_first else Unheard()
        self.job = job
        self._children: Sequence[subprocess.Popen[bytes]] = ()
        self._numbers: dict[Connection, int] = {}
        """Of the process at the other end."""
        self._is_open = False
        self._called: set[int] = set()
        """Those that have ever been on the line: they tell there how they end."""
        self._listener: Listener | None = None
        self._lost: ev.Failed | None = None
        self._heard = threading.Event()
        self._ending = threading.Event()
        """This process comes to its own end: nobody has to end it."""
        self._left = threading.Event()

    @property
    def is_first(self) -> bool:
        return self.place.is_first

    @property
    def has_line(self) -> bool:
        return self._is_open

    def begin(self) -> None:
        """Where nobody else has started the team, its first process starts the others; they call it."""
        if told := os.environ.get(_LINE):
            host, port, word = told.split()
            self.join(Address(host=host, port=int(port), word=word))
        elif self.is_first and place_of(os.environ) is None:
            self._start_others()

    def _start_others(self) -> None:
        address = self.open("127.0.0.1")
        os.environ.update(_first_environment(self.place.count))
        self._children = [
            subprocess.Popen(
                [sys.executable, "-m", "lora_train.worker", str(self.job.path)],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "RANK": str(number), "LOCAL_RANK": str(number), _LINE: " ".join(map(str, address))},
                creationflags=_NO_WINDOW,
            )
            for number in range(1, self.place.count)
        ]

    def open(self, host: str) -> Address:
        """The first process listens for the others."""
        word = secrets.token_hex(16)
        try:
            self._listener = Listener((host, 0), backlog=self.place.count, authkey=word.encode())
        except OSError:  # behind a router a machine does not have the address that others know it by
            self._listener = Listener(("", 0), backlog=self.place.count, authkey=word.encode())
        self._is_open = True
        threading.Thread(target=self._accept, args=(self._listener,), name="line in", daemon=True).start()
        threading.Thread(target=self._watch, name="line", daemon=True).start()
        return Address(host, int(self._listener.address[1]), word)

    def join(self, address: Address) -> None:
        """Another process calls the first one."""
        connection = Client((address.host, address.port), authkey=address.word.encode())
        _notice_silence(connection)
        connection.send_bytes(str(self.place.number).encode())
        self._numbers[connection] = 0
        self._is_open = True
        threading.Thread(target=self._watch, name="line", daemon=True).start()

    def cause_of(self, error: Exception, own: ev.Failed) -> ev.Failed:
        """What is to be told of this process's failure: where it is but what another's end did, that one."""
        self._ending.set()
        if isinstance(error, RuntimeError) and not isinstance(error, TrainToolsError):
            if not self.is_first:
                time.sleep(_CAUSE_FIRST_S)
            elif self._heard.wait(_CAUSE_FIRST_S) and self._lost is not None:
                return self._lost
        return own

    def leave(self, failed: ev.Failed | None) -> None:
        """The last word to the others; the first process waits for those that it started."""
        self._ending.set()
        self._left.set()
        word = _OVER if failed is None else msgspec.json.encode(failed)
        for connection in list(self._numbers):
            with suppress(OSError):
                connection.send_bytes(word)
            connection.close()
        if self._listener is not None:
            self._listener.close()
        self._end_children(_GRACE_S * 2)

    def _accept(self, listener: Listener) -> None:
        while not self._left.is_set():
            try:
                connection = listener.accept()
                _notice_silence(connection)
                number = int(connection.recv_bytes())
                self._called.add(number)
                self._numbers[connection] = number
            except (AuthenticationError, EOFError, ValueError):  # a stranger
                continue
            except OSError:  # closed, because it is over
                return

    def _watch(self) -> None:
        while not self._left.is_set():
            try:
                self._look()
            except OSError:  # closed meanwhile
                return

    def _look(self) -> None:
        open_ones = list(self._numbers)
        if not open_ones:
            self._left.wait(_LOOK_EVERY_S)
        for connection in wait(open_ones, _LOOK_EVERY_S) if open_ones else []:
            assert isinstance(connection, Connection)
            self._hear(connection)
        for number, child in enumerate(self._children, start=1):
            if number not in self._called and child.poll() not in (None, 0):
                self._end(self._gone(number))

    def _hear(self, connection: Connection) -> None:
        number = self._numbers[connection]
        try:
            word = connection.recv_bytes()
        except (EOFError, OSError):
            word = b""
        del self._numbers[connection]
        if self._left.is_set():
            return
        if word != _OVER:
            self._end(self._told(number, word) if word else self._gone(number))
        elif number == 0:
            self._end(None)

    def _gone(self, number: int) -> ev.Failed:
        message = f"Process {number + 1} of {self.place.count} ended without a word (killed, or out of memory)."
        return ev.Failed(error="JobError", message=message, hint=_HINT)

    def _told(self, number: int, word: bytes) -> ev.Failed:
        failed = msgspec.json.decode(word, type=ev.Failed)
        failed.message = f"Process {number + 1} of {self.place.count} failed: {failed.message}"
        failed.hint = failed.hint or _HINT
        return failed

    def _end(self, failed: ev.Failed | None) -> None:
        """Another is gone, and nothing can go on: a product that waits for it can't be called off, only ended."""
        self._lost = self._lost or failed
        self._heard.set()
        is_lone = failed is not None and not self.is_first  # nobody is left to hear of its own end
        if not is_lone and self._ending.wait(_GRACE_S):
            return
        if failed is not None:
            self.events.write(failed)
            sys.stderr.write(f"{failed.message}\n")
            sys.stderr.flush()
        self._end_children(0.0)
        os._exit(0 if failed is None else 1)

    def _end_children(self, patience_s: float) -> None:
        until = time.monotonic() + patience_s
        for child in self._children:
            try:
                child.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


class Unheard(ev.EventWriter):
    """Takes the events of a process that is not the first: they are the first one's too."""

    def __init__(self) -> None: ...

    def write(self, *events: ev.Event) -> None: ...

    def beat(self) -> None: ...

    def close(self) -> None: ...


_ALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 6}


def _notice_silence(connection: Connection) -> None:
    """Also of a machine that was switched off, which says no goodbye: the line breaks after about 1.5 minutes."""
    own = socket.socket(fileno=connection.fileno())
    own.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _ALIVE.items():
        if hasattr(socket, name):
            own.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    own.detach()


def _first_environment(count: int) -> dict[str, str]:
    """What `accelerate launch` would tell the first of `count` processes, who share the cores of this machine."""
    told = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
    }
    if "OMP_NUM_THREADS" not in os.environ:
        told["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // count))
    if sys.platform == "win32":
        told["USE_LIBUV"] = "0"  # PyTorch's own store: its builds for Windows have no other
    return told


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
