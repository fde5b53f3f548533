"""Files that are deleted, or open in another program, while a training runs that needs them: it ends with the bytes of
a straight run or tells in a sentence which file it is. Nothing else is lost, and it goes on when the file is back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import pytest

from lora_train.core.memory import MemoryFacts, MemoryPlan, write_memory
from lora_train.engine import state
from tests.faults.damaging import TAKEN, half_written, lost, precious, taken_away, temporary
from tests.faults.forge import Forge
from tests.faults.test_damage_training import FILES as DAMAGED

FILES = {**DAMAGED, "memory": "memory.json", "model's description": "../../../../../../../models/*.yaml"}
MOMENTS = (1, 18, 33)
"""With `--full`: at the very first, while the model is opened, and as the state is taken up. A resume turns from one
file to another about 45 times.
"""
QUICK = {
    ("picture", "deleted"): 18,
    ("caption", "held"): 8,
    ("base model", "held"): 21,
    ("newer state", "deleted"): 24,
    ("lora", "deleted"): 33,
    ("events", "deleted"): 33,
    ("model's description", "deleted"): 8,
}
"""What is tried without `--full`, and at which moment: before it is read, or while steps are done."""


@contextmanager
def _states_are_heard_of() -> Iterator[None]:
    """safetensors opens them without Python's knowledge."""
    safe_open = state.safe_open

    def heard(path: str, **options: Any) -> Any:
        with Path(path).open("rb"):
            return safe_open(path, **options)

    with patch.object(state, "safe_open", heard):
        yield


@pytest.mark.parametrize("how", ["deleted", "held"])
@pytest.mark.parametrize("kind", FILES)
def test_a_file_is_taken_from_a_training(
    forge: Forge,
    share: Callable[[int], int],
    count: Callable[[str, int], None],
    kind: str,
    how: Literal["deleted", "held"],
) -> None:
    is_full = share(10) == 10
    if not is_full and (kind, how) not in QUICK:
        pytest.skip("with --full")
    for at in MOMENTS if is_full else [QUICK[kind, how]]:
        forge.put_back()
        write_memory(forge.job.path, MemoryFacts(plan=MemoryPlan()))
        file = forge.file(FILES[kind])
        content, before = file.read_bytes(), precious(forge.place)
        if how == "deleted":
            before.pop(file.relative_to(forge.place).as_posix(), None)
        where = f"{file.name} {how} at {at}"
        with _states_are_heard_of():
            outcome = forge.outcome(file.name if how == "deleted" else "", taken_away(forge.place, file, at, how))
        assert TAKEN in forge.log.read_text(encoding="utf-8"), f"{where}: it had ended before"
        assert outcome == "equal" or file.stem in outcome, f"{where}: {outcome}"  # of a caption its picture is told
        _nothing_else_is_lost(forge, before, f"{where}: {outcome}")
        forge.next_start()
        if outcome != "equal":
            file.write_bytes(content)
            assert forge.outcome() == "equal", f"{where}: {outcome}"
            _nothing_else_is_lost(forge, before, where)
        count(f"{how}: {'equal' if outcome == 'equal' else 'told'}", 1)


def _nothing_else_is_lost(forge: Forge, before: dict[str, bytes], where: str) -> None:
    gone = [path for path in lost(before, forge.place) if "/cache/" not in path and "/state/" not in path]
    assert gone == [], where
    assert half_written(forge.place) == [], where
    assert temporary(forge.place) == [], where
