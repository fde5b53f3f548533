"""Optimizers in a child process: those that work, those that are not there, and packages that only look like it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lora_train.core.optimizers import is_absent, optional_optimizers
from lora_train.launch import optimizer_tries
from lora_train.launch.optimizer_tries import try_optimizers

pytestmark = pytest.mark.compat


def fake(folder: Path, package: str, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that the child finds first."""
    (folder / package).mkdir(parents=True)
    (folder / package / "__init__.py").write_text(code, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))


def test_those_that_are_there_work() -> None:
    names = [name for name in optional_optimizers() if not is_absent(name)]
    assert try_optimizers([*names, "AdamW", "AdaFactor"], "cpu") == dict.fromkeys([*names, "AdamW", "AdaFactor"], "")


def test_a_broken_and_a_crashing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was told before the crash stays; the rest has the process's last word."""
    fake(tmp_path, "prodigyopt", "raise OSError('no such library')", monkeypatch)
    fake(tmp_path, "bitsandbytes", "import os, sys\nprint('dying', file=sys.stderr)\nos._exit(3)", monkeypatch)
    found = try_optimizers(["AdamW", "Prodigy", "AdamW8bit", "Lion"], "cpu")
    assert found["AdamW"] == ""
    assert found["Prodigy"] == "OSError: no such library"
    assert found["AdamW8bit"] == found["Lion"] == "dying"


def test_one_that_never_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(tmp_path, "prodigyopt", "import time\ntime.sleep(60)", monkeypatch)
    monkeypatch.setattr(optimizer_tries, "_LIMIT_S", 30.0)
    found = try_optimizers(["AdamW", "Prodigy"], "cpu")
    assert found == {"AdamW": "", "Prodigy": "no answer within 30 seconds"}
