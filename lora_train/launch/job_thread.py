"""A job that a thread of this process does, because it needs what only this process has: the host's own models.

Its folder tells the same as a worker's. It ends with the process; what is found of it later reads as failed.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from pathlib import Path

from lora_train.core import events as ev
from lora_train.core.failures import failure_of
from lora_train.core.jobs import JobFolder, RequestedEnd

_BEAT_S = 2.0

_at_work: dict[Path, threading.Thread] = {}


def start_job_thread(job: JobFolder, work: Callable[[ev.EventWriter], dict[str, object]]) -> threading.Thread:
    """Do the job: `work` gives its result, or raises RequestedEnd where `stop` was asked for."""
    thread = threading.Thread(target=_run, args=(job, work), name="train-tools-job", daemon=True)
    _at_work[job.path] = thread
    thread.start()
    return thread


def has_job_thread(job: JobFolder) -> bool:
    """Whether a thread of this process is at work on the job."""
    thread = _at_work.get(job.path)
    return thread is not None and thread.is_alive()


def _run(job: JobFolder, work: Callable[[ev.EventWriter], dict[str, object]]) -> None:
    events = ev.EventWriter(job.events_path)
    events.write(ev.Started(pid=0))
    has_ended = threading.Event()
    beats = threading.Thread(target=_beat, args=(events, has_ended), daemon=True)
    beats.start()
    try:
        events.write(ev.Finished(result=work(events)))
    except RequestedEnd:
        events.write(ev.Stopped(step=0))
    except Exception as error:  # the border of the thread: nothing may end without a last event
        events.write(failure_of(error))
        with job.log_path.open("a", encoding="utf-8") as log:
            traceback.print_exc(file=log)
    finally:
        has_ended.set()
        beats.join()
        events.close()
        _at_work.pop(job.path, None)


def _beat(events: ev.EventWriter, has_ended: threading.Event) -> None:
    while not has_ended.wait(_BEAT_S):
        events.beat()
