"""How much memory a training may take of its device, and how much it took."""

from __future__ import annotations

import gc
from typing import Protocol

import torch

from lora_train.core.memory import budget_bytes
from lora_train.engine.devices import Device


class Gauge(Protocol):
    """Of one device. Allocations beyond the budget fail."""

    budget_bytes: int
    device_bytes: int
    """All memory of the device."""

    def restart(self) -> None:
        """Measure from now on; what torch keeps for later goes back first."""
        ...

    def peak_bytes(self) -> int:
        """The most that was taken since `restart`, with what lay unused between tensors."""
        ...


class CudaGauge:
    """Of a CUDA device. Drivers for Windows would rather move a part of the training into main memory, where every
    step waits for it, than refuse memory: so torch is told to refuse it, a little before the card is full.
    """

    def __init__(self, device: torch.device) -> None:
        free, self.device_bytes = torch.cuda.mem_get_info(device)
        self.budget_bytes = budget_bytes(free + torch.cuda.memory_reserved(device), self.device_bytes)
        torch.cuda.set_per_process_memory_fraction(self.budget_bytes / self.device_bytes, device)
        self._device = device

    def restart(self) -> None:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)

    def peak_bytes(self) -> int:
        return torch.cuda.max_memory_reserved(self._device)


def open_gauge(device: Device) -> Gauge | None:
    """None where a device does not tell of its memory, or is the CPU, which has the system's."""
    return CudaGauge(device.torch) if device.is_cuda else None
