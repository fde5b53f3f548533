"""Starts a worker for a job, finds it again after a restart, and stops it.

Workers outlive the process that started them. Whether one is alive is asked of the system (a process of that number
that really is the worker of this job), never of a flag.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import weakref
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from lora_train.core.errors import JobError
from lora_train.core.jobs import JobFolder, JobStatus, StatusReader
from lora_train.core.specs import TrainSpec
from lora_train.launch.job_thread import has_job_thread
from lora_train.launch.leftovers import folders_of, remove_leftovers

if TYPE_CHECKING:
    import psutil

_LAST_WORDS_BYTES = 16_384
"""More than any last event and the log of a failure need."""
_ENDING_S = 30.0
"""How long a worker that has said its last word may take to free its memory and end."""

OWN_CONSOLE = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW if sys.platform == "win32" else 0
"""Windows: keeps Ctrl+C and the closing of the console from the worker, as a session of its own does elsewhere."""

PACKAGE_ROOT = Path(__file__).resolve().parents[2]


class Worker(subprocess.Popen[bytes]):
    """A worker process of ours. The first `told_before_bytes` of its job's events are of earlier ones."""

    told_before_bytes: int = 0

    def has_begun(self, job: JobFolder) -> bool:
        """Whether the job's events tell of this worker yet."""
        return job.has_told_since(self.told_before_bytes)


_started: weakref.WeakValueDictionary[Path, Worker] = weakref.WeakValueDictionary()
"""The last worker that this process started for a job, by its folder, as long as somebody keeps it."""


