"""The training of a LoRA: epochs, steps, saves, and the way back when something goes wrong."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Literal, TypeVar

import msgspec
import torch

from lora_train.core.errors import JobError, TrainToolsError
from lora_train.core.events import Note, Phase, Sampled, Saved, Started
from lora_train.core.jobs import JobFolder, Request, RequestedEnd
from lora_train.core.limits import read_limits
from lora_train.core.memory import measures_text
from lora_train.core.optimizers import sees_shapes
from lora_train.core.specs import TrainSpec
from lora_train.core.workspace import move_to_trash
from lora_train.data.epochs import Batch
from lora_train.engine import devices
from lora_train.engine.averages import Averages
from lora_train.engine.flat import join_optimizer
from lora_train.engine.memory import next_plan, take_leaner_plan
from lora_train.engine.metadata import build_metadata
from lora_train.engine.network_file import checked, named_parts, save_lora
from lora_train.engine.optimizers import coming_rate, halve_rates, resting_weights
from lora_train.engine.previews import draw_previews, grid_path, save_previews
from lora_train.engine.processes import Wish
from lora_train.engine.reporting import Reporter
from lora_train.engine.run import Run
from lora_train.engine.sample import draw_settings
from lora_train.engine.saving import Snapshot, Writer
from lora_train.engine.setup import prepare_run
from lora_train.engine.state import (
    Clock,
    LoadedState,
    StateFacts,
    flatten_optimizer,
    forget_states_after,
    group_values,
    load_state,
    restore_optimizer,
    save_state,
)
from lora_train.engine.step import train_step
from lora_train.engine.team import Team
from lora_train.engine.trial import fit
from lora_train.engine.validation import Validator

_MOST_ROLL_BACKS = 2
_NO_ROOM_FOR_PREVIEWS = (
    "The previews of this save need more memory than is left beside the training. They can be drawn when it has ended."
)

T = TypeVar("T")

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
        training.writer.wait()
    finally:
        training.writer.close()
    if run.processes is not None:
        run.processes.close()
    return ending, training.clock.step


class Training:
    """A run in progress: the loop, and what happens between its steps."""

    def __init__(self, run: Run, job: JobFolder, report: Reporter) -> None:
        self.run = run
        self.job = job
        self.report = report
        self.clock = Clock()
        self.halvings = 0
        self.validator = Validator(run)
        self.pause_at_step = self.same(read_limits(job.path).pause_at_step)
        decay = run.settings.ema_decay
        self.averages = Averages(run.groups.values(), decay) if decay else None
        self.state_at = time.monotonic()
        self.writer = Writer()

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
            run.texts.prepare(batches)
            groups = _groups_of(batches, settings.gradient_accumulation_steps)
            self.report.restart_clock()
            ending = self.train_epoch(groups)
            if ending is not None:
                return ending

    def train_epoch(self, groups: Sequence[Sequence[Batch]]) -> Ending | None:
        """Step by step to the end of the epoch, or back to the last state (None); or to the end of the run."""
        run, clock = self.run, self.clock
        while clock.step_in_epoch < len(groups):
            lr = coming_rate(run.optimizer)
            loss = self.step_or_none(groups[clock.step_in_epoch])
            if loss is None:
                self.go_on_with_less_memory()
                return None
            clock.step += 1
            clock.step_in_epoch += 1
            if self.averages is not None:
                self.averages.update(clock.step)
            self.report.step(step=clock.step, epoch=clock.epoch + 1, lr=lr, loss=loss)
            self.writer.check()

            asked = self.asked()
            if asked is Wish.ROLL_BACK:
                self.roll_back()
                return None
            if asked in _REQUESTS:
                return self.end_on_request(asked)
            saves = asked is Wish.SAVE
            is_at_limit = clock.step == self.pause_at_step
            if (self.is_to_validate() or saves or is_at_limit) and not self.is_healthy():
                return None
            if is_at_limit:
                return self.pause_at_limit()
            self.validate_if_due()
            if self.validator.is_out_of_patience():
                return self.end_early()
            if saves:
                self.save_state()
        if self.is_healthy():
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
            if next_plan(self.run) is None or self.run.processes is not None:
                raise devices.out_of_memory(error) from error
            return None  # what the failed step holds is free when this function is left

    def asked(self) -> Wish:
        """What is to be done now, between two steps; all processes of a run hear the same after the same step."""
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
        is_time = time.monotonic() - self.state_at >= self.run.settings.state_every_s > 0
        return Wish.SAVE if is_time else Wish.NOTHING

    def same(self, value: T) -> T:
        """What the first process found, which alone may have the job's folder."""
        return value if self.run.processes is None else self.run.processes.same(value)

    def start_or_go_on(self) -> None:
        """Take up the newest whole state, or write the first one, so that there is always a way back."""
        state = self.last_state()
        if state is not None:
            self.go_back_to(state)
        self.tell_started()
        if state is None:
            self.validate()
            self.save_state()
        self.report.events.write(Phase(name="training"))

    def tell_started(self) -> None:
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

    def end_on_request(self, asked: Wish) -> Ending:
        """`stop` leaves a LoRA and the state, `pause` the state alone."""
        is_healthy = self.is_healthy()
        if is_healthy and asked is Wish.STOP:
            self.validate(counts=False)
        if is_healthy:
            self.save_state()
        if asked is Wish.PAUSE:
            return "paused"
        if self.clock.step > 0:
            self.save_lora_and_previews(self.early_stem(), draws=asked is Wish.STOP)
        return "stopped"

    def pause_at_limit(self) -> Ending:
        """Leave state and LoRA, so that what paused can be compared and, without a worker, be left as it is."""
        self.validate(counts=False)
        self.save_state()
        self.save_lora_and_previews(self.early_stem(), draws=False)
        return "paused"

    def early_stem(self) -> str:
        """Of a LoRA that is saved within an epoch."""
        return f"{self.run.spec.name}-step{self.clock.step:06d}"

    # --- saving ---

    def save_if_due(self) -> None:
        """At the end of every n-th epoch and of the last one: state, LoRA, previews; each unless it is there."""
        clock, settings = self.clock, self.run.settings
        is_last = clock.epoch == settings.epochs
        every = settings.save_every_epochs
        at_epoch_end = clock.step_in_epoch == 0 and clock.epoch > 0
        if not at_epoch_end or not (is_last or (every and clock.epoch % every == 0)):
            return
        stem = self.run.spec.name + ("" if is_last else f"-{clock.epoch:06d}")
        self.validate()
        self.save_state()
        self.save_lora_and_previews(stem)

    def save_state(self) -> None:
        """Have it written where the run is now. Call only when it is healthy."""
        run = self.run
        if not run.is_first:
            return
        tensors, scalars = flatten_optimizer(run.optimizer)
        facts = StateFacts(
            clock=msgspec.structs.replace(self.clock),
            dataset_fingerprint=run.dataset_fingerprint,
            halvings=self.halvings,
            validation=msgspec.structs.replace(self.validator.progress),
            session_id=run.facts.session_id,
            started_at=run.facts.started_at,
            continued_sha256=run.continued.sha256 if run.continued is not None else "",
            optimizer_groups=group_values(run.optimizer),
            optimizer_scalars=scalars,
            is_flat=not sees_shapes(run.settings),
            schedule={"last_epoch": run.schedule.last_epoch, "base_lrs": [*run.schedule.base_lrs]},
            scaler=run.scaler.state_dict(),
        )
        named = {f"lora.{name}": tensor for name, tensor in run.network.tensors().items()}
        named |= {f"optimizer.{name}": tensor for name, tensor in tensors.items()}
        if self.averages is not None:
            named |= {f"average.{name}": tensor for name, tensor in self.averages.tensors().items()}
        snapshot = Snapshot(named)
        self.writer.write(lambda: save_state(self.job.state_dir, facts, snapshot.tensors()))
        self.state_at = time.monotonic()

    def save_lora(self, stem: str) -> None:
        """Have the network as it is now written, and told of when the file is whole."""
        run, path = self.run, self.job.path / f"{stem}.safetensors"
        saved = Saved(path=path.name, step=self.clock.step, epoch=self.clock.epoch)
        if path.exists():  # told again: a worker may have died between writing the file and telling of it
            self.writer.write(lambda: self.report.events.write(saved))
            return
        snapshot = Snapshot(named_parts(run.network))

        def write() -> None:
            run.checkpoint_hashes.fill(run.facts)
            metadata = build_metadata(run.settings, run.facts, output_name=stem, step=saved.step, epoch=saved.epoch)
            save_lora(path, checked(snapshot.tensors(), devices.DTYPES[run.settings.save_precision]), metadata)
            self.report.events.write(saved)

        self.writer.write(write)

    @contextmanager
    def resting(self) -> Generator[None, None, None]:
        """Within the block the network is what a LoRA file holds: the averages, where they are kept."""
        averages = self.averages.shown() if self.averages is not None else nullcontext()
        with resting_weights(self.run.optimizer), averages:
            for part in self.run.groups.values():
                part.refresh()
            yield

    def save_lora_and_previews(self, stem: str, *, draws: bool = True) -> None:
        if not self.run.is_first:
            return
        with self.resting():
            self.save_lora(stem)
            if draws and self.run.preview_texts is not None and not grid_path(self.job.samples_dir, stem).exists():
                self.draw_previews(stem)

    def draw_previews(self, stem: str) -> None:
        run = self.run
        assert run.preview_texts is not None
        draw_with = draw_settings(run.settings, run.model, run.resolution_px)

        def progress(done: int, total: int) -> None:  # not `phase`: a request waits until the save is whole
            self.report.events.write(Phase(name="drawing previews", done=done, total=total))

        texts = run.preview_texts
        try:
            rows = self.with_room(
                lambda: draw_previews(run.model, run.network, texts, run.settings, draw_with, progress)
            )
        except Exception as error:
            if not devices.is_out_of_memory(error):
                raise
            rows = None  # outside of this block nothing holds what was allocated
        self.writer.wait()  # pictures are told of after their LoRA

        def told(path: Path, prompt: str, weight: float | None) -> None:
            place = path.relative_to(self.job.path).as_posix()
            self.report.events.write(Sampled(path=place, step=self.clock.step, prompt=prompt, weight=weight))

        run.model.drop_vae()
        if rows is None:
            self.report.events.write(Note("warning", _NO_ROOM_FOR_PREVIEWS))
        else:
            save_previews(self.job.samples_dir, stem, rows, run.settings, draw_with, told)
        self.report.events.write(Phase(name="training"))
        devices.free_cached_memory(run.device)

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

    # --- validation ---

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
            with self.resting():
                self.report.events.write(self.with_room(lambda: self.validator.measure(self.clock.step)))
            self.report.events.write(Phase(name="training"))
            self.report.restart_clock()
        if counts:
            self.validator.progress.count()

    def end_early(self) -> Ending:
        """Save as after the last epoch, and say why there are no more steps."""
        best = self.validator.progress.best_step
        message = (
            f"Stopped early at step {self.clock.step}: the validation loss has not improved since step {best}. "
            "The LoRA saved nearest to that step is the best."
        )
        self.save_state()
        self.save_lora_and_previews(self.run.spec.name)
        self.report.events.write(Note("info", message))
        return "finished"

    # --- the way back ---

    def is_healthy(self) -> bool:
        """Whether all losses and weights are finite; if not, the run is taken back to its last state."""
        self.report.flush()
        parts = self.run.groups.values()
        if self.report.bad_step is None and all(bool(torch.isfinite(part.weights).all()) for part in parts):
            return True
        self.roll_back()
        return False

    def roll_back(self) -> None:
        """Back to the last good state with half the learning rate. Raises JobError the third time."""
        self.report.flush()
        at = self.report.bad_step or self.clock.step
        if self.halvings >= _MOST_ROLL_BACKS:
            raise JobError(
                f"The loss became NaN or infinite at step {at}, for the third time.",
                "Lower the learning rate to a tenth, or use bf16 or fp32; look for broken pictures. "
                "The LoRAs saved before are good.",
            )
        state = self.last_state()
        if state is None:
            raise TrainToolsError(f"The loss became NaN or infinite at step {at}, before any state.")
        halvings = self.halvings + 1
        self.go_back_to(state)
        while self.halvings < halvings:
            halve_rates(self.run.optimizer, self.run.schedule)
            self.halvings += 1
        self.report.forget_bad_step()
        message = (
            f"The loss became NaN or infinite at step {at}: back to step {self.clock.step} "
            f"with half the learning rate ({self.halvings} of {_MOST_ROLL_BACKS} times)."
        )
        self.report.events.write(Note("warning", message))
        self.tell_started()
        self.save_state()

    def go_on_with_less_memory(self) -> None:
        """Back to the last state with the next plan of the ladder. Raises DeviceMemoryError where none is left."""
        self.report.flush()
        at, before = self.clock.step + 1, self.run.plan
        take_leaner_plan(self.run, at)
        self.report.usual_s_per_step = 0.0
        state = self.last_state()
        assert state is not None, "the first state is written before the first step"
        self.go_back_to(state)
        message = (
            f"Memory ran out at step {at}: back to step {self.clock.step}, "
            f"now with {measures_text(self.run.plan, beyond=before)}."
        )
        self.report.events.write(Note("warning", message))
        self.tell_started()

    def last_state(self) -> LoadedState | None:
        self.writer.wait()
        return self.same(load_state(self.job.state_dir) if self.run.is_first else None)

    def go_back_to(self, state: LoadedState) -> None:
        """Load a state into the run; what was saved after it goes to the trash."""
        run, facts = self.run, state.facts
        if facts.dataset_fingerprint != run.dataset_fingerprint:
            raise JobError(f"{state.path} belongs to a training with other pictures.")
        if facts.continued_sha256 != (run.continued.sha256 if run.continued is not None else ""):
            raise JobError(
                f"{run.settings.continue_from} is not the LoRA any more that this training began with.",
                "Put it back as it was, or start a new training.",
            )
        run.recordings.forget()  # they know the optimizer's state and the gradients as they are now
        own = run.network.tensors()
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(state.tensors[f"lora.{name}"])
        if self.averages is not None:
            self.averages.load(state.tensors_of("average"))
        saved, scalars = state.tensors_of("optimizer"), facts.optimizer_scalars
        if not facts.is_flat and not sees_shapes(run.settings):
            saved, scalars = join_optimizer(saved, scalars, [*run.groups.values()])
        restore_optimizer(run.optimizer, facts.optimizer_groups, saved, scalars)
        run.schedule.last_epoch = facts.schedule["last_epoch"]
        run.schedule.base_lrs = list(facts.schedule["base_lrs"])
        if run.scaler.is_enabled():
            run.scaler.load_state_dict(facts.scaler)
        run.facts.session_id, run.facts.started_at = facts.session_id, facts.started_at
        for part in run.groups.values():
            part.forget()
        clock = facts.clock
        self.clock.step, self.clock.epoch = clock.step, clock.epoch
        self.clock.step_in_epoch = clock.step_in_epoch
        self.halvings = facts.halvings
        self.validator.progress = facts.validation
        if run.processes is not None:
            run.processes.forget_wishes()
        if run.is_first:
            forget_states_after(self.job.state_dir, clock.step)
            self._trash_what_came_after(clock.step)

    def _trash_what_came_after(self, step: int) -> None:
        trash = (self.job.path / self.run.spec.trash).resolve()
        for event in self.job.events():
            if isinstance(event, (Saved, Sampled)) and event.step > step:
                path = self.job.path / event.path
                if path.exists():
                    self._move_to_trash(path, trash)

    def _move_to_trash(self, path: Path, trash: Path) -> None:
        try:
            move_to_trash(path, trash)
        except OSError as error:  # on Windows: open in a viewer
            message = f"{path.name} is out of date, but can't be moved to the trash: {error.strerror or error}."
            self.report.events.write(Note("warning", message))


def _groups_of(batches: Sequence[Batch], size: int) -> list[Sequence[Batch]]:
    """Batches that share an optimizer step. The epoch's last group may be smaller."""
    count = math.ceil(len(batches) / size)
    return [batches[index * size : (index + 1) * size] for index in range(count)]
