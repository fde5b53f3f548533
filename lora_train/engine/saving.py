"""Saving beside the loop: what goes into a file is copied at once, and a thread does the rest."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from lora_train.engine.devices import ToHost, is_out_of_memory

_MOST_WAITING = 2
"""A state and a LoRA. Each holds a copy of its tensors, so whoever saves faster than the disk writes has to wait."""
_PIECE_BYTES = 2**26
"""Of pinned memory, which torch rounds up to a power of two; so much is also taken of the device meanwhile."""


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


class Snapshots:
    """Takes snapshots of what a run trains. Those of a GPU leave it on a stream of their own, beside the work."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._is_reading = False

    def take(self, tensors: Mapping[str, torch.Tensor]) -> Snapshot:
        """Of tensors as they are now. Before any of them changes, call `let_change`."""
        self._is_reading = True
        return Snapshot(tensors, self._stream)

    def let_change(self) -> None:
        """Whatever is given to the device from now on begins when all that was taken has been read; the host goes on.

        A forward and a backward pass lie between a save and the next change, so there is hardly ever something to wait
        for.
        """
        if self._stream is not None and self._is_reading:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
            self._is_reading = False


class Snapshot:
    """Tensors as they were, in main memory, whatever becomes of the tensors."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], stream: torch.cuda.Stream | None) -> None:
        on_gpu = {name: tensor.detach() for name, tensor in tensors.items() if tensor.is_cuda}
        self._on_the_way = _begun(on_gpu, stream) if on_gpu else None
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


def _begun(tensors: Mapping[str, torch.Tensor], stream: torch.cuda.Stream | None) -> _OnTheWay | None:
    """None where there is no memory for it, on the device or pinned: the loop then waits for the copies."""
    try:
        return _OnTheWay(tensors, stream)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    return None


class _OnTheWay:
    """Tensors of one device that a stream of their own brings to main memory, in pieces of pinned memory."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], stream: torch.cuda.Stream | None) -> None:
        self._tensors = dict(tensors)  # kept until all has arrived: nothing else may get their memory before
        if stream is not None:
            stream.wait_stream(torch.cuda.current_stream(stream.device))
        with torch.cuda.stream(stream):
            self._pieces = [ToHost(torch.cat(parts)) for parts in _pieces_of(self._tensors.values())]

    def tensors(self) -> dict[str, torch.Tensor]:
        """All of them. Waits until they have arrived."""
        pieces = [piece.tensor() for piece in self._pieces]
        found: dict[str, torch.Tensor] = {}
        start = 0
        for name, tensor in self._tensors.items():
            found[name] = _cut(pieces, start, start + tensor.nbytes).view(tensor.dtype).view(tensor.shape)
            start += tensor.nbytes
        return found


def _pieces_of(tensors: Iterable[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """The bytes of all tensors one after the other, in pieces of `_PIECE_BYTES`, of which the last may have fewer."""
    parts: list[torch.Tensor] = []
    room = _PIECE_BYTES
    for tensor in tensors:
        left = tensor.reshape(-1).view(torch.uint8)
        while len(left):
            part, left = left[:room], left[room:]
            parts.append(part)
            room -= len(part)
            if not room:
                yield parts
                parts, room = [], _PIECE_BYTES
    if parts:
        yield parts


def _cut(pieces: Sequence[torch.Tensor], start: int, stop: int) -> torch.Tensor:
    """A copy of the bytes from `start` up to `stop` of what was put into the pieces."""
    touched = range(start // _PIECE_BYTES, -(-stop // _PIECE_BYTES)) if start < stop else ()
    parts = [pieces[at][max(0, start - at * _PIECE_BYTES) : stop - at * _PIECE_BYTES] for at in touched]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.uint8)
