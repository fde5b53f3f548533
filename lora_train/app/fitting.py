"""Whether a training fits into the memory there is, and what would make it fit: told before it begins."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from lora_train.app.fit_snapshot import Fit
from lora_train.core.config import TrainSettings
from lora_train.core.families import CheckpointFacts
from lora_train.core.host import DeviceMemory, Host
from lora_train.core.memory import MemoryPlan, asked_plan, budget_bytes, ladder
from lora_train.core.memory_need import Workload, predicted_need
from lora_train.launch.device_memory import main_memory, nvidia_cards
from lora_train.launch.queue import JobQueue

if TYPE_CHECKING:
    from lora_train.data.epochs import EpochPlanner

_ASKED_AGAIN_S = 60.0
"""Asking wakes the card of a laptop up."""
_MOSTLY_FREE = 0.85
"""Where less of a device is free, the person is told that others hold a part of it."""


class Fitting:
    """Asks for the memory of card and machine, and puts a training's need beside it."""

    def __init__(self, host: Host, jobs: JobQueue, cards: Callable[[], list[DeviceMemory]] = nvidia_cards) -> None:
        self._host = host
        self._jobs = jobs
        self._cards = _InBackground(cards)

    def fit(self, settings: TrainSettings, facts: CheckpointFacts | None, plan: EpochPlanner) -> Fit | None:
        """What a training would need, and the first plan of its ladder that is expected to fit; None where base model
        or device are unknown, and while the driver is asked for the first time.
        """
        device = self._device(settings)
        if facts is None or device is None:
            return None
        work = _workload(settings, facts, plan, on_cpu=device.on_cpu)
        is_held_by_us = bool(self._jobs.running())  # and so will be free when this one begins
        free_bytes = device.total_bytes if is_held_by_us else device.free_bytes
        return fit_into(settings, work, device, budget_bytes(free_bytes, device.total_bytes))

    def wait(self) -> None:
        """Until the driver has answered: for the command line, which asks once."""
        self._cards.wait()

    def _device(self, settings: TrainSettings) -> DeviceMemory | None:
        """The one that a worker would choose, as far as that can be told without torch."""
        if settings.device == "cpu":
            return main_memory()
        if settings.device not in ("auto", "cuda"):
            return None
        card = self._host.card_memory()
        if card is not None:
            return card
        cards = self._cards.answer() if _torch_build() != "cpu" else []
        if cards:
            return cards[0]
        is_cpu = settings.device == "auto" and cards is not None and _has_no_other_card()
        return main_memory() if is_cpu else None


def fit_into(settings: TrainSettings, work: Workload, device: DeviceMemory, budget: int) -> Fit:
    """The first plan of the ladder whose need is within the budget, else the last; on a CPU, where nothing is tried,
    what is asked for. Raises as `predicted_need`.
    """
    plans = (asked_plan(settings),) if work.on_cpu else ladder(settings)
    needs = {plan: predicted_need(settings, work, plan) for plan in plans}
    chosen: MemoryPlan = next((plan for plan in plans if needs[plan].total_bytes <= budget), plans[-1])
    others_bytes = device.total_bytes - device.free_bytes
    return Fit(
        device=device.name,
        on_cpu=device.on_cpu,
        device_bytes=device.total_bytes,
        budget_bytes=budget,
        others_bytes=others_bytes if budget < _MOSTLY_FREE * device.total_bytes else 0,
        is_tried=settings.fit_to_gpu and not work.on_cpu,
        fits=needs[chosen].total_bytes <= budget,
        asked=plans[0],
        plan=chosen,
        asked_bytes=needs[plans[0]].total_bytes,
        needed=needs[chosen],
        needed_bytes=needs[chosen].total_bytes,
    )


def _workload(settings: TrainSettings, facts: CheckpointFacts, plan: EpochPlanner, *, on_cpu: bool) -> Workload:
    is_full = settings.precision == "fp32" or (settings.precision == "auto" and on_cpu)
    return Workload(
        family=facts.family,
        model_channels=facts.model_channels,
        area_px=max(width * height for width, height in (source.bucket for source in plan.sources)),
        pictures=len(plan.sources),
        captions=len(list(plan.shown(0))) if settings.shuffle_captions else len({one.caption for one in plan.sources}),
        bytes_per_number=4 if is_full else 2,
        on_cpu=on_cpu,
        stays_half=on_cpu and is_full and facts.unet_dtype in ("F16", "BF16"),
    )


def _torch_build() -> str:
    """ "cpu", "cu121", "rocm6.2", "xpu" ... of the torch that a worker would import; empty where it doesn't tell.

    PyPI's builds don't: that for Linux is for CUDA, that for Windows for the CPU.
    """
    try:
        told = version("torch").partition("+")[2]
    except PackageNotFoundError:
        return ""
    return told or ("cpu" if sys.platform == "win32" else "")


def _has_no_other_card() -> bool:
    """Whether "auto" can't be anything but the CPU where there is no NVIDIA card."""
    return sys.platform != "darwin" and not _torch_build().startswith(("rocm", "xpu"))


class _InBackground:
    """A question that takes a while, asked again now and then in a thread, so that nobody waits for the answer."""

    def __init__(self, ask: Callable[[], list[DeviceMemory]]) -> None:
        self._ask = ask
        self._lock = threading.Lock()
        self._asking: threading.Thread | None = None
        self._known: list[DeviceMemory] | None = None
        self._at = 0.0

    def answer(self) -> list[DeviceMemory] | None:
        """The last one; None before the first."""
        with self._lock:
            is_old = self._known is None or time.monotonic() - self._at > _ASKED_AGAIN_S
            if is_old and (self._asking is None or not self._asking.is_alive()):
                self._asking = threading.Thread(target=self._work, name="train-tools-cards", daemon=True)
                self._asking.start()
        return self._known

    def wait(self) -> None:
        self.answer()
        if self._asking is not None:
            self._asking.join()

    def _work(self) -> None:
        self._known = self._ask()
        self._at = time.monotonic()
