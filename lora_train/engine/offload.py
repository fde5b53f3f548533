"""A part of the UNet's weights waits in main memory, and is fetched while other layers compute.

A unit is a residual block, a transformer block or a sampler. Units that wait share two places on the device: in one
lies the unit that computes, into the other the one is copied that comes next. Which that is, is learned: after units a
and b came c the last time, so it will again; that holds forward and backward, with checkpoints and without. A wrong
guess costs time and nothing else, as a unit that is not there when it is needed is fetched then.
"""

from __future__ import annotations

import re
from typing import Any, Protocol

import torch
from torch import nn

from lora_train.engine.frozen import block_layers, freeze

_UNIT = re.compile(r"(.*\.(?:resnets|transformer_blocks|downsamplers|upsamplers)\.\d+)\.")
_ALIGNED_BYTES = 512
_PINNED_AT_ONCE_BYTES = 2**29
_GOLDEN = 0.6180339887498949
"""Multiples of it, less their whole part, are spread evenly however many there are (Weyl)."""


class Mover(Protocol):
    """Copies from main memory to a device beside its work. Marks are points in the course of it."""

    def waiting(self, size_bytes: int) -> torch.Tensor:
        """Bytes in main memory."""
        ...

    def place(self, size_bytes: int) -> torch.Tensor:
        """Bytes on the device."""
        ...

    def mark(self) -> Any:
        """All the work that was given to the device so far."""
        ...

    def bring(self, place: torch.Tensor, waiting: torch.Tensor, after: Any) -> Any:
        """Start a copy that begins after a mark; returns the mark of its end."""
        ...

    def wait(self, mark: Any) -> None:
        """Let what is given to the device from now on begin after the mark."""
        ...


class CudaMover:
    """Pinned memory, and a stream of its own for copies."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._room = torch.empty(0, dtype=torch.uint8)

    def waiting(self, size_bytes: int) -> torch.Tensor:
        """From a large piece: torch rounds each up to a power of two, which for SDXL's blocks is twice their size."""
        if size_bytes > len(self._room):
            self._room = torch.empty(max(size_bytes, _PINNED_AT_ONCE_BYTES), dtype=torch.uint8, pin_memory=True)
        found, self._room = self._room[:size_bytes], self._room[size_bytes:]
        return found

    def place(self, size_bytes: int) -> torch.Tensor:
        return torch.empty(size_bytes, dtype=torch.uint8, device=self._device)

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._device))
        return event

    def bring(self, place: torch.Tensor, waiting: torch.Tensor, after: torch.cuda.Event) -> torch.cuda.Event:
        self._stream.wait_event(after)
        event = torch.cuda.Event()
        with torch.cuda.stream(self._stream):
            place.copy_(waiting, non_blocking=True)
            event.record(self._stream)
        return event

    def wait(self, mark: torch.cuda.Event) -> None:
        torch.cuda.current_stream(self._device).wait_event(mark)


class _Unit:
    """Layers that are fetched together."""

    def __init__(self, layers: list[Any]) -> None:
        self.layers = layers
        self.waiting: torch.Tensor | None = None
        """Bytes in main memory; None while the unit is on the device."""

    @property
    def size_bytes(self) -> int:
        return sum(map(_aligned_bytes, self.layers))

    def weights(self, memory: torch.Tensor) -> list[torch.Tensor]:
        """The weights of the layers, in memory that is laid out as `waiting`."""
        found: list[torch.Tensor] = []
        start = 0
        for layer in self.layers:
            own = memory[start : start + layer.weight.nbytes].view(layer.weight.dtype)
            found.append(own.as_strided(layer.weight.shape, layer.weight.stride(), own.storage_offset()))
            start += _aligned_bytes(layer)
        return found


