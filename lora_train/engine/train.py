"""The training of a LoRA: epochs and steps, and what comes between them and at the end."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch

from lora_train.core.events import Note, Phase
from lora_train.core.jobs import JobFolder, Request, RequestedEnd
from lora_train.core.limits import read_limits
from lora_train.core.specs import TrainSpec
from lora_train.data.epochs import Batch
from lora_train.engine import devices
from lora_train.engine.course import Course
from lora_train.engine.memory import next_plan
from lora_train.engine.optimizers import coming_rate
from lora_train.engine.processes import Wish
from lora_train.engine.reporting import Reporter
from lora_train.engine.results import save_lora_and_previews
from lora_train.engine.run import Run
from lora_train.engine.setup import prepare_run
from lora_train.engine.state import load_state
from lora_train.engine.step import train_step
from lora_train.engine.team import Team
from lora_train.engine.trial import fit
from lora_train.engine.way_back import WayBack

Ending = Literal["finished", "stopped", "paused"]
_ENDINGS: dict[Request, Ending] = {"stop": "stopped", "pause": "paused"}
_REQUESTS = (Wish.PAUSE, Wish.STOP, Wish.STOP_AT_ONCE)


def train(spec: TrainSpec, job: JobFolder, report: Reporter, team: Team | None = None) -> tuple[Ending, int]:
    """Run or go on with a training job. Returns how it ended and after how many steps.

    `team` are the processes that share it, where it is not this one alone.

    Raises TrainToolsError of the kind that fits what is wrong; the job's folder is then left resumable.
    """
    report.stop_waits = job.state_dir.is_dir() and any(job.state_dir.iterdir())
    try:
        run = prepare_run(spec, job.path, report, team)
        fit(run, report)
    except RequestedEnd as end:
        state = load_state(job.state_dir)
        return _ENDINGS[end.request], state.facts.clock.step if state else 0
    training = Training(run, job, report)
    try:
        training.start_or_go_on()
        ending = training.loop()
        training.course.writer.wait()
    finally:
        training.course.writer.close()
    if run.processes is not None:
        run.processes.close()
    return ending, training.clock.step


class Training:
    """A run in progress: the loop, and what is due between its steps."""

    def __init__(self, run: Run, job: JobFolder, report: Reporter) -> None:
        self.run = run
        self.report = report
        self.course = Course(run, job, report)
        self.clock = self.course.clock
        self.validator = self.course.validator
        self.way_back = WayBack(self.course)
        self.pause_at_step = self.course.same(read_limits(job.path).pause_at_step)

    def start_or_go_on(self) -> None:
        """Take up the newest whole state, or write the first one, so that there is always a way back."""
        state = self.way_back.last_state()
        if state is not None:
            self.way_back.go_back_to(state)
        self.course.tell_started()
        if state is None:
            self.validate()
            self.way_back.save_state()
        self.report.events.write(Phase(name="training"))

    def loop(self) -> Ending:
        """Epoch by epoch until the last one, a request, or a failure."""
        run, clock, settings = self.run, self.clock, self.run.settings
        while True:
            self.save_if_due()
            if clock.epoch == settings.epochs:
                return "finished"
            self.validate_if_due()
            if self.validator.is_out_of_patience():
                return self.end_early()
            if 0 < self.pause_at_step <= clock.step:
                return "paused"
            batches = run.planner.batches(clock.epoch)
            self.course.with_room(partial(run.texts.prepare, batches))
            groups = _groups_of(batches, settings.gradient_accumulation_steps)
            self.report.restart_clock()
            ending = self.train_epoch(groups)
            if ending is not None:
                return ending

    def train_epoch(self, groups: Sequence[Sequence[Batch]]) -> Ending | None:
        """Step by step to the end of the epoch, or back to the last state (None); or to the end of the run."""
        clock, way_back = self.clock, self.way_back
        while clock.step_in_epoch < len(groups):
            lr = coming_rate(self.run.optimizer)
            loss = self.step_or_none(groups[clock.step_in_epoch])
            if loss is None:
                way_back.go_on_with_less_memory()
                return None
            self.course.count_step(lr, loss)

            asked = self.asked()
            if asked is Wish.ROLL_BACK:
                way_back.roll_back()
                return None
            if asked in _REQUESTS:
                return self.end_on_request(asked)
            saves = asked is Wish.SAVE
            is_at_limit = clock.step == self.pause_at_step
            if (self.is_to_validate() or saves or is_at_limit) and not way_back.is_healthy():
                return None
            if is_at_limit:
                return self.pause_at_limit()
            self.validate_if_due()
            if self.validator.is_out_of_patience():
                return self.end_early()
            if saves:
                way_back.save_state()
        if way_back.is_healthy():
            clock.epoch, clock.step_in_epoch = clock.epoch + 1, 0
        return None

    def step_or_none(self, group: Sequence[Batch]) -> torch.Tensor | None:
        """The loss of a step; None where memory ran out in it and there is a way to need less.

        Processes that train together can't each go another way.
        """
        try:
            return train_step(self.run, group)
        except Exception as error:
            if not devices.is_out_of_memory(error):
                raise
            can_need_less = self.run.recordings.count > 0 or next_plan(self.run) is not None
            if not can_need_less or self.run.processes is not None:
                raise devices.out_of_memory(error) from error
            return None  # what the failed step holds is free when this function is left

    # --- what is due between two steps ---

    def asked(self) -> Wish:
        """What is to be done now; all processes of a run hear the same after the same step."""
        if self.run.processes is None:
            return self.wish()
        return self.run.processes.agree(self.wish())

    def wish(self) -> Wish:
        """What has become due meanwhile, the most urgent thing first."""
        if self.report.bad_step is not None:
            return Wish.ROLL_BACK
        if self.report.request == "pause":
            return Wish.PAUSE
        if self.report.request == "stop":
            return Wish.STOP_AT_ONCE if self.report.is_out_of_time else Wish.STOP
        is_time = time.monotonic() - self.way_back.state_at >= self.run.settings.state_every_s > 0
        return Wish.SAVE if is_time else Wish.NOTHING

    def save_if_due(self) -> None:
        """At the end of every n-th epoch and of the last one: state, LoRA, previews; each unless it is there."""
        clock, settings = self.clock, self.run.settings
        is_last = clock.epoch == settings.epochs
        every = settings.save_every_epochs
        at_epoch_end = clock.step_in_epoch == 0 and clock.epoch > 0
        if not at_epoch_end or not (is_last or (every and clock.epoch % every == 0)):
            return
        self.validate()
        self.way_back.save_state()
        save_lora_and_previews(self.course, self.run.spec.name + ("" if is_last else f"-{clock.epoch:06d}"))

    def is_to_validate(self) -> bool:
        """Whether it is time for the validation of every n-th step."""
        every = self.run.settings.validate_every_steps
        return self.run.held_out is not None and every > 0 and self.clock.step % every == 0

    def validate_if_due(self) -> None:
        """Also where a run goes on: a request may have ended it at a step whose validation was still to come."""
        if self.is_to_validate():
            self.validate()

    def validate(self, *, counts: bool = True) -> None:
        """Measure the held-out pictures, where there are any, with the LoRA as it would be saved now.

        `counts`: for the patience; not where a run happens to be ended, which must not change how it goes on.
        """
        if self.validator.is_due(self.clock.step):
            self.report.events.write(Phase(name="validating"))
            with self.course.resting():
                measured = self.course.with_room(lambda: self.validator.measure(self.clock.step))
                self.report.events.write(measured)
            self.report.events.write(Phase(name="training"))
            self.report.restart_clock()
        if counts:
            self.validator.progress.count()

    # --- ends before the last step ---

    def end_on_request(self, asked: Wish) -> Ending:
        """`stop` leaves a LoRA and the state, `pause` the state alone."""
        is_healthy = self.way_back.is_healthy()
        if is_healthy and asked is Wish.STOP:
            self.validate(counts=False)
        if is_healthy:
            self.way_back.save_state()
        if asked is Wish.PAUSE:
            return "paused"
        if self.clock.step > 0:
            save_lora_and_previews(self.course, self.early_stem(), draws=asked is Wish.STOP)
        return "stopped"

    def pause_at_limit(self) -> Ending:
        """Leave state and LoRA, so that what paused can be compared and, without a worker, be left as it is."""
        self.validate(counts=False)
        self.way_back.save_state()
        save_lora_and_previews(self.course, self.early_stem(), draws=False)
        return "paused"

    def early_stem(self) -> str:
        """Of a LoRA that is saved within an epoch."""
        return f"{self.run.spec.name}-step{self.clock.step:06d}"

    def end_early(self) -> Ending:
        """Save as after the last epoch, and say why there are no more steps."""
        best = self.validator.progress.best_step
        message = (
            f"Stopped early at step {self.clock.step}: the validation loss has not improved since step {best}. "
            "The LoRA saved nearest to that step is the best."
        )
        self.way_back.save_state()
        save_lora_and_previews(self.course, self.run.spec.name)
        self.report.events.write(Note("info", message))
        return "finished"


def _groups_of(batches: Sequence[Batch], size: int) -> list[Sequence[Batch]]:
    """Batches that share an optimizer step. The epoch's last group may be smaller."""
    count = math.ceil(len(batches) / size)
    return [batches[index * size : (index + 1) * size] for index in range(count)]
