"""Sweeps of a version: what one would do, begun, listed as one table, stopped.

What a person does to a single run is respected: one that was stopped, paused, killed, taken out of the queue or deleted
by hand is out, as is one that failed; the others go on.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from lora_train.app.judging import Judging
from lora_train.app.loras import Loras
from lora_train.app.planning import require_free_disk
from lora_train.app.presets import Presets
from lora_train.app.sweep_course import Course, Queued, begin_rung
from lora_train.app.sweep_planning import Plan, plan_rows, plan_sweep
from lora_train.app.sweep_snapshot import SweepForecast, SweepRow, SweepSnapshot
from lora_train.app.sweep_table import row_of, with_best
from lora_train.app.training import Training
from lora_train.app.version_settings import sweep_settings
from lora_train.app.watching import Watch
from lora_train.core.errors import ConfigError, TrainToolsError, WorkspaceError
from lora_train.core.jobs import JobFolder, JobStatus
from lora_train.core.specs import JudgeSpec, TrainSpec
from lora_train.core.sweep_record import SweepRecord, SweepRun, read_sweep, sweep_dirs, write_sweep
from lora_train.core.workspace import Version, Workspace
from lora_train.launch.cards import cards
from lora_train.launch.queue import JobQueue

_log = logging.getLogger(__name__)


class Sweeps:
    def __init__(
        self,
        workspace: Workspace,
        jobs: JobQueue,
        training: Training,
        presets: Presets,
        loras: Loras,
        judging: Judging,
        watch: Watch,
    ) -> None:
        self._workspace = workspace
        self._training = training
        self._presets = presets
        self._course = Course(workspace, jobs, loras, judging, watch)

    def forecast(self, project: str, version: str) -> SweepForecast:
        """What *Begin sweep* would do now. Raises WorkspaceError for an unknown version; everything else that is wrong
        stands in `problems`.
        """
        return self._plan(self._workspace.find_version(project, version)).forecast

    def begin(self, project: str, version: str, *, is_queued: bool = True, publish_to: Path | None = None) -> str:
        """Write a training job for every run and put them into the queue; the sweep's id.

        Without `is_queued` the caller works them off by `take_next`. Raises ConfigError with all that stands in the way
        of any run at once, WorkspaceError for an unknown version or a disk that is too full: nothing is written then.
        """
        found = self._workspace.find_version(project, version)
        plan = self._plan(found)
        problems = plan.forecast.problems + self._training.not_now(found)
        if problems:
            raise ConfigError(problems)
        count = len(plan.runs)
        require_free_disk(
            self._workspace.root, f"this sweep of {count} runs", plan.forecast.disk_bytes, "LoRAs and resumable states"
        )
        with self._workspace.changing():
            if problems := self._training.not_now(found):
                raise ConfigError(problems)
            runs = self._write_jobs(found, plan, publish_to)
            record = SweepRecord(
                created=time.time(),
                runs=runs,
                finish_by=plan.forecast.finish_by,
                rungs=plan.rungs,
                is_queued=is_queued,
                judges=is_queued and sweep_settings(found).judge,
            )
            begin_rung(record, runs)
            sweep_dir = _free_dir(found)
            write_sweep(sweep_dir, record)
            self._course.go_on(found, sweep_dir)
        return self._workspace.id_of(sweep_dir)

    def list(self, project: str, version: str) -> list[SweepSnapshot]:
        """Newest first. Raises WorkspaceError for an unknown version."""
        found = self._workspace.find_version(project, version)
        snapshots: list[SweepSnapshot] = []
        for sweep_dir in sweep_dirs(found):
            self._go_on(found, sweep_dir)  # a run may have been taken out of the queue by hand
            if (record := read_sweep(sweep_dir)) is not None:
                snapshots.append(self._snapshot(found, sweep_dir, record))
        return snapshots

    def stop_all(self, sweep: str) -> None:
        """Take the runs that wait out of the queue, and let the running one save its LoRA and end.

        Raises WorkspaceError where there is no such sweep.
        """
        self._course.stop(*self._find(sweep))

    def comparison_loras(self, sweep: str) -> list[Path]:
        """The recommended, or else the last, LoRA of every run that has one, in the order of the runs.

        Raises WorkspaceError where there is no such sweep.
        """
        version, sweep_dir = self._find(sweep)
        record = read_sweep(sweep_dir)
        rows = self._snapshot(version, sweep_dir, record).rows if record is not None else []
        return [version.trains_dir / row.name / row.lora for row in rows if row.lora]

    def take_next(self, sweep: str, just_ended: JobFolder | None = None) -> JobFolder | None:
        """The next run of a sweep that is worked off without the queue; None at its end."""
        ended = self._workspace.id_of(just_ended.path) if just_ended is not None else ""
        return self._course.take_next(*self._find(sweep), ended)

    def cards(self) -> list[str]:
        """What a worker may be started for, to have a card of its own; at most one where there is nothing to choose."""
        return cards(os.environ)

    def snapshot(self, sweep: str) -> SweepSnapshot:
        """One sweep. Raises WorkspaceError where there is none."""
        version, sweep_dir = self._find(sweep)
        record = read_sweep(sweep_dir)
        if record is None:
            raise WorkspaceError(f"The sweep {sweep!r} can't be read.")
        return self._snapshot(version, sweep_dir, record)

    # --- kept going ---

    def on_end(self, job: JobFolder) -> None:
        """A training, or the judging of one, has ended: its sweep goes on, if it is of one."""
        spec = job.read_spec()
        train = (job.path / spec.train).resolve() if isinstance(spec, JudgeSpec) else job.path
        for version, sweep_dir in self._sweeps_of(train):
            self._go_on(version, sweep_dir, self._workspace.id_of(job.path))

    def may_run_beside(self, job: JobFolder) -> bool:
        """Whether a job may run on any card of the machine, while others run on theirs: a sweep's runs may."""
        try:
            spec = job.read_spec()
            wants_card = isinstance(spec, TrainSpec) and spec.settings.device in ("auto", "cuda")
            return wants_card and any(True for _ in self._sweeps_of(job.path))
        except TrainToolsError:  # its folder is gone, or damaged: its turn on the first card tells
            return False

    def go_on_all(self) -> None:
        """What every sweep of the workspace has to do after a restart."""
        for project in self._workspace.projects():
            for version in project.versions():
                for sweep_dir in sweep_dirs(version):
                    self._go_on(version, sweep_dir)

    # --- details ---

    def _sweeps_of(self, train: Path) -> Iterator[tuple[Version, Path]]:
        """Those that the training is a run of."""
        if train.parent.name != "trains":
            return
        version = self._workspace.version_of(train)
        for sweep_dir in sweep_dirs(version):
            record = read_sweep(sweep_dir)
            if record is not None and any(run.train == train.name for run in record.runs):
                yield version, sweep_dir

    def _plan(self, version: Version) -> Plan:
        return plan_sweep(version, self._training, self._presets, self._workspace.root)

    def _write_jobs(self, version: Version, plan: Plan, publish_to: Path | None) -> list[SweepRun]:
        """All of them, or none."""
        runs: list[SweepRun] = []
        try:
            for run in plan.runs:
                planned = self._training.plan(version, run.settings, publish_to)
                runs.append(
                    SweepRun(
                        train=planned.job.path.name,
                        label=run.label,
                        values=run.values,
                        total_steps=planned.total_steps,
                        preset=run.preset,
                        s_per_step=run.s_per_step,
                        start_s=run.start_s,
                        judge_s=run.judge_s,
                    )
                )
        except (TrainToolsError, OSError):
            for run in runs:  # nothing was trained in them
                shutil.rmtree(version.trains_dir / run.train, ignore_errors=True)
            raise
        return runs

    def _go_on(self, version: Version, sweep_dir: Path, just_ended: str = "") -> None:
        """What goes wrong is logged: it is tried again at the next occasion."""
        record = read_sweep(sweep_dir)
        if record is None or record.ended or not record.is_queued:
            return
        try:
            self._course.go_on(version, sweep_dir, just_ended)
        except (TrainToolsError, OSError) as error:
            _log.warning("The sweep %s can't go on at the moment: %s", sweep_dir, error)

    def _snapshot(self, version: Version, sweep_dir: Path, record: SweepRecord) -> SweepSnapshot:
        queued = self._course.queued()
        return SweepSnapshot(
            id=self._workspace.id_of(sweep_dir),
            created=record.created,
            ended=record.ended,
            rows=with_best([self._row(version, record, run, queued) for run in record.runs]),
            finish_by=record.finish_by,
            rung=record.rung,
            plan=plan_rows(record.rungs, [run.total_steps for run in record.runs]),
            basis=record.basis,
            notes=record.notes,
        )

    def _row(self, version: Version, record: SweepRecord, run: SweepRun, queued: Queued) -> SweepRow:
        job = JobFolder(version.trains_dir / run.train)
        status = self._course.status(version, run)
        if status is None:
            return SweepRow(job="", name=run.train, label=run.label, status=JobStatus())
        is_open = self._course.is_open(version, record, run, queued)
        is_waiting = is_open and status.state != "running"
        return row_of(run, self._workspace.id_of(job.path), job, status, is_waiting=is_waiting)

    def _find(self, sweep: str) -> tuple[Version, Path]:
        parts = sweep.split("/")
        if len(parts) != 6 or (parts[0], parts[2], parts[4]) != ("projects", "versions", "sweeps"):
            raise WorkspaceError(f"There is no sweep {sweep!r} in {self._workspace.root}.")
        version = self._workspace.find_version(parts[1], parts[3])
        for sweep_dir in sweep_dirs(version):
            if sweep_dir.name == parts[5]:
                return version, sweep_dir
        raise WorkspaceError(f"The sweep {parts[5]!r} does not exist.", "Refresh the page: it may have been deleted.")


def _free_dir(version: Version) -> Path:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    number, path = 1, version.path / "sweeps" / stamp
    while path.exists():
        number += 1
        path = version.path / "sweeps" / f"{stamp}-{number}"
    return path
