"""Keeps a sweep going: hands its runs out, compares them at the end of a rung, drops the weaker half, ends in time.

Nothing is kept in memory: `sweep.json` and the folders of the trainings say where a sweep is, so every call may be the
first one after a restart, and calling once too often does no harm.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from lora_train.app.judging import Judging
from lora_train.app.loras import Loras
from lora_train.app.paces import measured_pace
from lora_train.app.sweep_planning import USED_OF_TIME, costs_of
from lora_train.app.sweep_table import judged, strength_of
from lora_train.app.watching import Watch
from lora_train.core.errors import JobError, TrainToolsError
from lora_train.core.events import EventWriter, Note, Stopped
from lora_train.core.files import lock
from lora_train.core.halving import Basis, Rung, halving_plan, seconds_of, strongest_first
from lora_train.core.jobs import JobFolder, JobStatus
from lora_train.core.limits import Limits, write_limits
from lora_train.core.sweep_record import Ending, SweepRecord, SweepRun, read_sweep, write_sweep
from lora_train.core.workspace import Version, Workspace
from lora_train.launch import launcher
from lora_train.launch.queue import JobQueue

_LOCK_WAIT_S = 10.0
_SHARE_FOR_SAVING = 0.02
_MOST_FOR_SAVING_S = 60.0
"""So long before the time that a sweep is to finish by, its last run is stopped, to save its LoRA."""
_MOST_OF_TIME_FOR_JUDGING = 0.5
_SHORTENED = "Runs went slower than planned: those that came later in a rung have fewer steps."
_COMPARED: dict[Basis, str] = {
    "validation and judge": "Runs were compared by validation loss and the judge's score.",
    "validation": "Runs were compared by validation loss.",
    "judge": "Runs were compared by the judge's score: no pictures are held out.",
    "loss": "Runs were compared by training loss, which says little: hold pictures out, or let the judge compare.",
}


class Queued(NamedTuple):
    """The queue at one moment."""

    running: set[str]
    waiting: set[str]


class Course:
    def __init__(self, workspace: Workspace, jobs: JobQueue, loras: Loras, judging: Judging, watch: Watch) -> None:
        self._workspace = workspace
        self._jobs = jobs
        self._loras = loras
        self._judging = judging
        self._watch = watch

    def go_on(self, version: Version, sweep_dir: Path, just_ended: str = "") -> None:
        """Do what is to be done now, if anything. `just_ended` is a job that the queue is about to let go."""
        with self._changing(sweep_dir) as record:
            if record.ended:
                return
            if 0 < stop_at(record) <= time.time():
                self._end(version, sweep_dir, record, "out of time")
                return
            self._hand_out(version, record)
            if just_ended:
                self._correct(version, record)
            while not record.ended and not self._is_busy(version, record, just_ended):
                self._climb(version, sweep_dir, record)
                self._hand_out(version, record)

    def take_next(self, version: Version, sweep_dir: Path, just_ended: str = "") -> JobFolder | None:
        """The next run of a sweep that a command line works off in its foreground; None at the end."""
        self.go_on(version, sweep_dir, just_ended)
        with self._changing(sweep_dir) as record:
            for run in record.runs:
                if run.train in record.to_hand_out:
                    record.to_hand_out.remove(run.train)
                    return self._limited(version, record, run)
        return None

    def stop(self, version: Version, sweep_dir: Path) -> None:
        """Take what waits out of the queue, and let what runs save its LoRA and end."""
        with self._changing(sweep_dir) as record:
            if not record.ended:
                self._end(version, sweep_dir, record, "stopped")

    def queued(self) -> Queued:
        return Queued(set(self._jobs.all_running()), set(self._jobs.waiting()))

    def is_open(self, version: Version, record: SweepRecord, run: SweepRun, queued: Queued) -> bool:
        """Whether a run of the present rung is still to come, or at work."""
        if record.ended:
            return False
        if run.train in record.to_hand_out:
            return True
        job = self._workspace.id_of(version.trains_dir / run.train)
        if job in queued.waiting or job in queued.running:
            return True
        status = self.status(version, run)
        return status is not None and status.state == "running"

    def status(self, version: Version, run: SweepRun) -> JobStatus | None:
        """None where the training was deleted."""
        job = JobFolder(version.trains_dir / run.train)
        return self._watch.status(job) if job.spec_path.is_file() else None

    # --- details ---

    def _is_busy(self, version: Version, record: SweepRecord, just_ended: str) -> bool:
        queued = self.queued()
        queued = queued._replace(running=queued.running - {just_ended})
        if any(job in queued.waiting or job in queued.running for job in filter(None, record.judging.values())):
            return True
        return any(self.is_open(version, record, run, queued) for run in record.present())

    def _hand_out(self, version: Version, record: SweepRecord) -> None:
        """Put what is to run in this rung into the queue, with its limits. A command line takes it one by one."""
        for run in record.runs:
            if run.train not in record.to_hand_out:
                continue
            status = self.status(version, run)
            if status is None or status.state == "finished":
                record.to_hand_out.remove(run.train)
            elif record.is_queued:
                job = self._limited(version, record, run)
                job.clear_requests()
                with suppress(JobError):  # it is in there already: this was interrupted before
                    self._jobs.add(self._workspace.id_of(job.path))
                record.to_hand_out.remove(run.train)

    def _limited(self, version: Version, record: SweepRecord, run: SweepRun) -> JobFolder:
        """The run's folder, with its limits for the next worker."""
        job = JobFolder(version.trains_dir / run.train)
        write_limits(job.path, Limits(run.limit, stop_at(record)))
        return job

    def _climb(self, version: Version, sweep_dir: Path, record: SweepRecord) -> None:
        """The present rung is over: drop the weaker half, and plan anew with what was measured."""
        come = [(run, status) for run in record.present() if (status := self._come_so_far(version, run)) is not None]
        for run, status in come:
            run.come = status.step
        if not record.finish_by or all(status.state == "finished" for _, status in come):
            self._end(version, sweep_dir, record, "finished")
            return
        rung = record.rungs[record.rung]
        if rung.seconds is not None or record.rung > 0:  # the trial drops none
            if record.judges and len(come) > (rung.runs + 1) // 2 and self._let_judge(version, record, come):
                return
            come = self._drop_weaker(version, record, come, keep=(rung.runs + 1) // 2)
        ahead = [(run, status) for run, status in come if status.state != "finished"]
        plan = self._plan_anew(version, record, ahead) if ahead else []
        while not _comes_to_an_end(plan) and len(ahead) > 1:  # no time for all of these, but perhaps for fewer
            if _is_time_to_judge(record, come) and self._let_judge(version, record, come):
                return
            come = self._drop_weaker(version, record, come, keep=(len(come) + 1) // 2)
            ahead = [(run, status) for run, status in come if status.state != "finished"]
            plan = self._plan_anew(version, record, ahead) if ahead else []
        if not plan:
            self._end(version, sweep_dir, record, "out of time" if ahead else "finished")
            return
        record.rung += 1
        record.rungs = [*record.rungs[: record.rung], *plan]
        begin_rung(record, [run for run, _ in ahead])
        write_sweep(sweep_dir, record)  # before any is handed out: after a crash the rest of them is
        self._settle(version, record)

    def _let_judge(self, version: Version, record: SweepRecord, come: Sequence[tuple[SweepRun, JobStatus]]) -> bool:
        """Put the judging of every run's newest LoRA into the queue, once in each rung; whether there is any to come.

        A run that can't be judged is compared by what else is known of all.
        """
        for run, status in come:
            job = JobFolder(version.trains_dir / run.train)
            opinion = judged(job, status)
            if run.train in record.judging or not status.saved or (opinion is not None and opinion.has_newest):
                continue
            record.judging[run.train] = ""
            with suppress(TrainToolsError):
                record.judging[run.train] = self._judging.begin(self._workspace.id_of(job.path), only=status.saved[-1])
        waiting = self._jobs.waiting()
        return any(job in waiting for job in record.judging.values())

    def _come_so_far(self, version: Version, run: SweepRun) -> JobStatus | None:
        """The status of a run that came to the end of its rung; None for one that is out."""
        status = self.status(version, run)
        if status is None or status.state == "finished":
            return status
        return status if status.state == "paused" and 0 < run.limit <= status.step else None

    def _correct(self, version: Version, record: SweepRecord) -> None:
        """Where runs of this rung went so much slower than planned that time will be short, those that wait get fewer
        steps: the rest of the rung takes the share of the time that is left that it had in the plan.
        """
        rung = record.rungs[record.rung]
        queued = self.queued().waiting
        waiting = [
            run
            for run in record.present()
            if run.train in record.to_hand_out or self._workspace.id_of(version.trains_dir / run.train) in queued
        ]
        slowness = self._slowness(version, record, waiting)
        if not record.finish_by or rung.runs == 1 or not waiting or slowness <= 1:
            return
        done = {run.train: run.come for run in waiting}
        steps_s = sum(((run.limit or run.total_steps) - done[run.train]) * (run.s_per_step or 0) for run in waiting)
        starts_s = sum(run.start_s or 0 for run in waiting)
        later_s = seconds_of(record.rungs[record.rung + 1 :]) or 0.0
        left_s = USED_OF_TIME * (stop_at(record) - time.time())
        planned_s = steps_s + starts_s
        if slowness * (planned_s + later_s) <= left_s:
            return
        share = (left_s * planned_s / (planned_s + later_s) / slowness - starts_s) / steps_s
        if share <= 0:  # not even for their starts: the time itself ends the sweep
            return
        for run in waiting:
            more = (run.limit or run.total_steps) - done[run.train]
            run.limit = done[run.train] + max(1, int(share * more))
            self._limited(version, record, run)
        if _SHORTENED not in record.notes:
            record.notes.append(_SHORTENED)

    def _slowness(self, version: Version, record: SweepRecord, waiting: list[SweepRun]) -> float:
        """How many times as long as planned the runs took that this rung is over for; 1 where nobody knows."""
        planned_s = measured_s = 0.0
        for run in record.present():
            status = self.status(version, run)
            if run in waiting or status is None or status.step <= run.come:
                continue
            pace = measured_pace(JobFolder(version.trains_dir / run.train).each_event())
            if pace is not None and run.s_per_step is not None and run.start_s is not None:
                planned_s += pace.steps * run.s_per_step + run.start_s
                measured_s += pace.steps * pace.s_per_step + (pace.start_s or 0.0)
        return measured_s / planned_s if planned_s else 1.0

    def _drop_weaker(
        self, version: Version, record: SweepRecord, come: list[tuple[SweepRun, JobStatus]], keep: int
    ) -> list[tuple[SweepRun, JobStatus]]:
        """Those that stay. Runs that failed, or that a person ended, count as dropped."""
        if len(come) <= keep:
            return come
        strengths = [strength_of(JobFolder(version.trains_dir / run.train), status) for run, status in come]
        order, record.basis = strongest_first(strengths)
        for place in order[keep:]:
            come[place][0].is_dropped = True
        if _COMPARED[record.basis] not in record.notes:
            record.notes.append(_COMPARED[record.basis])
        return [come[place] for place in sorted(order[:keep])]

    def _plan_anew(self, version: Version, record: SweepRecord, ahead: list[tuple[SweepRun, JobStatus]]) -> list[Rung]:
        for run, _ in ahead:
            pace = measured_pace(JobFolder(version.trains_dir / run.train).each_event())
            if pace is not None:
                run.s_per_step, run.start_s = pace.s_per_step, pace.start_s
        costs = costs_of(
            [run for run, _ in ahead], [status.step for _, status in ahead], [run.total_steps for run, _ in ahead]
        )
        return halving_plan(costs, USED_OF_TIME * (stop_at(record) - time.time())) if costs else []

    def _end(self, version: Version, sweep_dir: Path, record: SweepRecord, ending: Ending) -> None:
        """For good: what is told before anything is done about it is done again after a crash, or was the queue's."""
        waiting = self._jobs.waiting()
        record.ended, record.to_hand_out = ending, []
        write_sweep(sweep_dir, record)
        for run in record.runs:
            job = JobFolder(version.trains_dir / run.train)
            job_id = self._workspace.id_of(job.path)
            if job_id in waiting:
                with suppress(JobError):  # its turn has just come
                    self._jobs.cancel(job_id)
            if self._jobs.is_starting(job_id) or launcher.is_alive(job):
                job.request("stop")
            elif job.path.is_dir():
                write_limits(job.path, Limits())
        for judge in set(record.judging.values()).intersection(waiting):
            with suppress(JobError):
                self._jobs.cancel(judge)
        self._settle(version, record)

    def _settle(self, version: Version, record: SweepRecord) -> None:
        """A run that paused at a limit, and will not go on, has its LoRA: it is as good as stopped."""
        for run in record.runs:
            job = JobFolder(version.trains_dir / run.train)
            if not (run.is_dropped or record.ended):
                continue
            status = self.status(version, run)
            if status is None or status.state != "paused" or status.step not in {run.come, run.limit} - {0}:
                continue
            events = EventWriter(job.events_path)
            if run.is_dropped:
                events.write(Note("info", "The sweep went on with stronger runs. Resume trains this one to its end."))
            events.write(Stopped(step=status.step))
            events.close()
            write_limits(job.path, Limits())
            if not run.is_dropped:
                with suppress(TrainToolsError):  # it stays where it was trained, and can be published by hand
                    self._loras.publish_result(job)

    @contextmanager
    def _changing(self, sweep_dir: Path) -> Generator[SweepRecord, None, None]:
        """The record, written back at the end; other threads and programs that change it wait.

        Raises JobError where there is none.
        """
        until = time.monotonic() + _LOCK_WAIT_S
        while (held := lock(sweep_dir / "lock")) is None:
            if time.monotonic() > until:
                raise JobError("The sweep is locked by another program.", "Try again in a moment.")
            time.sleep(0.01)
        with held:
            record = read_sweep(sweep_dir)
            if record is None:
                raise JobError(f"{sweep_dir} is no sweep.")
            yield record
            write_sweep(sweep_dir, record)


def _is_time_to_judge(record: SweepRecord, come: Sequence[tuple[SweepRun, JobStatus]]) -> bool:
    """Where time is short already, judging must leave most of it to the training."""
    judging_s = sum(run.judge_s for run, _ in come)
    return record.judges and judging_s <= _MOST_OF_TIME_FOR_JUDGING * (stop_at(record) - time.time())


def _comes_to_an_end(plan: Sequence[Rung]) -> bool:
    return bool(plan) and plan[-1].share >= 1


def begin_rung(record: SweepRecord, runs: Sequence[SweepRun]) -> None:
    """Let these runs go on to the end of the present rung."""
    record.judging = {}
    rung = record.rungs[record.rung]
    for run in runs:
        limit = rung.limit(run.total_steps)
        # The last one goes on as long as there is time.
        run.limit = 0 if limit >= run.total_steps or rung.runs == 1 else limit
    record.to_hand_out = [run.train for run in runs]


def stop_at(record: SweepRecord) -> float:
    """When the last run has to be stopped, unix seconds; 0 where there is no such time."""
    if not record.finish_by:
        return 0.0
    return record.finish_by - min(_MOST_FOR_SAVING_S, _SHARE_FOR_SAVING * (record.finish_by - record.created))
