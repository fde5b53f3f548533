"""The proof of a published LoRA: queued by publishing, known by the copy that it is about, taken for no other."""

from __future__ import annotations

from typing import Any

import pytest

from lora_train.app.snapshot import Proving
from lora_train.core import events as ev
from lora_train.core.errors import JobError, WorkspaceError
from lora_train.core.proofs import FILE_NAME, Fact, Proof, Proofs
from lora_train.core.records import write_json
from lora_train.core.specs import ProofSpec
from lora_train.publish import read_record

Desk = Any
FILE = "cat-v1.safetensors"


def proving(desk: Desk, job: str) -> Proving | None:
    folder = desk.job(job)
    (entry,) = desk.app.loras.entries(folder, desk.app.status(folder))
    return entry.proving


def proven(desk: Desk, job: str, **changes: Any) -> None:
    """`proofs.json` as the worker leaves it, and the queue without the job."""
    published = read_record(desk.job(job).path).loras[FILE]
    proof = Proof(
        **{
            "published": published.path,
            "tensors_sha256": published.tensors_sha256,
            "facts": (Fact("Rank", "4"),),
            **changes,
        }
    )
    write_json(desk.job(job).path / FILE_NAME, Proofs({FILE: proof}))
    for waiting in desk.app.queue.entries():
        desk.app.queue.cancel(waiting.job)


def test_publishing_queues_it(desk: Desk) -> None:
    job = desk.finished(preview_prompts=("cat, window",))
    assert proving(desk, job) is None
    desk.app.loras.publish(job, FILE)
    (entry,) = desk.app.queue.entries()
    assert (entry.kind, entry.title) == ("proof", "cat v1: cat-v1")
    spec = desk.job(entry.job).read_spec()
    assert isinstance(spec, ProofSpec)
    assert (desk.job(entry.job).path / spec.train).resolve() == desk.job(job).path
    assert (spec.lora, spec.prompt) == (FILE, "cat, window")
    shown = proving(desk, job)
    assert shown is not None
    assert (shown.state, shown.job) == ("proving", entry.job)
    with pytest.raises(JobError, match="is being proven"):
        desk.app.proofs.begin(job, FILE)


def test_what_it_came_to(desk: Desk) -> None:
    job = desk.finished()
    desk.app.loras.publish(job, FILE)
    proven(desk, job)
    shown = proving(desk, job)
    assert shown is not None
    assert shown.state == "proven"
    assert shown.proof is not None
    assert shown.proof.facts == (Fact("Rank", "4"),)
    desk.app.loras.publish(job, FILE)  # the same copy needs no other proof
    assert desk.app.queue.entries() == []
    proven(desk, job, reason="At weight 1 it draws an empty picture.", hint="Train it anew.")
    assert proving(desk, job).state == "refuted"  # type: ignore[union-attr]
    assert proven(desk, job, tensors_sha256="0" * 64) is None
    assert proving(desk, job).state == "unproven"  # type: ignore[union-attr]  (it is about another copy)


def test_the_job_failed(desk: Desk) -> None:
    job = desk.finished()
    desk.app.loras.publish(job, FILE)
    (entry,) = desk.app.queue.entries()
    desk.app.queue.cancel(entry.job)
    assert proving(desk, job).state == "unproven"  # type: ignore[union-attr]
    desk.tell(desk.job(entry.job), ev.Started(pid=0), ev.Failed("ModelError", "The base model is damaged.", "Mend it."))
    shown = proving(desk, job)
    assert shown is not None
    assert (shown.state, shown.problem) == ("failed", "The base model is damaged. Mend it.")


def test_only_what_is_published(desk: Desk) -> None:
    job = desk.finished()
    with pytest.raises(WorkspaceError, match="is not published"):
        desk.app.proofs.begin(job, FILE)


def test_a_proof_that_waits_keeps_nobody_from_deleting(desk: Desk) -> None:
    job = desk.finished()
    desk.app.loras.publish(job, FILE)
    desk.app.training.delete(job)
    assert not desk.job(job).path.exists()
