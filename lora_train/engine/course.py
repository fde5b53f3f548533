"""Where a run is on its way, beside what it works with: what changes from step to step, and who is told of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TypeVar

import torch

from lora_train.core.events import Note, Started
from lora_train.core.jobs import JobFolder
from lora_train.core.workspace import move_to_trash
from lora_train.engine import devices
from lora_train.engine.averages import Averages
from lora_train.engine.optimizers import resting_weights
from lora_train.engine.reporting import Reporter
from lora_train.engine.run import Run
from lora_train.engine.saving import Writer
from lora_train.engine.state import Clock
from lora_train.engine.validation import Validator

T = TypeVar("T")


class Course:
    """Shared by the loop, the way back and what is saved. The clock stays the same object; its numbers change."""

    def __init__(self, run: Run, job: JobFolder, report: Reporter) -> None:
        self.run = run
        self.job = job
        self.report = report
        self.clock = Clock()
        self.halvings = 0
        """How often the learning rate was halved because the loss was not finite."""
        self.validator = Validator(run)
        decay = run.settings.ema_decay
        self.averages = Averages(run.groups.values(), decay) if decay else None
        self.writer = Writer()

    def count_step(self, lr: float, loss: torch.Tensor) -> None:
        """One more optimizer step is done, with this rate. Raises what kept earlier events or files from the disk."""
        clock = self.clock
        clock.step += 1
        clock.step_in_epoch += 1
        if self.averages is not None:
            self.averages.update(clock.step)
        self.report.step(step=clock.step, epoch=clock.epoch + 1, lr=lr, loss=loss)
        self.writer.check()

    def same(self, value: T) -> T:
        """What the first process found, which alone may have the job's folder."""
        return value if self.run.processes is None else self.run.processes.same(value)

    def trash(self, path: Path) -> None:
        """Move a file of the job, which is out of date, to the trash; tell of it where that is impossible."""
        try:
            move_to_trash(path, (self.job.path / self.run.spec.trash).resolve())
        except OSError as error:  # on Windows: open in a viewer
            message = f"{path.name} is out of date, but can't be moved to the trash: {error.strerror or error}."
            self.report.events.write(Note("warning", message))

    def tell_started(self) -> None:
        """Tell where the run begins or goes on."""
        self.report.events.write(
            Started(
                pid=os.getpid(),
                total_steps=self.run.total_steps,
                epochs=self.run.settings.epochs,
                device=self.run.device.label,
                step=self.clock.step,
            )
        )
        last_validation = self.validator.told()
        if last_validation is not None:
            self.report.events.write(last_validation)

    @contextmanager
    def resting(self) -> Generator[None, None, None]:
        """Within the block the network is what a LoRA file holds: the averages, where they are kept."""
        averages = self.averages.shown() if self.averages is not None else nullcontext()
        self.run.snapshots.let_change()
        with resting_weights(self.run.optimizer), averages:
            for part in self.run.groups.values():
                part.refresh()
            try:
                yield
            finally:
                self.run.snapshots.let_change()

    def with_room(self, work: Callable[[], T]) -> T:
        """What `work` returns; where there is too little memory, it is tried again without that of the recordings."""
        recordings = self.run.recordings
        try:
            return work()
        except Exception as error:
            if not recordings.count or not devices.is_out_of_memory(error):
                raise
        recordings.forget()
        devices.free_cached_memory(self.run.device)
        return work()
