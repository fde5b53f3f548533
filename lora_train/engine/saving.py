"""Saving beside the loop: what goes into a file is copied at once, and a thread does the rest."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

import torch

from lora_train.engine.devices import ToHost

_MOST_WAITING = 2
"""A state and a LoRA. Each holds a copy of its tensors, so whoever saves faster than the disk writes has to wait."""
_PIECE_BYTES = 2**26
"""Of pinned memory at once: torch rounds each piece up to a power of two."""


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

    Those of a GPU are brought there beside the work (`_OnTheWay`); where it lacks the memory for that, the loop waits
    for them.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        on_gpu = {name: tensor.detach() for name, tensor in tensors.items() if tensor.is_cuda}
        self._on_the_way: _OnTheWay | None = None
        if on_gpu:
            with suppress(RuntimeError):  # no memory, there or pinned; what else is wrong is wrong for copies too
                self._on_the_way = _OnTheWay(on_gpu, torch.cuda.Stream(next(iter(on_gpu.values())).device))
        coming = on_gpu if self._on_the_way is not None else {}
        self._copies = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())
            for name, tensor in tensors.items()
            if name not in coming
        }

    def tensors(self) -> dict[str, torch.Tensor]:
        """By their names: contiguous, on the CPU, none sharing memory with another. Waits for them if need be."""
        if self._on_the_way is not None:
            self._copies |= self._on_the_way.tensors()
            self._on_the_way = None
        return self._copies


class _OnTheWay:
    """Tensors of one device that a stream of their own brings to main memory.

    The stream of the work copies them into one piece on the device, which is quick, and goes on.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], stream: torch.cuda.Stream | None) -> None:
        self._kinds = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
        self._sizes_bytes = [tensor.nbytes for tensor in tensors.values()]
        # Kept until all has arrived: nothing else may get its memory before.
        self._whole = torch.cat([tensor.reshape(-1).view(torch.uint8) for tensor in tensors.values()])
        if stream is not None:
            stream.wait_stream(torch.cuda.current_stream(stream.device))
        with torch.cuda.stream(stream):
            self._pieces = [ToHost(piece) for piece in self._whole.split(_PIECE_BYTES)]

    def tensors(self) -> dict[str, torch.Tensor]:
        """All of them. Waits until they have arrived."""
        pieces = [piece.tensor() for piece in self._pieces]
        found: dict[str, torch.Tensor] = {}
        start = 0
        for (name, (shape, dtype)), size_bytes in zip(self._kinds.items(), self._sizes_bytes, strict=True):
            found[name] = _cut(pieces, start, start + size_bytes).view(dtype).view(shape)
            start += size_bytes
        return found


def _cut(pieces: Sequence[torch.Tensor], start: int, stop: int) -> torch.Tensor:
    """A copy of the bytes from `start` up to `stop` of what was split into the pieces."""
    touched = range(start // _PIECE_BYTES, -(-stop // _PIECE_BYTES))
    parts = [pieces[at][max(0, start - at * _PIECE_BYTES) : stop - at * _PIECE_BYTES] for at in touched]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.uint8)
