"""Starts a worker for a job, finds it again after a restart, and stops it.

Workers outlive the process that started them. Whether one is alive is asked of the system (a process of that number
that really is the worker of this job), never of a flag.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from lora_train.core.errors import JobError
from lora_train.core.jobs import JobFolder, JobStatus, status_from_events

_WINDOWS_GROUP = subprocess.CREATE_NEW_PROCESS_GROUP if sys.platform == "win32" else 0
"""Keeps the console's Ctrl+C from the worker, as a session of its own does elsewhere."""

_PACKAGE_ROOT = Path(__file__).resolve().parents[2]


def start_worker(job: JobFolder) -> subprocess.Popen[bytes]:
    """Start the job's worker in a session of its own, its output going to `worker.log`.

    Raises JobError when the job has a worker already.
    """
    if is_alive(job):
        raise JobError(f"{job.path} is running already.")
    job.clear_requests()
    with job.log_path.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "lora_train.worker", str(job.path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=_environment(),
            cwd=job.path,
            creationflags=_WINDOWS_GROUP,
            start_new_session=True,
        )


def is_alive(job: JobFolder) -> bool:
    """Whether a worker of this very job runs now. A reused process number doesn't deceive it."""
    import psutil

    status = status_from_events(job.events())
    if status.pid == 0:
        return False
    try:
        process = psutil.Process(status.pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        command = process.cmdline()
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:  # another user's process: not ours
        return False
    return "lora_train.worker" in command and str(job.path) in command


def read_status(job: JobFolder, process: subprocess.Popen[bytes] | None = None) -> JobStatus:
    """What the job's folder tells, put right where its worker died without a word.

    `process` is the worker when it is our own child, and saves asking the system.
    """
    status = _told_status(job)
    running = status.state == "running" or (status.state == "waiting" and process is not None)
    if not running:
        return status
    alive = process.poll() is None if process is not None else is_alive(job)
    if alive:
        return status
    status = _told_status(job)  # the last event may have come in between
    if status.state in ("running", "waiting"):
        status.state = "failed"
        status.message = "The worker process ended without a word (killed, or out of memory)."
        status.hint = "It can go on from its last state with `resume`."
        tail = job.log_tail(5)
        status.message += f" The end of its log: {tail}" if tail else ""
        status.eta_s = None
    return status


def _told_status(job: JobFolder) -> JobStatus:
    """What the events tell, without the files that a resume has moved to the trash since."""
    status = status_from_events(job.events())
    status.job_dir = str(job.path)
    status.saved = [path for path in status.saved if (job.path / path).exists()]
    status.sampled = [path for path in status.sampled if (job.path / path).exists()]
    return status


def kill_worker(job: JobFolder) -> None:
    """End the worker at once; at most the steps since its last state are lost."""
    import psutil

    if is_alive(job):
        pid = status_from_events(job.events()).pid
        process = psutil.Process(pid)
        process.kill()
        process.wait(10)


def _environment() -> dict[str, str]:
    """Ours, with our package found and UTF-8 everywhere."""
    environment = dict(os.environ)
    paths = [str(_PACKAGE_ROOT), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    environment["PYTHONUTF8"] = "1"
    environment["PYTHONUNBUFFERED"] = "1"
    return environment
