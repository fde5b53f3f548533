"""A LoRA that lies there already when it is saved."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lora_train.core.events import Note
from lora_train.engine import results


class Course:
    """What is asked of a `course.Course` here."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.report = SimpleNamespace(events=SimpleNamespace(write=self.told.append))

    def trash(self, path: Path) -> None:
        path.unlink()


def test_one_that_another_program_holds_ends_no_training_and_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def locked(path: Path) -> bool:
        raise PermissionError(13, "The process cannot access the file", str(path))

    monkeypatch.setattr(results, "is_whole", locked)
    course: Any = Course()
    path = tmp_path / "cat.safetensors"
    path.write_bytes(b"a LoRA")
    assert results._is_there(course, path)
    assert path.read_bytes() == b"a LoRA"
    assert course.told == []


def test_a_damaged_one_is_put_away_and_told_of(tmp_path: Path) -> None:
    course: Any = Course()
    path = tmp_path / "cat.safetensors"
    assert not results._is_there(course, path)
    assert course.told == []
    path.write_bytes(b"half of a LoRA")
    assert not results._is_there(course, path)
    assert [type(event) for event in course.told] == [Note]
