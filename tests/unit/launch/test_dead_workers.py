"""What is told of a worker that died without a word, and what its person can do."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from lora_train.core import events as ev
from lora_train.core.config import TrainSettings
from lora_train.core.jobs import JobFolder
from lora_train.core.specs import CheckSpec, JobSpec, TrainSpec
from lora_train.launch import launcher

TRAIN = TrainSpec(
    name="cat-v1", dataset="../dataset", settings=TrainSettings(), dataset_fingerprint="", trash="../trash"
)


@pytest.fixture(params=["room", "full"])
def is_full(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    found = request.param == "full"
    monkeypatch.setattr(launcher.shutil, "disk_usage", lambda _path: SimpleNamespace(free=0 if found else 10**9))
    return found


@pytest.mark.parametrize(
    ("spec", "hint"),
    [(TRAIN, "Resume"), (CheckSpec(dataset="../dataset"), "tart it again; nothing was lost."), (None, "tart it again")],
)
def test_only_a_training_is_resumed(tmp_path: Path, spec: JobSpec | None, hint: str, is_full: bool) -> None:
    """None is a damaged `job.json`."""
    job = JobFolder(tmp_path / "job")
    job.path.mkdir()
    job.create(spec or TRAIN)
    if spec is None:
        job.spec_path.write_bytes(b"{")
    events = ev.EventWriter(job.events_path)
    events.write(ev.Started(pid=2**22 + 1, step=0))  # no system has that many processes
    events.close()
    status = launcher.read_status(job)
    assert status.state == "failed"
    assert hint in status.hint
    assert ("Resume" in status.hint) == (hint == "Resume")
    assert ("disk is full" in status.message, "Free some space" in status.hint) == (is_full, is_full)
