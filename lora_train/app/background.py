"""Works the queue off in a thread of this process, and does what belongs to the end of a job."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from typing import Any

from lora_train.app.clearing_up import start_clearing_up
from lora_train.app.judging import Judging
from lora_train.app.loras import Loras
from lora_train.app.paces import (
    measured_pace,
    remember_drawing_pace,
    remember_grid_pace,
    remember_judging_pace,
    remember_pace,
)
from lora_train.app.proofs import Proofs
from lora_train.app.sweeps import Sweeps
from lora_train.core.errors import TrainToolsError
from lora_train.core.events import EventWriter, Note
from lora_train.core.host import Host
from lora_train.core.jobs import JobFolder, StatusReader
from lora_train.core.memory import read_memory
from lora_train.core.specs import GridSpec, JudgeSpec, OnCardSpec, ProofSpec, RegularisationSpec, TrainSpec
from lora_train.core.workspace import Workspace
from lora_train.launch.cards import cards
from lora_train.launch.queue import JobQueue, Runner


class Background:
    def __init__(
        self,
        workspace: Workspace,
        host: Host,
        jobs: JobQueue,
        loras: Loras,
        sweeps: Sweeps,
        judging: Judging,
        proofs: Proofs,
    ) -> None:
        self._workspace = workspace
        self._host = host
        self._jobs = jobs
        self._loras = loras
        self._sweeps = sweeps
        self._judging = judging
        self._proofs = proofs
        self._runner: Runner | None = None

    def start(self) -> None:
        if self._runner is None or not self._runner.is_alive():
            lora_root = self._host.lora_root()
            start_clearing_up(self._workspace, [] if lora_root is None else [lora_root])
            self._sweeps.go_on_all()
            self._runner = Runner(
                self._jobs,
                self._parked_for,
                self._after,
                cards=lambda: cards(os.environ),
                may_run_beside=self._sweeps.may_run_beside,
            )
            self._runner.start()

    def stop(self) -> None:
        if self._runner is not None:
            self._runner.stop()
            self._runner.join()
            self._runner = None

    def _parked_for(self, job: JobFolder) -> AbstractContextManager[Any]:
        spec = job.read_spec()
        assert isinstance(spec, OnCardSpec)
        return self._host.parked(spec.settings.device)

    def _after(self, job: JobFolder) -> None:
        """Judge and publish LoRAs, and remember how fast it went. What goes wrong is told where the page looks."""
        spec = job.read_spec()
        if isinstance(spec, RegularisationSpec):
            remember_drawing_pace(self._workspace.root, spec, job.each_event())
        if isinstance(spec, GridSpec):
            remember_grid_pace(self._workspace.root, spec, StatusReader(job).read())
        if isinstance(spec, ProofSpec):
            self._proofs.ask_host(job, spec)
        if isinstance(spec, JudgeSpec):
            remember_judging_pace(self._workspace.root, spec, job.each_event())
            if (train := self._judging.awaited_by(job, spec)) is not None:
                self._publish(train)
            self._sweeps.on_end(job)
        if not isinstance(spec, TrainSpec):
            return
        if not self._is_judged_first(job, spec):
            self._publish(job)
        memory = read_memory(job.path)
        tried_s = memory.fitting.s_per_step if memory is not None and memory.fitting is not None else 0.0
        remember_pace(self._workspace.root, spec, StatusReader(job).read(), measured_pace(job.each_event()), tried_s)
        self._sweeps.on_end(job)

    def _is_judged_first(self, job: JobFolder, spec: TrainSpec) -> bool:
        """Begin to judge what a training came to, where its person wants that; the end of it publishes."""
        status = StatusReader(job).read()
        if not spec.settings.judge_when_finished or status.state not in ("finished", "stopped") or status.error:
            return False
        try:
            self._judging.begin(self._workspace.id_of(job.path), publishes=True)
        except TrainToolsError as error:
            _tell(job, error)
            return False
        return True

    def _publish(self, train: JobFolder) -> None:
        try:
            self._loras.publish_result(train)
        except TrainToolsError as error:
            _tell(train, error)


def _tell(job: JobFolder, error: TrainToolsError) -> None:
    events = EventWriter(job.events_path)
    events.write(Note("warning", f"{error.message}\n{error.hint}".strip()))
    events.close()