def _aligned_bytes(layer: Any) -> int:
    return -(-layer.weight.nbytes // _ALIGNED_BYTES) * _ALIGNED_BYTES


class _Slot:
    """A place on the device, and what is in it."""

    def __init__(self, memory: torch.Tensor, left: Any) -> None:
        self.memory = memory
        self.unit: _Unit | None = None
        self.arrived: Any = None
        self.left = left
        """What used the memory last: before the first unit, whatever had the same memory."""
        self.weights: dict[_Unit, list[torch.Tensor]] = {}


class Offload:
    """The units of one UNet. Its layers ask for their weights through `frozen.Place`."""

    def __init__(self, unet: nn.Module, mover: Mover) -> None:
        grouped: dict[str, list[Any]] = {}
        for name, layer in block_layers(unet):
            if found := _UNIT.match(name):
                grouped.setdefault(found[1], []).append(layer)
        self._mover = mover
        self._units = [_Unit(layers) for layers in grouped.values()]
        self._unet = unet
        self._slots: list[_Slot] = []
        self._next: dict[tuple[_Unit | None, _Unit], _Unit] = {}
        self._before: _Unit | None = None
        self._now: _Unit | None = None

    @property
    def waiting_bytes(self) -> int:
        """What is in main memory."""
        return sum(unit.size_bytes for unit in self._units if unit.waiting is not None)

    @torch.no_grad()
    def take(self, share: float) -> None:
        """Let at least this share of all of the UNet's weights wait, or every unit. Those that wait already go on so.

        The UNet's LoRA must be detached meanwhile. Units are chosen evenly over the model: between two that have to
        be fetched there is then something to compute.
        """
        for unit in self._units:
            if unit.waiting is not None and unit.layers[0].place is None:  # packed since
                self._put_out(unit)
        wanted_bytes = share * sum(parameter.nbytes for parameter in self._unet.parameters())
        for index in sorted(range(len(self._units)), key=lambda index: (index + 1) * _GOLDEN % 1):
            if self.waiting_bytes >= wanted_bytes:
                break
            if self._units[index].waiting is None:
                self._put_out(self._units[index])
        for slot in self._slots:  # they are about to go: nothing may be on its way into them
            if slot.arrived is not None:
                self._mover.wait(slot.arrived)
        largest = max((unit.size_bytes for unit in self._units if unit.waiting is not None), default=0)
        self._slots = [_Slot(self._mover.place(largest), self._mover.mark()) for _ in range(2)] if largest else []
        self._before = self._now = None
        self._next.clear()

    def _put_out(self, unit: _Unit) -> None:
        waiting = self._mover.waiting(unit.size_bytes)
        for index, (layer, out) in enumerate(zip(unit.layers, unit.weights(waiting), strict=True)):
            freeze(layer, layer.weight.dtype)
            layer.weight = nn.Parameter(out.copy_(layer.weight), requires_grad=False)
            layer.place = _Place(self, unit, index)
        unit.waiting = waiting

    def slot_of(self, unit: _Unit) -> _Slot:
        """Where the unit is on the device, for what is computed from now on."""
        if unit is not self._now:
            self._go_on_to(unit)
        return next(slot for slot in self._slots if slot.unit is unit)

    def _go_on_to(self, unit: _Unit) -> None:
        leaving = next((slot for slot in self._slots if slot.unit is self._now), None)
        if self._now is not None and leaving is not None:
            leaving.left = self._mover.mark()
            self._next[self._before, self._now] = unit
        slot = next((slot for slot in self._slots if slot.unit is unit), None) or self._bring(unit, leaving)
        self._mover.wait(slot.arrived)
        self._before, self._now = self._now, unit
        coming = self._next.get((self._before, unit))
        if coming is not None and all(slot.unit is not coming for slot in self._slots):
            self._bring(coming, slot)

    def _bring(self, unit: _Unit, but: _Slot | None) -> _Slot:
        """Into the other slot than `but`."""
        assert unit.waiting is not None, "only units that wait are asked for"
        slot = next(slot for slot in self._slots if slot is not but)
        slot.unit = unit
        slot.arrived = self._mover.bring(slot.memory[: unit.size_bytes], unit.waiting, slot.left)
        return slot


class _Place:
    """A `frozen.Place`."""

    def __init__(self, offload: Offload, unit: _Unit, index: int) -> None:
        self._offload, self._unit, self._index = offload, unit, index

    def fetch(self) -> torch.Tensor:
        slot = self._offload.slot_of(self._unit)
        if self._unit not in slot.weights:
            slot.weights[self._unit] = self._unit.weights(slot.memory)
        return slot.weights[self._unit][self._index]