def start_worker(job: JobFolder, processes: int = 1, card: str = "") -> Worker:
    """Start the job's worker in a session of its own, its output going to `worker.log`.

    A training's worker shares it with as many processes as are asked for, counting itself; it starts the others.
    `card` (as in CUDA_VISIBLE_DEVICES) is the only one that the worker sees.

    A request that waits in the folder is meant for this worker. Raises JobError when the job has a worker already, or
    none can be started.
    """
    if is_alive(job) or not wait_for_end(job):
        raise JobError(f"{job.path} is running already.")
    for folder in folders_of(job):
        remove_leftovers(folder)
    told_before_bytes = job.told_bytes()
    more = ["--processes", str(processes)] if processes > 1 else []
    try:
        with job.log_path.open("ab") as log:
            worker = Worker(
                [sys.executable, "-m", "lora_train.worker", *more, str(job.path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment() | ({"CUDA_VISIBLE_DEVICES": card} if card else {}),
                cwd=PACKAGE_ROOT,  # and not the job's folder: Python looks for modules where it starts
                creationflags=OWN_CONSOLE,
                start_new_session=True,
            )
    except OSError as error:
        raise JobError(f"The worker process could not start: {error}.") from None
    worker.told_before_bytes = told_before_bytes
    _started[job.path] = worker
    with suppress(OSError):  # a full disk: until its first word the worker is then known here alone
        _pid_file(job).write_text(str(worker.pid), encoding="ascii")
    return worker


def is_coming_up(job: JobFolder, worker: Worker | None) -> bool:
    """Whether a job that has told nothing has a worker, `worker` being the one that was started here, if any."""
    return worker is not None or process_of(job) is not None


def help_others() -> int:
    """Be one of the processes that `accelerate launch` has started: compute for the training that the first of them
    does, to its end. Returns the exit code. Ctrl-C is for the first to hear.
    """
    helper = subprocess.Popen(
        [sys.executable, "-m", "lora_train.worker"],
        stdin=subprocess.DEVNULL,
        env=environment(),
        cwd=PACKAGE_ROOT,
        creationflags=OWN_CONSOLE,
        start_new_session=True,
    )
    while True:
        with suppress(KeyboardInterrupt):
            return helper.wait()


def started_worker(job: JobFolder) -> Worker | None:
    """The worker that this process started for the job and still keeps; None where there is none."""
    return _started.get(job.path)


def is_alive(job: JobFolder) -> bool:
    """Whether a worker of this very job, or a thread of ours, is at work now, its last word not said yet."""
    is_running = StatusReader(job).read().state == "running"
    return is_running and (has_job_thread(job) or process_of(job) is not None)


def process_of(job: JobFolder) -> psutil.Process | None:
    """The process of the job's worker, be it coming up, at work or just ending; None where there is none."""
    return _process(job, StatusReader(job).read().pid) or _process(job, _started_pid(job))


def is_running(process: psutil.Process | Worker) -> bool:
    """Whether a worker's process, ours or one that was found, is still there."""
    import psutil

    if isinstance(process, Worker):
        return process.poll() is None
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for_end(job: JobFolder) -> bool:
    """Wait until a worker that has said its last word is gone, and its memory free; False when it stays."""
    pids = StatusReader(job).read().pid, _started_pid(job)
    until = time.monotonic() + _ENDING_S
    while any(_process(job, pid) is not None for pid in pids):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def read_status(job: JobFolder, worker: Worker | None = None, reader: StatusReader | None = None) -> JobStatus:
    """What the job's folder tells, put right where its worker died without a word.

    `worker` is the one we started, if we did: the status is then its own, not that of an earlier one. Whoever asks
    again and again keeps a `reader`, so that old events are not read again.
    """
    reader = reader or StatusReader(job)
    status = _told_status(job, worker, reader)
    if status.state not in ("running", "waiting") or (status.state == "waiting" and worker is None):
        return status
    is_at_work = worker.poll() is None if worker is not None else _process(job, status.pid) is not None
    if is_at_work or has_job_thread(job):
        status.silent_s = job.silent_s()
        return status
    status = _told_status(job, worker, reader)  # the last event may have come in between
    if status.state in ("running", "waiting"):
        status.state = "failed"
        status.message = "The worker process ended without a word (killed, or out of memory)."
        is_full = _is_disk_full(job)
        if is_full:
            status.message = "The worker process ended because its disk is full."
        status.hint = _HINTS[_is_training(job), is_full]
        tail = job.log_tail(5)
        status.message += f"\nThe end of its log: {tail}" if tail else ""
        status.eta_s = None
    return status


_HINTS = {
    (True, False): "Resume goes on from the last saved state.",
    (True, True): "Free some space. Resume then goes on from the last saved state.",
    (False, False): "Start it again; nothing was lost.",
    (False, True): "Free some space, then start it again; nothing was lost.",
}
"""By whether it was a training, and whether the disk is full."""


def _is_training(job: JobFolder) -> bool:
    """Only a training has states. One whose `job.json` is damaged counts as none: it can't be resumed."""
    try:
        return isinstance(job.read_spec(), TrainSpec)
    except JobError:
        return False


def _is_disk_full(job: JobFolder) -> bool:
    """Whether a worker could not even tell of its end."""
    try:
        return shutil.disk_usage(job.path).free < _LAST_WORDS_BYTES
    except OSError:
        return False


def _told_status(job: JobFolder, worker: Worker | None, reader: StatusReader) -> JobStatus:
    """What the events tell, without the files that a resume has moved to the trash since."""
    has_begun = worker is None or worker.has_begun(job)
    status = reader.read()
    if not has_begun:
        status.state, status.message, status.hint = "waiting", "", ""
    status.job_dir = str(job.path)
    status.saved = [path for path in status.saved if (job.path / path).exists()]
    status.sampled = [path for path in status.sampled if (job.path / path).exists()]
    return status


def kill_worker(job: JobFolder) -> None:
    """End the worker at once; at most the steps since its last state are lost. A thread of ours is asked to stop."""
    until = time.monotonic() + _ENDING_S
    while has_job_thread(job) and time.monotonic() < until:
        job.request("stop")
        time.sleep(0.05)
    process = process_of(job)
    if process is not None:
        process.kill()
        wait_for_end(job)


def _pid_file(job: JobFolder) -> Path:
    """Tells who was started last, for the moment until it has said its first word."""
    return job.path / "worker.pid"


def _started_pid(job: JobFolder) -> int:
    try:
        return int(_pid_file(job).read_text(encoding="ascii"))
    except (OSError, ValueError):  # none was started, or its starter died at it
        return 0


def _process(job: JobFolder, pid: int) -> psutil.Process | None:
    """The process of this number, if it is a worker of this very job: a reused number doesn't deceive it."""
    import psutil

    if pid == 0:
        return None
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        command = process.cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied):  # denied: another user's process, so not ours
        return None
    return process if "lora_train.worker" in command and str(job.path) in command else None


def environment() -> dict[str, str]:
    """Ours, with our package found and UTF-8 everywhere."""
    environment = dict(os.environ)
    if PACKAGE_ROOT.name not in ("site-packages", "dist-packages"):  # found by itself where it is installed
        paths = [str(PACKAGE_ROOT), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    environment["PYTHONUTF8"] = "1"
    environment["PYTHONUNBUFFERED"] = "1"
    return environment
