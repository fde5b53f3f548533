"""`lora-train report` and `lora-train curves`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from lora_train.__main__ import main
from lora_train.core import events as ev
from lora_train.core.config import TrainSettings
from lora_train.core.jobs import JobFolder
from lora_train.core.specs import TrainSpec

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def train_dir(tmp_path: Path) -> Path:
    """A training outside every workspace."""
    job = JobFolder(tmp_path / "猫-v1")
    settings = TrainSettings(base_model="demo")
    job.create(TrainSpec(name="猫-v1", dataset="d", dataset_fingerprint="f", trash="t", settings=settings))
    events = ev.EventWriter(job.events_path)
    events.write(ev.Step(1, 1, 0.25, 1e-4, 0.5), ev.Step(2, 1, 0.125, 1e-4, 0.5))
    events.close()
    return job.path


def test_a_report_is_written(train_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new folder" / "report.html"
    assert main(["report", str(train_dir), "--out", str(out), "--workspace", str(tmp_path / "ws")]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert "<h1>猫-v1</h1>" in out.read_text(encoding="utf-8")


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_curves_are_written(train_dir: Path, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / f"curves{suffix}"
    assert main(["curves", str(train_dir), "--out", str(out), "--workspace", str(tmp_path / "ws"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 2
    assert "0.125" in out.read_text(encoding="utf-8")


def test_other_endings_and_folders_are_told(
    train_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = ["--workspace", str(tmp_path / "ws")]
    assert main(["report", str(train_dir), "--out", str(tmp_path / "x.txt"), *workspace]) == 2
    assert main(["curves", str(train_dir), "--out", str(tmp_path / "x.txt"), *workspace]) == 1
    assert main(["report", str(tmp_path / "none"), "--out", str(tmp_path / "x.html"), *workspace]) == 1
    told = capsys.readouterr().err
    assert "does not end with .html" in told
    assert "neither .csv nor .json" in told
    assert not list(tmp_path.glob("x.*"))
