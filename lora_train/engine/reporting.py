"""What the loop tells and hears, without ever waiting: losses go out, `stop` and `pause` come in.

Losses stay on the device until a copy of them has arrived by itself; a thread writes events, touches the heartbeat
and looks for requests.
"""

from __future__ import annotations

import threading
import time
from typing import NamedTuple

import torch

from lora_train.core.events import EventWriter, Phase, Step
from lora_train.core.jobs import JobFolder, Request

_SEND_EVERY_S = 0.5
_LOOK_EVERY_S = 0.2
_BEAT_EVERY_S = 2.0


class _Told(NamedTuple):
    step: int
    epoch: int
    lr: float
    loss: torch.Tensor


class _Parcel(NamedTuple):
    """Losses on their way from the device, and the event that says when they have arrived (None: at once)."""

    told: list[_Told]
    losses: torch.Tensor
    arrived: torch.cuda.Event | None
    s_per_step: float


class RequestedEnd(Exception):  # noqa: N818  (no error: the person asked for it)
    """Raised outside the loop when `stop` or `pause` is asked for."""

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        self.request: Request = request


class Reporter:
    """Between the loop and the job's folder. Use as a context manager: the thread ends with it."""

    def __init__(self, job: JobFolder, events: EventWriter) -> None:
        self.events = events
        self.request: Request | None = None
        self.bad_step: int | None = None
        """The first step whose loss was not finite, until `forget_bad_step`."""
        self._job = job
        self._told: list[_Told] = []
        self._parcels: list[_Parcel] = []
        self._lock = threading.Lock()
        self._sent_at = time.monotonic()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="reporter", daemon=True)

    def __enter__(self) -> Reporter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        self._write_arrived()

    def phase(self, name: str, done: int = 0, total: int = 0) -> None:
        """Tell what is going on outside the loop. Raises RequestedEnd when the person asked to end."""
        self.events.write(Phase(name=name, done=done, total=total))
        if self.request is not None:
            raise RequestedEnd(self.request)

    def step(self, *, step: int, epoch: int, lr: float, loss: torch.Tensor) -> None:
        """Take one step's loss (a scalar on the device). Returns at once."""
        self._told.append(_Told(step, epoch, lr, loss))
        if time.monotonic() - self._sent_at >= _SEND_EVERY_S:
            self._send()

    def restart_clock(self) -> None:
        """Don't count the time since the last step (a save, a preview) as a step's."""
        self.flush()
        self._sent_at = time.monotonic()

    def flush(self) -> None:
        """Wait until every loss told so far is written. Only where the loop stands still anyway."""
        self._send()
        with self._lock:
            parcels = list(self._parcels)
        for parcel in parcels:
            if parcel.arrived is not None:
                parcel.arrived.synchronize()
        self._write_arrived()

    def forget_bad_step(self) -> None:
        self.bad_step = None

    def _send(self) -> None:
        if not self._told:
            return
        now = time.monotonic()
        losses, arrived = torch.stack([told.loss for told in self._told]), None
        if losses.device.type == "cuda":
            host = torch.empty(losses.shape, dtype=losses.dtype, pin_memory=True)
            losses = host.copy_(losses, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        pace = (now - self._sent_at) / len(self._told)
        with self._lock:
            self._parcels.append(_Parcel(self._told, losses, arrived, pace))
        self._told, self._sent_at = [], now

    def _watch(self) -> None:
        beaten_at = 0.0
        while not self._end.wait(_LOOK_EVERY_S):
            self.request = self._job.requested()
            self._write_arrived()
            if time.monotonic() - beaten_at >= _BEAT_EVERY_S:
                self.events.beat()
                beaten_at = time.monotonic()

    def _write_arrived(self) -> None:
        with self._lock:
            while self._parcels:
                parcel = self._parcels[0]
                if parcel.arrived is not None and not parcel.arrived.query():
                    return
                del self._parcels[0]
                self._write(parcel)

    def _write(self, parcel: _Parcel) -> None:
        steps: list[Step] = []
        for told, loss in zip(parcel.told, parcel.losses.tolist(), strict=True):
            if loss != loss or loss in (float("inf"), float("-inf")):
                self.bad_step = self.bad_step or told.step
                continue  # JSON has no NaN; the roll-back tells of it in a note
            steps.append(Step(step=told.step, epoch=told.epoch, loss=loss, lr=told.lr, s_per_step=parcel.s_per_step))
        self.events.write(*steps)
