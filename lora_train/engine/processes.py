"""Several processes train one LoRA: each computes its part of every batch, and the gradients are summed.

Every process has all weights, and takes the same steps with the sums. torch.distributed is set up by accelerate, which
knows the backends; neither is imported by a process on its own.
"""

from __future__ import annotations

import os
from collections import deque
from datetime import timedelta
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from lora_train.core.errors import ConfigError, JobError
from lora_train.data.epochs import Batch, parts
from lora_train.engine.devices import ToHost
from lora_train.engine.flat import gradients
from lora_train.engine.team import Team

if TYPE_CHECKING:
    from lora_train.engine.devices import Device
    from lora_train.engine.run import Run

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

        place = team.place
        if not (device.is_cpu or device.is_cuda):
            raise ConfigError([f"processes: several need NVIDIA cards or the CPU; this is {device.label}"])
        if device.is_cuda and place.local_count > (cards := torch.cuda.device_count()):
            raise ConfigError([f"processes: {place.local_count} are more than the {cards} that torch sees here"])
        _tell_the_job(team)
        os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))  # else accelerate chooses another number
        os.environ.setdefault("LOCAL_RANK", str(place.local_number))
        options: dict[str, Any] = {"timeout": _LONGEST_WAIT}
        if device.is_cuda and not torch.distributed.is_nccl_available():
            options["backend"] = "gloo"  # Windows
        PartialState(cpu=device.is_cpu, **options)
        self.number, self.count = place.number, place.count
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

    def reduce(self, flat: torch.Tensor, loss: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The sums of all processes' flat gradients and losses; the wish goes with them, so nothing else is sent."""
        wish = torch.full_like(loss, float(self._wish))
        together = torch.cat([flat, loss.reshape(1), wish.reshape(1)])
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
    """Make all gradients their sums over the processes, where they are; returns the sum of the losses.

    A process without a view in this step adds zeros.
    """
    assert run.processes is not None, "a process on its own has nothing to add up"
    own = gradients(run.groups.values())
    summed, loss = run.processes.reduce(torch.cat(own), loss)
    for gradient, total in zip(own, summed.split([gradient.numel() for gradient in own]), strict=True):
        gradient.copy_(total)
    return loss


_JOB = "lora_train/job"


def job_of_the_first() -> Path:
    """The folder of the job that the first process does, for one that `accelerate launch` has started without it.

    Waits for it. Raises JobError where the first process ends before.
    """
    try:
        return Path(_store().get(_JOB).decode("utf-8"))
    except RuntimeError as error:  # torch's DistStoreError among them
        raise JobError(f"The first process gave no job: {error}") from None


def _tell_the_job(team: Team) -> None:
    if team.is_first and "TORCHELASTIC_RUN_ID" in os.environ:  # its launcher keeps the store: there are no others to
        _store().set(_JOB, str(team.job.path))  # wait for


def _store() -> torch.distributed.TCPStore:
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return torch.distributed.TCPStore(host, port, is_master=False, timeout=_LONGEST_WAIT)
