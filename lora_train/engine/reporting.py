"""What the loop tells and hears, without ever waiting: losses go out, `stop` and `pause` come in.

Losses stay on the device until a copy of them has arrived by itself; a thread writes events, touches the heartbeat
and looks for requests.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import suppress
from typing import NamedTuple

import torch

from lora_train.core.events import EventWriter, Note, Phase, Step
from lora_train.core.jobs import JobFolder, Request, RequestedEnd, StatusReader
from lora_train.core.limits import read_limits
from lora_train.engine import devices
from lora_train.engine.devices import ToHost, peak_device_bytes, peak_process_bytes

_SEND_EVERY_S = 0.5
_LOOK_EVERY_S = 0.2
_BEAT_EVERY_S = 2.0

_MUCH_SLOWER = 3.0
_SPILLS = (
    "Steps take several times as long as in the trial, and the graphics card is full: its driver moves memory into "
    "main memory. Close other programs that use the card, or pause this training and go on later."
)


class _Told(NamedTuple):
    step: int
    epoch: int
    lr: float
    loss: torch.Tensor


class _Parcel(NamedTuple):
    """Losses on their way from the device."""

    told: list[_Told]
    device: torch.device
    losses: ToHost
    s_per_step: float


class Reporter:
    """Between the loop and the job's folder. Use as a context manager: the thread ends with it."""

    def __init__(self, job: JobFolder, events: EventWriter, *, hears_requests: bool = True) -> None:
        """`hears_requests`: only the first of several processes does, and tells the others in its own time."""
        self.events = events
        self.request: Request | None = None
        self.bad_step: int | None = None
        """The first step whose loss was not finite, until `forget_bad_step`."""
        self.stop_waits = False
        """Whether `stop` waits for the loop: what a resumed training has learned can be saved there alone."""
        self.is_out_of_time = False
        """Whether the training's time is over (see `core.limits`), which asks for `stop` too."""
        self.usual_s_per_step = 0.0
        """What a step takes where all its memory is on the device; 0 where nobody knows."""
        self._job = job
        self._summary = StatusReader(job)
        self._hears_requests = hears_requests
        self._stop_at = read_limits(job.path).stop_at
        self._told: list[_Told] = []
        self._parcels: deque[_Parcel] = deque()
        self._error: OSError | None = None
        self._lock = threading.Lock()
        self._sent_at = time.monotonic()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="reporter", daemon=True)

    def __enter__(self) -> Reporter:
        if self._hears_requests:
            self._hear()  # what came while libraries were imported; a small model may be trained before the next look
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        self._write_arrived(wait=True)

    def phase(self, name: str, done: int = 0, total: int = 0) -> None:
        """Tell what is going on outside the loop. Raises RequestedEnd when the person asked to end."""
        self.events.write(Phase(name=name, done=done, total=total))
        self.end_if_asked()

    def end_if_asked(self) -> None:
        """Raises RequestedEnd when the person asked to end; costs nothing otherwise."""
        if self.request is not None and not (self.stop_waits and self.request == "stop"):
            raise RequestedEnd(self.request)

    def step(self, *, step: int, epoch: int, lr: float, loss: torch.Tensor) -> None:
        """Take one step's loss (a scalar on the device). Returns at once.

        Raises the OSError that kept earlier events from being written.
        """
        if self._error is not None:
            raise self._error
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
        self._write_arrived(wait=True)

    def forget_bad_step(self) -> None:
        self.bad_step = None

    def _send(self) -> None:
        if not self._told:
            return
        now = time.monotonic()
        device = self._told[0].loss.device
        losses = ToHost(torch.stack([told.loss for told in self._told]))
        self._parcels.append(_Parcel(self._told, device, losses, (now - self._sent_at) / len(self._told)))
        self._told, self._sent_at = [], now

    def _watch(self) -> None:
        beaten_at = 0.0
        while not self._end.wait(_LOOK_EVERY_S):
            try:
                if self._hears_requests:
                    self._hear()
                self._write_arrived(wait=False)
                if time.monotonic() - beaten_at >= _BEAT_EVERY_S:
                    with suppress(Exception):  # whatever is in the events: beat, stop and pause must go on
                        self._summary.read()  # keeps a summary of a long training: nobody else has to read it all
                    self.events.beat()
                    beaten_at = time.monotonic()
            except OSError as error:  # a full disk, a network drive that is gone: for the loop to raise
                self._error = error

    def _hear(self) -> None:
        self.is_out_of_time = 0 < self._stop_at <= time.time()
        self.request = self._job.requested() or ("stop" if self.is_out_of_time else None)

    def _write_arrived(self, *, wait: bool) -> None:
        """Write what has arrived, in order. The queue is safe to append to meanwhile; the lock is for its readers."""
        with self._lock:
            while self._parcels and (wait or self._parcels[0].losses.has_arrived()):
                self._write(self._parcels.popleft())

    def _write(self, parcel: _Parcel) -> None:
        self._warn_where_memory_spills(parcel)
        steps: list[Step] = []
        peak_bytes = peak_process_bytes() if parcel.device.type == "cpu" else peak_device_bytes(parcel.device)
        for told, loss in zip(parcel.told, parcel.losses.values(), strict=True):
            if loss != loss or loss in (float("inf"), float("-inf")):
                self.bad_step = self.bad_step or told.step
                continue  # JSON has no NaN; the roll-back tells of it in a note
            steps.append(
                Step(
                    step=told.step,
                    epoch=told.epoch,
                    loss=loss,
                    lr=told.lr,
                    s_per_step=parcel.s_per_step,
                    peak_memory_mb=peak_bytes // 2**20,
                )
            )
        self.events.write(*steps)

    def _warn_where_memory_spills(self, parcel: _Parcel) -> None:
        """Once. Asks the driver only where steps are slow, and asks nothing of the device's work."""
        is_slow = 0 < self.usual_s_per_step * _MUCH_SLOWER < parcel.s_per_step
        if is_slow and devices.spills(parcel.device):
            self.usual_s_per_step = 0.0
            self.events.write(Note("warning", _SPILLS))
