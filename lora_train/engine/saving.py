"""Saving beside the loop: what goes into a file is copied at once, and a thread does the rest."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import torch

_MOST_WAITING = 2
"""A state and a LoRA. Each holds a copy of its tensors, so whoever saves faster than the disk writes has to wait."""
_ALIGN_BYTES = 64


class Writer:
    """Does what it is given in a thread, one work after the other, in order."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="saving")
        self._waiting: deque[Future[object]] = deque()

    def write(self, work: Callable[[], object]) -> None:
        """Have `work` done after all that came before; raises what went wrong with that."""
        self.check()
        while len(self._waiting) >= _MOST_WAITING:
            self._waiting.popleft().result()
        self._waiting.append(self._thread.submit(work))

    def check(self) -> None:
        """Raise what went wrong meanwhile; never waits."""
        while self._waiting and self._waiting[0].done():
            self._waiting.popleft().result()

    def wait(self) -> None:
        """Until all is written; raises what went wrong."""
        while self._waiting:
            self._waiting.popleft().result()

    def close(self) -> None:
        """Until all is written, and nothing more can be. Raises nothing: for the way out of a failure too."""
        self._thread.shutdown(wait=True)


class Snapshot:
    """Tensors as they are now, in main memory, whatever becomes of the tensors.

    From CUDA they go to pinned memory without the host waiting. They go on the stream of the work itself: a stream of
    their own would have to hold up whatever changes a weight just as long (40 MB take 2 ms over PCIe 4).
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._arrived: torch.cuda.Event | None = None
        if any(tensor.is_cuda for tensor in tensors.values()):
            self._copies = _pinned_like(tensors)
            for name, copy in self._copies.items():
                copy.copy_(tensors[name].detach(), non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()
        else:
            self._copies = {
                name: torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())
                for name, tensor in tensors.items()
            }

    def tensors(self) -> dict[str, torch.Tensor]:
        """By their names: contiguous, on the CPU, none sharing memory with another. Waits for them if need be."""
        if self._arrived is not None:
            self._arrived.synchronize()
            self._copies, self._arrived = {name: copy.clone() for name, copy in self._copies.items()}, None
        return self._copies


def _pinned_like(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Room for the tensors in one piece of pinned memory: to get thousands of small ones takes long."""
    sizes = [-(-tensor.numel() * tensor.element_size() // _ALIGN_BYTES) * _ALIGN_BYTES for tensor in tensors.values()]
    try:
        whole = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=torch.cuda.is_available())
    except RuntimeError:  # the system has no more of that kind; the loop then waits for the copies
        whole = torch.empty(sum(sizes), dtype=torch.uint8)
    rooms = whole.split(sizes)
    return {
        name: room[: tensor.numel() * tensor.element_size()].view(tensor.dtype).view(tensor.shape)
        for (name, tensor), room in zip(tensors.items(), rooms, strict=True)
    }
