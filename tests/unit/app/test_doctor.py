"""The doctor at work: processes of their own for torch and packages, and what the page is told meanwhile."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from lora_train.app import doctor
from lora_train.core import packages
from lora_train.core.diagnosis import KERNELS, Probe, ProbedDevice
from lora_train.core.errors import JobError
from lora_train.core.host import DeviceMemory
from lora_train.launch.child import Answer

if TYPE_CHECKING:
    from tests.unit.app.conftest import Desk

PROBE = Probe(
    torch="2.5.1+cpu",
    build="CPU",
    devices=(ProbedDevice(kind="cpu", label="CPU, 2 threads"),),
    kernels={"fp32": dict.fromkeys(KERNELS, "")},
    precision="fp32",
)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """A CPU build of torch beside a card; the probe answers as soon as it is let."""
    may_answer = threading.Event()
    may_answer.set()

    def run(*_: object) -> Answer:
        assert may_answer.wait(10)
        return Answer(f"a library says hello\n{msgspec.json.encode(PROBE).decode()}\n", "")

    card = DeviceMemory(name="RTX 3060", total_bytes=1, free_bytes=1)
    monkeypatch.setattr(doctor, "run_module", run)
    monkeypatch.setattr(doctor, "nvidia_cards", lambda: [card])
    monkeypatch.setattr(packages, "judge", lambda _: {"diffusers": "missing", "onnxruntime": "missing"})
    return may_answer


def test_the_page_is_told_when_it_is_done(desk: Desk, machine: threading.Event) -> None:
    machine.clear()
    with pytest.raises(JobError, match="not been checked"):
        desk.app.doctor.report()
    desk.app.doctor.begin()
    assert desk.app.doctor.snapshot().is_running
    with pytest.raises(JobError, match="being checked"):
        desk.app.doctor.begin()
    machine.set()
    until = time.monotonic() + 10
    while desk.app.doctor.snapshot().is_running and time.monotonic() < until:
        time.sleep(0.01)
    diagnosis = desk.app.doctor.snapshot().diagnosis
    assert diagnosis is not None
    assert not diagnosis.is_good
    wrong = {line.value: line for line in diagnosis.found if line.state == "error"}
    assert [name.split()[0] for name in wrong] == ["RTX", "diffusers"]
    assert all("pip install" in line.command for line in wrong.values())
    (absent,) = [line for line in diagnosis.found if line.title == "Not installed"]
    assert (absent.state, absent.value) == ("good", "onnxruntime (WD14 tags)")
    report = desk.app.doctor.report()
    assert "tested host" in report
    assert str(desk.workspace.root) not in report


@pytest.mark.usefixtures("machine")
def test_without_torch(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    error = "ModuleNotFoundError: No module named 'torch'"
    monkeypatch.setattr(doctor, "run_module", lambda *_: Answer("", error))
    found = desk.app.doctor.examine().found
    assert next(line for line in found if line.title == "PyTorch").error == error


@pytest.mark.parametrize(
    ("folder", "told"),
    [
        ("modules", "none; this is an extension of Automatic1111"),
        ("modules_forge", "none; this is an extension of Forge"),
    ],
)
def test_the_command_line_finds_the_webui_that_it_lies_in(
    folder: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / folder).mkdir()
    (tmp_path / "webui.py").touch()
    monkeypatch.setattr(packages, "ROOT", tmp_path / "extensions" / "train-tools")
    assert doctor._host_told("none") == told
    assert doctor._host_told("Forge f2.0.1") == "Forge f2.0.1"
    monkeypatch.setattr(packages, "ROOT", tmp_path / "somewhere" / "train-tools")
    assert doctor._host_told("none") == "none"
