"""Settings of every panel with wrong types, odd numbers and texts; options of sd-scripts."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import strategies as st

from lora_train.core.caption_settings import CaptionSettings
from lora_train.core.config import TrainSettings
from lora_train.core.dataset_settings import DatasetSettings
from lora_train.core.grid_settings import GridSettings
from lora_train.core.sd_script_args import OPTIONS, effective_settings, known_part
from lora_train.core.settings import check_settings, setting_fields
from lora_train.core.sweep_settings import SweepSettings
from lora_train.core.sweeps import combinations

SCHEMAS: tuple[Callable[[], Any], ...] = (TrainSettings, DatasetSettings, CaptionSettings, GridSettings, SweepSettings)


def require_told(problems: list[str]) -> None:
    assert all(problem.strip() and len(problem) < 600 for problem in problems), [problem[:80] for problem in problems]
    msgspec.json.encode(problems)


def check(values: dict[str, Any], schema: Callable[[], Any]) -> None:
    """What is taken over can be written, and is read again as it was."""
    settings, problems = check_settings(values, schema())
    require_told(problems)
    written = msgspec.to_builtins(settings)
    again, _ = check_settings(msgspec.json.decode(msgspec.json.encode(written)), schema())
    if not problems:
        assert again == settings
    if isinstance(settings, TrainSettings):
        told = effective_settings(settings)
        require_told([*told.problems, *told.overridden])
    if isinstance(settings, SweepSettings):
        combinations(settings)


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.__name__)
def test_odd_values(guard: Any, share: Callable[[int], int], odd: Any, schema: Any) -> None:
    random, names = Random(schema.__name__), [field.name for field in setting_fields(schema)]
    for _ in range(share(5_000)):
        values = {random.choice(names): odd.odd_value(random) for _ in range(random.randrange(1, 4))}
        if random.random() < 0.2:
            values[odd.odd_text(random)] = odd.odd_value(random)
        guard(check, values, schema)


def test_values_that_hypothesis_thinks_of(guard: Any, each: Any) -> None:
    names = st.sampled_from([field.name for field in setting_fields(TrainSettings)])
    inner = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12))
    values = st.recursive(inner, lambda deeper: st.lists(deeper, max_size=3), max_leaves=4)
    each(st.dictionaries(names, values, max_size=3), 3_000, lambda given: guard(check, given, TrainSettings))


def test_many_unknown_settings_take_no_time(guard: Any) -> None:
    _, problems = guard(check_settings, {f"learning_rat{number}": 1 for number in range(100_000)}, TrainSettings())
    assert len(problems) < 20
    args = " ".join(f"--learning_rat{number}=1" for number in range(100_000))
    for text in (args, args[:10_000]):
        told = guard(effective_settings, TrainSettings(sd_script_args=text))
        assert 0 < len(told.problems) < 20


@pytest.mark.parametrize("seed", range(2))
def test_sd_script_args(guard: Any, share: Callable[[int], int], odd: Any, seed: int) -> None:
    random = Random(f"args {seed}")
    names = [*OPTIONS, "no_such_option", "", "-", "learning_rate=1"]

    def look_at(text: str) -> None:
        told = effective_settings(TrainSettings(sd_script_args=text))
        require_told([*told.problems, *told.overridden])
        kept, problems = known_part(text)
        require_told(problems)
        if len(kept) <= 10_000:
            assert not effective_settings(TrainSettings(sd_script_args=kept)).problems or "\\" in kept or "'" in kept

    for _ in range(share(3_000)):
        words = []
        for _ in range(random.randrange(1, 6)):
            value = (
                odd.odd_text(random) if random.random() < 0.7 else random.choice(("1", "0.5", "true", "a=b", "512,512"))
            )
            quote = random.choice(("", "", "'", '"'))
            words.append(f"--{random.choice(names)}{random.choice('= ')}{quote}{value}{quote}")
        guard(look_at, " ".join(words).encode("utf-8", "ignore").decode())  # as `check_settings` lets it through
