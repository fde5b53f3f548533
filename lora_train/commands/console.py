"""Runs and watches a job on a terminal. Progress goes to standard error, results to standard output."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from lora_train.core.errors import TrainToolsError
from lora_train.core.jobs import JobFolder, JobStatus, StatusReader
from lora_train.core.specs import DOWNLOADING

if TYPE_CHECKING:
    from lora_train.app import App
    from lora_train.launch.launcher import Worker

_POLL_S = 0.3
_BAR_WIDTH = 24
_SILENCE_S = 30

Result = dict[str, Any]
"""What a command gives: printed as JSON on request; `exit_code` is the program's."""


def run_job(app: App, job: JobFolder, processes: int = 1) -> Result:
    """Run a job in the foreground. Ctrl-C asks it to stop and save; a second one ends it at once."""
    status, _ = train_to_the_end(app, job, processes)
    if status.state in ("stopped", "paused"):
        tell(f'Go on with: lora-train resume "{job.path}"')
    return result_of(job, status)


def train_to_the_end(app: App, job: JobFolder, processes: int = 1) -> tuple[JobStatus, bool]:
    """`run_job` without its last words; whether Ctrl-C was pressed."""
    return _to_the_end(app, job, app.start(job, processes), "Stopping after this step, and saving.")


def watch_job(app: App, job_id: str) -> Result:
    """Show a job that `app` has begun to its end. Ctrl-C asks it to stop, which counts as failed."""
    job = JobFolder(app.workspace.find_job(job_id))
    status, _ = _to_the_end(app, job, app.worker_of(job), "Stopping.")
    return {**_outcome_of(job, status), "exit_code": int(status.state != "finished")}


def _to_the_end(app: App, job: JobFolder, worker: Worker | None, stopping: str) -> tuple[JobStatus, bool]:
    """Follow a job, whose worker is gone at the end; whether Ctrl-C was pressed."""
    asked = False
    while True:
        try:
            status = follow(app, job, worker)
            if worker is not None:
                worker.wait()
            break
        except KeyboardInterrupt:
            if asked:
                app.kill(job)
            else:
                asked = True
                job.request("stop")
                tell(f"\n{stopping} Ctrl-C again ends it at once.")
    if status.state == "failed":
        tell(f"Failed: {status.message}\n{status.hint}".rstrip())
    return status, asked


def result_of(job: JobFolder, status: JobStatus) -> Result:
    """What a training, or another job of `run_job`, came to."""
    return {
        **_outcome_of(job, status),
        "step": status.step,
        "total_steps": status.total_steps,
        "loss": status.loss,
        "loras": [str(job.path / name) for name in status.saved],
        "exit_code": int(status.state == "failed"),
    }


def _outcome_of(job: JobFolder, status: JobStatus) -> Result:
    return {
        "state": status.state,
        "job": str(job.path),
        "message": status.message,
        "hint": status.hint,
        "notes": status.notes,
        "result": status.result,
    }


def follow(app: App, job: JobFolder, worker: Worker | None) -> JobStatus:
    """Show a job's progress until it ends. Gives up at once on one that doesn't run."""
    reader = StatusReader(job)
    is_resumed = worker is not None and worker.told_before_bytes > 0
    shown = len(reader.read().notes) if is_resumed else 0  # those of earlier starts were read when they came
    line = ""
    while True:
        status = app.status(job, worker, reader)
        for note in status.notes[shown:]:
            _show("", line)
            tell(note)
        shown = len(status.notes)
        if status.state not in ("running", "waiting") or (status.state == "waiting" and not worker):
            _show(line_of(status), line, end="\n")
            return status
        line = _show(line_of(status), line)
        time.sleep(_POLL_S)


def line_of(status: JobStatus) -> str:
    """One line that says where a job is."""
    if status.state != "running" or status.phase != "training":
        done = f" {status.phase_done}/{status.phase_total}" if status.phase_total else ""
        if done and status.phase == DOWNLOADING:
            done = f" {status.phase_done / 1e6:.0f}/{status.phase_total / 1e6:.0f} MB"
        if status.state == "running":
            return f"{status.phase or 'starting'}{done}"
        at = f", step {status.step}/{status.total_steps}" if status.total_steps else ""
        return f"{status.state}{at}" + (f": {status.message}" if status.message else "")
    filled = _BAR_WIDTH * status.step // max(1, status.total_steps)
    parts = [
        f"[{'#' * filled}{'.' * (_BAR_WIDTH - filled)}] {status.step}/{status.total_steps}",
        f"epoch {status.epoch}/{status.epochs}",
    ]
    if status.loss is not None and status.s_per_step is not None and status.eta_s is not None:
        minutes, seconds = divmod(round(status.eta_s), 60)
        parts += [
            f"loss {status.loss:.4f}",
            f"{status.s_per_step:.2f} s/step",
            f"{minutes}:{seconds:02} left",
        ]
    if status.validation_loss is not None:
        parts.append(f"held-out loss {status.validation_loss:.4f}")
    if status.silent_s > _SILENCE_S:
        parts.append(f"no sign of life for {status.silent_s:.0f} s")
    return "  ".join(parts)


def _show(line: str, before: str, end: str = "") -> str:
    """Write a progress line over the last one; where nobody watches, only when its first word changes."""
    if sys.stderr.isatty():
        sys.stderr.write("\r" + line.ljust(len(before)) + end)
        sys.stderr.flush()
    elif line and (end or line.split(" ")[0] != before.split(" ")[0]):
        tell(line)
    return line


def tell(message: str) -> None:
    sys.stderr.write(message + "\n")
    sys.stderr.flush()


def say_error(error: TrainToolsError) -> None:
    tell(f"Error: {error.message}")
    if error.hint:
        tell(error.hint)
