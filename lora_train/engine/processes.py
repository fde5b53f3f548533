"""Several processes train one LoRA: each computes its part of every batch, and the gradients are summed.

Every process has all weights, and takes the same steps with the sums. torch.distributed is set up by accelerate, which
knows the backends; neither is imported by a process on its own.
"""

from __future__ import annotations

import os
from collections import deque
from datetime import timedelta
from enum import IntEnum
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from lora_train.core.errors import ConfigError
from lora_train.data.epochs import Batch, parts
from lora_train.engine.devices import ToHost
from lora_train.engine.team import Team

if TYPE_CHECKING:
    from lora_train.engine.devices import Device
    from lora_train.engine.setup import Run

T = TypeVar("T")

_LONGEST_WAIT = timedelta(hours=3)
"""For the first process to save, draw previews or hash: that another is gone is heard on the team's line."""
_STEPS_AHEAD = 2
"""What the first process wishes is done so many steps later: by then every process has read it without waiting."""


class Wish(IntEnum):
    """What the first process wants all to do after a step. The numbers travel with the gradients."""

    NOTHING = 0
    SAVE = 1
    PAUSE = 2
    STOP = 3
    STOP_AT_ONCE = 4
    """Without a validation or previews: the time is over."""
    ROLL_BACK = 5


class Processes:
    """This process among those that train together."""

    def __init__(self, team: Team, device: Device) -> None:
        """Meet the others. Raises ConfigError for a device that processes can't share."""
        from accelerate import PartialState

        if not (device.is_cpu or device.is_cuda):
            raise ConfigError([f"processes: several need NVIDIA cards or the CPU; this is {device.label}"])
        os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))  # else accelerate chooses another number
        os.environ.setdefault("LOCAL_RANK", str(team.place.local_number))
        options: dict[str, Any] = {"timeout": _LONGEST_WAIT}
        if device.is_cuda and not torch.distributed.is_nccl_available():
            options["backend"] = "gloo"  # Windows
        PartialState(cpu=device.is_cpu, **options)
        self.number, self.count = team.place.number, team.place.count
        self._wish = Wish.NOTHING
        self._sent: deque[ToHost] = deque()
        if not team.has_line:
            self._open_line(team)

    @property
    def is_first(self) -> bool:
        return self.number == 0

    def part(self, batch: Batch) -> Batch:
        """This process's views of the batch; there may be none."""
        return parts(batch, self.count)[self.number]

    def same(self, value: T) -> T:
        """What the first process gives, to all. Waits for it: not for the loop."""
        values = [value]
        torch.distributed.broadcast_object_list(values, src=0)
        return values[0]

    def share(self, tensors: list[torch.Tensor]) -> None:
        """All take over the first process's tensors."""
        for tensor in tensors:
            torch.distributed.broadcast(tensor.detach(), src=0)

    def sum(self, tensor: torch.Tensor) -> None:
        """Add up all processes' tensors, in place."""
        torch.distributed.all_reduce(tensor)

    def agree(self, wish: Wish) -> Wish:
        """Called after each step: hand over the first process's wish; returns the one that all know of by now."""
        self._wish = wish if self.is_first else Wish.NOTHING
        if len(self._sent) <= _STEPS_AHEAD:
            return Wish.NOTHING
        agreed = Wish(round(self._sent.popleft().values()[0]))
        if agreed is not Wish.NOTHING:
            self.forget_wishes()
        return agreed

    def forget_wishes(self) -> None:
        """Those under way: called where all do something else, or what was wished, at the same step."""
        self._sent.clear()
        self._wish = Wish.NOTHING

    def reduce(self, gradients: torch.Tensor, loss: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The sums of all processes' flat gradients and losses; the wish goes with them, so nothing else is sent."""
        wish = torch.full_like(loss, float(self._wish))
        together = torch.cat([gradients, loss.reshape(1), wish.reshape(1)])
        self.sum(together)
        self._sent.append(ToHost(together[-1:].clone()))
        return together[:-2], together[-2].clone()

    def close(self) -> None:
        """The training is over: nothing is sent any more."""
        torch.distributed.destroy_process_group()

    def _open_line(self, team: Team) -> None:
        address = team.open(os.environ.get("MASTER_ADDR", "127.0.0.1")) if self.is_first else None
        address = self.same(address)
        if not self.is_first and address is not None:
            team.join(address)


def reduce_gradients(run: Run, loss: torch.Tensor) -> torch.Tensor:
    """Replace all gradients by their sums over the processes; returns the sum of the losses.

    A process without a view in this step adds zeros.
    """
    assert run.processes is not None, "a process on its own has nothing to add up"
    parameters = [parameter for group in run.groups.values() for parameter in group]
    pieces = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
    gradients, loss = run.processes.reduce(torch.cat(pieces), loss)
    for parameter, own in zip(parameters, gradients.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = own.view_as(parameter)
    return loss
