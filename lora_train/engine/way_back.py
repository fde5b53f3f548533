"""The way back when something goes wrong: states of a run are written, and taken up again."""

from __future__ import annotations

import time

import msgspec
import torch

from lora_train.core.errors import JobError, TrainToolsError
from lora_train.core.events import Note, Sampled, Saved
from lora_train.core.memory import measures_text
from lora_train.core.optimizers import sees_shapes
from lora_train.engine import devices
from lora_train.engine.checkpoint_hashes import are_others
from lora_train.engine.course import Course
from lora_train.engine.flat import join_optimizer
from lora_train.engine.memory import take_leaner_plan
from lora_train.engine.optimizers import halve_rates
from lora_train.engine.state import (
    LoadedState,
    StateFacts,
    flatten_optimizer,
    forget_states_after,
    group_values,
    load_state,
    restore_optimizer,
    save_state,
)

_MOST_ROLL_BACKS = 2


class WayBack:
    """The states of a run, and the returns to them."""

    def __init__(self, course: Course) -> None:
        self.course = course
        self.run = course.run
        self.job = course.job
        self.report = course.report
        self.state_at = time.monotonic()
        """When the last state was written."""

    # --- forth ---

    def save_state(self) -> None:
        """Have it written where the run is now. Call only when it is healthy."""
        run, course = self.run, self.course
        if not run.is_first:
            return
        tensors, scalars = flatten_optimizer(run.optimizer)
        facts = self._facts(scalars)
        named = {f"lora.{name}": tensor for name, tensor in run.network.tensors().items()}
        named |= {f"optimizer.{name}": tensor for name, tensor in tensors.items()}
        if course.averages is not None:
            named |= {f"average.{name}": tensor for name, tensor in course.averages.tensors().items()}
        snapshot = run.snapshots.take(named)
        course.writer.write(lambda: save_state(self.job.state_dir, facts, snapshot.tensors()))
        self.state_at = time.monotonic()

    def _facts(self, scalars: dict[str, int | float]) -> StateFacts:
        """What a state holds besides tensors, as it is now; `scalars` are the optimizer's numbers."""
        run, course = self.run, self.course
        return StateFacts(
            clock=msgspec.structs.replace(course.clock),
            dataset_fingerprint=run.dataset_fingerprint,
            halvings=course.halvings,
            validation=msgspec.structs.replace(course.validator.progress),
            session_id=run.facts.session_id,
            started_at=run.facts.started_at,
            continued_sha256=self._continued_sha256(),
            base_sha256=run.checkpoint_hashes.known(),
            base_built=run.model.built,
            optimizer_groups=group_values(run.optimizer),
            optimizer_scalars=scalars,
            is_flat=not sees_shapes(run.settings),
            schedule={"last_epoch": run.schedule.last_epoch, "base_lrs": [*run.schedule.base_lrs]},
            scaler=run.scaler.state_dict(),
        )

    def _continued_sha256(self) -> str:
        return self.run.continued.sha256 if self.run.continued is not None else ""

    # --- back ---

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
        course = self.course
        at = self.report.bad_step or course.clock.step
        if course.halvings >= _MOST_ROLL_BACKS:
            raise JobError(
                f"The loss became NaN or infinite at step {at}, for the third time.",
                "Lower the learning rate to a tenth, or use bf16 or fp32; look for broken pictures. "
                "The LoRAs saved before are good.",
            )
        state = self.last_state()
        if state is None:
            raise TrainToolsError(f"The loss became NaN or infinite at step {at}, before any state.")
        halvings = course.halvings + 1
        self.go_back_to(state)
        while course.halvings < halvings:
            halve_rates(self.run.optimizer, self.run.schedule)
            course.halvings += 1
        self.report.forget_bad_step()
        message = (
            f"The loss became NaN or infinite at step {at}: back to step {course.clock.step} "
            f"with half the learning rate ({course.halvings} of {_MOST_ROLL_BACKS} times)."
        )
        self.report.events.write(Note("warning", message))
        course.tell_started()
        self.save_state()

    def go_on_with_less_memory(self) -> None:
        """Back to the last state: without recordings where there are some, for work that is not recorded can't use
        their memory; else with the next plan of the ladder. Raises DeviceMemoryError where none is left.
        """
        self.report.flush()
        at, before, recordings = self.course.clock.step + 1, self.run.plan, self.run.recordings
        if recordings.count:
            recordings.end("their memory is needed for steps of other shapes")
            devices.free_cached_memory(self.run.device)
        else:
            take_leaner_plan(self.run, at)
        self.report.usual_s_per_step = 0.0
        state = self.last_state()
        assert state is not None, "the first state is written before the first step"
        self.go_back_to(state)
        change = f", now with {measures_text(self.run.plan, beyond=before)}" if self.run.plan != before else ""
        message = f"Memory ran out at step {at}: back to step {self.course.clock.step}{change}."
        self.report.events.write(Note("warning", message))
        self.course.tell_started()

    def last_state(self) -> LoadedState | None:
        """The newest whole one; None where none was written. Raises JobError where all are damaged."""
        self.course.writer.wait()
        return self.course.same(load_state(self.job.state_dir) if self.run.is_first else None)

    def go_back_to(self, state: LoadedState) -> None:
        """Load a state into the run; what was saved after it goes to the trash. Raises JobError for another run's."""
        self._require_own(state)
        self._load_tensors(state)
        run, course, facts = self.run, self.course, state.facts
        run.schedule.last_epoch = facts.schedule["last_epoch"]
        run.schedule.base_lrs = list(facts.schedule["base_lrs"])
        if run.scaler.is_enabled():
            run.scaler.load_state_dict(facts.scaler)
        run.facts.session_id, run.facts.started_at = facts.session_id, facts.started_at
        for part in run.groups.values():
            part.forget()
        course.clock.step, course.clock.epoch = facts.clock.step, facts.clock.epoch
        course.clock.step_in_epoch = facts.clock.step_in_epoch
        course.halvings = facts.halvings
        course.validator.progress = facts.validation
        if run.processes is not None:
            run.processes.forget_wishes()
        if run.is_first:
            forget_states_after(self.job.state_dir, facts.clock.step)
            self._trash_what_came_after(facts.clock.step)

    def _require_own(self, state: LoadedState) -> None:
        if state.facts.dataset_fingerprint != self.run.dataset_fingerprint:
            raise JobError(f"{state.path} belongs to a training with other pictures.")
        if state.facts.continued_sha256 != self._continued_sha256():
            raise JobError(
                f"{self.run.settings.continue_from} is not the LoRA any more that this training began with.",
                "Put it back as it was, or start a new training.",
            )
        base = state.facts.base_sha256
        if self.run.is_first and base and are_others(base, self.run.checkpoint_hashes.wait()):
            raise JobError(
                f"{self.run.settings.base_model}, or its VAE, is not the file any more that this training began with.",
                "Put it back as it was, or start a new training.",
            )
        model = self.run.model
        if state.facts.base_built not in ("", model.built):
            raise JobError(
                f"{model.path} is taken for another model than the one this training began with: what a yaml beside it "
                f"({model.path.with_suffix('.yaml').name}) says has changed.",
                "Put the yaml back as it was, or start a new training.",
            )

    def _load_tensors(self, state: LoadedState) -> None:
        """The network, its averages and the optimizer as they were."""
        run, facts = self.run, state.facts
        run.recordings.forget()  # they know the optimizer's state and the gradients as they are now
        with torch.no_grad():
            for name, tensor in run.network.tensors().items():
                tensor.copy_(state.tensors[f"lora.{name}"])
        if self.course.averages is not None:
            self.course.averages.load(state.tensors_of("average"))
        saved, scalars = state.tensors_of("optimizer"), facts.optimizer_scalars
        if not facts.is_flat and not sees_shapes(run.settings):
            saved, scalars = join_optimizer(saved, scalars, [*run.groups.values()])
        restore_optimizer(run.optimizer, facts.optimizer_groups, saved, scalars)

    def _trash_what_came_after(self, step: int) -> None:
        for event in self.job.each_event():
            if isinstance(event, (Saved, Sampled)) and event.step > step:
                path = self.job.path / event.path
                if path.exists():
                    self.course.trash(path)
