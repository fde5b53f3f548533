"""The proofs of published LoRAs: queued after each publishing, and what they came to."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Literal

import msgspec

from lora_train.app.host_proof import ask_host
from lora_train.app.in_use import InUse
from lora_train.app.snapshot import Proving
from lora_train.app.triggers import trigger_of
from lora_train.app.watching import Watch
from lora_train.core.config import TrainSettings
from lora_train.core.errors import JobError, TrainToolsError, WorkspaceError
from lora_train.core.files import relative_path
from lora_train.core.host import Host
from lora_train.core.jobs import JobFolder
from lora_train.core.original import finished_train
from lora_train.core.proofs import Proof, read_proofs
from lora_train.core.records import read_json, write_json
from lora_train.core.specs import ProofSpec, TrainSpec
from lora_train.core.workspace import Workspace
from lora_train.launch.queue import JobQueue
from lora_train.publish import Published, is_in_place, read_record

_JOBS_NAME = "proving.json"


class _Jobs(msgspec.Struct):
    """`proving.json` in a training's folder: LoRA file -> the last job that proved its copy."""

    loras: dict[str, str] = {}


class Proofs:
    def __init__(self, workspace: Workspace, host: Host, jobs: JobQueue, in_use: InUse, watch: Watch) -> None:
        self._workspace = workspace
        self._host = host
        self._jobs = jobs
        self._in_use = in_use
        self._watch = watch
        self._ended: dict[str, Proving] = {}
        """What jobs came to that ended without a proof: nobody takes them up again."""

    def begin(self, job: str, file: str) -> str:
        """Queue a job that reads the published copy of a LoRA back; its id.

        Raises WorkspaceError where it is not published, JobError while it is proven already.
        """
        train = JobFolder(self._workspace.find_job(job))
        if file in self._in_use.being_proven(train.path):
            raise JobError(f"{file} is being proven, or waits for the card.")
        proving = self.plan(train, file)
        proving_id = self._workspace.id_of(proving.path)
        known = read_json(train.path / _JOBS_NAME, _Jobs, _Jobs())
        write_json(train.path / _JOBS_NAME, _Jobs({**known.loras, file: proving_id}))
        self._jobs.add(proving_id)
        return proving_id

    def plan(self, train: JobFolder, file: str) -> JobFolder:
        """The job of `begin`; nothing runs yet. Raises WorkspaceError where the LoRA is not published."""
        published = read_record(train.path).loras.get(file)
        if published is None or not is_in_place(published):
            raise WorkspaceError(f"{file} is not published.", "Publish it first.")
        settings, concept = TrainSettings(), ""
        if finished_train(train.path) is None and isinstance(spec := self._watch.spec(train), TrainSpec):
            settings, concept = spec.settings, spec.concept
        proving = JobFolder(self._workspace.new_job_dir("proof"))
        proving.create(
            ProofSpec(
                train=relative_path(train.path, proving.path),
                lora=file,
                published=published.path,
                tensors_sha256=published.tensors_sha256,
                prompt=next(iter(settings.preview_prompts), "") or trigger_of(train.path / file) or concept,
                settings=settings,
            )
        )
        return proving

    def on_published(self, train: JobFolder, file: str, published: Published) -> None:
        """Prove a copy that was just written, unless that was done or is under way."""
        proof = read_proofs(train).get(file)
        if proof is not None and (proof.published, proof.tensors_sha256) == (published.path, published.tensors_sha256):
            return
        with suppress(TrainToolsError):  # it is published all the same
            self.begin(self._workspace.id_of(train.path), file)

    def ask_host(self, job: JobFolder, spec: ProofSpec) -> None:
        """When a proof has ended: let the host draw too, without waiting for it."""
        ask_host(self._host, JobFolder((job.path / spec.train).resolve()), spec)

    def states(self, train: JobFolder, copies: Mapping[str, Published]) -> dict[str, Proving]:
        """How far it is with the copies that there are now, by LoRA file."""
        if not copies:
            return {}
        jobs = read_json(train.path / _JOBS_NAME, _Jobs, _Jobs()).loras
        proofs = read_proofs(train)
        being_proven = self._in_use.being_proven(train.path) if jobs else set[str]()
        return {
            file: Proving("proving", job=jobs[file])
            if file in jobs and file in being_proven
            else self._state(copy, jobs.get(file, ""), proofs.get(file))
            for file, copy in copies.items()
        }

    def _state(self, copy: Published, job: str, proof: Proof | None) -> Proving:
        """Of a copy that no job is about to prove; `job` is the last one that did."""
        if proof is not None and (proof.published, proof.tensors_sha256) == (copy.path, copy.tensors_sha256):
            state: Literal["proven", "refuted"] = "refuted" if proof.reason else "proven"
            return Proving(state, proof, job)
        if job in self._ended:
            return self._ended[job]
        found = Proving("unproven", job=job)
        with suppress(TrainToolsError, OSError):  # the job's folder is gone
            status = self._watch.status(JobFolder(self._workspace.find_job(job)))
            if status.state == "failed":
                found = Proving("failed", None, job, f"{status.message} {status.hint}".strip())
            if status.state in ("failed", "stopped"):
                self._ended[job] = found
        return found
