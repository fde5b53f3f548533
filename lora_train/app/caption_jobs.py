"""Captions are written: by a worker, or by a thread of this process where the host's own captioners do it.

Where both have a part, and after an *Update Dataset* whose captions the host completes, a thread waits for the worker
and lets the host begin then. It is gone with this process; the captions are then without the host's part, and can be
made again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from lora_train.app.caption_labels import labels_of
from lora_train.app.caption_writing import EditTitle, write_job_step
from lora_train.app.watching import Watch
from lora_train.core.caption_settings import CaptionPolicy
from lora_train.core.errors import JobError, WorkspaceError
from lora_train.core.events import EventWriter, Phase
from lora_train.core.files import relative_path
from lora_train.core.host import Host
from lora_train.core.jobs import JobFolder, JobStatus, RequestedEnd
from lora_train.core.specs import CaptionPlan, CaptionSpec, DatasetSpec
from lora_train.core.workspace import Version, Workspace
from lora_train.launch import launcher
from lora_train.launch.job_thread import has_job_thread, start_job_thread

if TYPE_CHECKING:
    from lora_train.data.host_captions import HostPass

_POLL_S = 0.25
_log = logging.getLogger(__name__)


class CaptionJobs:
    def __init__(self, workspace: Workspace, host: Host, watch: Watch) -> None:
        self._workspace = workspace
        self._host = host
        self._watch = watch
        self._workers: dict[Path, launcher.Worker] = {}
        self._following: dict[Path, threading.Event] = {}
        """Of each version whose captions the host is to complete: set when that is not wanted any more."""

    def start(self, version: Version, plan: CaptionPlan, files: tuple[str, ...], concept: str) -> str:
        """Caption pictures of the trained set (all, without `files`); the id of the job that begins.

        Raises DatasetError when the history of the captions can't be written, JobError when no worker can be started.
        """
        if not (plan.blip or plan.wd14):
            return self._start_host(version, plan, files, concept)[0]
        job, spec = self._new_job(version, without_host(plan), files, concept)
        for ended in self._workers.values():
            ended.poll()  # lets the system forget it
        worker = self._workers[job.path] = launcher.start_worker(job)
        job_id = self._remember(version, job)
        if plan.host:
            self._follow(version, job, worker, plan, spec.concept, lambda: _passes_after_captions(job, plan))
        return job_id

    def follow_update(self, version: Version, job: JobFolder, worker: launcher.Worker, plan: CaptionPlan) -> None:
        """Let the host complete the captions when *Update Dataset* has ended, if it has a part in the plan."""
        spec = job.read_spec()
        if plan.host and isinstance(spec, DatasetSpec):
            self._follow(version, job, worker, plan, spec.concept, lambda: _passes_after_update(version, spec, plan))

    def is_busy(self, version: Version) -> bool:
        """Whether captions are being written, or will be when the update has ended."""
        return version.path in self._following or self._runs(version)

    def stop(self, version: Version) -> None:
        """What is written stays. Raises JobError when nothing is being captioned."""
        cancelled = self._following.get(version.path)
        if cancelled is not None:
            cancelled.set()
        job = self.job(version)
        if job is not None and self._runs(version):
            job.request("stop")
        elif cancelled is None:
            raise JobError("No captions are being written.")

    def job(self, version: Version) -> JobFolder | None:
        """The last captioning of the version."""
        job_id = version.info().caption_job
        try:
            return JobFolder(self._workspace.find_job(job_id)) if job_id else None
        except WorkspaceError:
            return None

    def status(self, version: Version) -> JobStatus | None:
        """Of the last captioning."""
        job = self.job(version)
        return None if job is None else self._watch.status(job, self._workers.get(job.path))

    # --- details ---

    def _runs(self, version: Version) -> bool:
        job, status = self.job(version), self.status(version)
        if job is None or status is None:
            return False
        return status.state == "running" or (
            status.state == "waiting"
            and (launcher.is_coming_up(job, self._workers.get(job.path)) or has_job_thread(job))
        )

    def _new_job(
        self, version: Version, plan: CaptionPlan, files: tuple[str, ...], concept: str
    ) -> tuple[JobFolder, CaptionSpec]:
        """A job that is a step in the history of the captions before it begins."""
        job = JobFolder(self._workspace.new_job_dir("caption"))
        spec = CaptionSpec(
            dataset=relative_path(version.path / "dataset", job.path),
            trash=relative_path(self._workspace.trash_dir, job.path),
            plan=plan,
            files=files,
            concept=concept,
        )
        job.create(spec)
        title = EditTitle("Write captions", ", ".join(labels_of(plan)))
        write_job_step(version, title, self._workspace.id_of(job.path))
        return job, spec

    def _remember(self, version: Version, job: JobFolder) -> str:
        job_id = self._workspace.id_of(job.path)
        with version.changing() as info:
            info.caption_job = job_id
        return job_id

    def _start_host(
        self, version: Version, plan: CaptionPlan, files: tuple[str, ...], concept: str
    ) -> tuple[str, JobFolder, threading.Thread]:
        """A job that the host's captioners do; its id, its folder and its thread."""
        only_host = msgspec.structs.replace(plan, blip="", wd14="")
        job, spec = self._new_job(version, only_host, files, concept)

        def work(events: EventWriter) -> dict[str, object]:
            from lora_train.data.captioning import write_captions

            events.write(Phase(name="waiting for the WebUI"))
            with self._host.open_captioner(plan.host, plan.settings) as captioner:
                if (request := job.requested()) is not None:
                    raise RequestedEnd(request)
                return write_captions(spec, job, captioner, events)

        return self._remember(version, job), job, start_job_thread(job, work)

    def _follow(
        self,
        version: Version,
        job: JobFolder,
        worker: launcher.Worker,
        plan: CaptionPlan,
        concept: str,
        passes: Callable[[], list[HostPass]],
    ) -> None:
        """When the worker has finished its job, let the host do the passes, one after the other."""
        cancelled = self._following[version.path] = threading.Event()

        def wait_and_go_on() -> None:
            try:
                while worker.poll() is None:
                    cancelled.wait(_POLL_S)
                if self._watch.status(job, worker).state != "finished":
                    return
                for files, policy in passes():
                    if cancelled.is_set():
                        return
                    settings = msgspec.structs.replace(plan.settings, policy=policy)
                    one = msgspec.structs.replace(plan, settings=settings)
                    _, host_job, thread = self._start_host(version, one, files, concept)
                    thread.join()
                    if self._watch.status(host_job).state != "finished":
                        return
            except Exception:  # the border of the thread; the person sees captions without the host's part
                _log.exception("The WebUI's captioners could not complete the captions of %s.", version.path)
            finally:
                del self._following[version.path]

        threading.Thread(target=wait_and_go_on, name="train-tools-captions", daemon=True).start()


def without_host(plan: CaptionPlan) -> CaptionPlan:
    """What a worker can do of it."""
    return msgspec.structs.replace(plan, host=())


def _passes_after_captions(job: JobFolder, plan: CaptionPlan) -> list[HostPass]:
    """The pictures that the worker has just captioned."""
    from lora_train.data.captioning import read_changes
    from lora_train.data.host_captions import HostPass, joining_policy

    policies: dict[CaptionPolicy, CaptionPolicy] = {"prepend": "prepend", "append": "append"}
    files = tuple(read_changes(job))
    return [HostPass(files, policies.get(plan.settings.policy, joining_policy(plan.host)))] if files else []


def _passes_after_update(version: Version, spec: DatasetSpec, plan: CaptionPlan) -> list[HostPass]:
    from lora_train.data.host_captions import passes_after_update

    return passes_after_update(
        version.path / "dataset",
        fallback=spec.concept,
        action=spec.settings.caption_action,
        has_models=bool(plan.blip or plan.wd14),
        kinds=plan.host,
    )
