"""The pace of another trainer: run, read, and set beside ours."""

from __future__ import annotations

import sys
import time

import pytest

from lora_train.app.benching import OtherTrainer, compared, count_spec, require_pairs
from lora_train.core.errors import ConfigError, TrainToolsError


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def run(code: str, pattern: str = "") -> dict[str, float]:
    return OtherTrainer(python(code), pattern).run(lambda _: None)


def test_the_last_line_of_json_that_tells_it_counts() -> None:
    code = """
print('{"s_per_step": 9.5}')
print('loading {"s_per_step": 1}')
print('{"s_per_step": 2, "cpu_s_per_step": 3.5, "more": []}')
print('{"loss": 0.1}')
print('bye')
"""
    assert run(code) == {"s_per_step": 2.0, "cpu_s_per_step": 3.5}


def test_a_pattern_reads_a_progress_bar() -> None:
    """Its states stand behind each other in one line, and on standard error; the last one counts."""
    code = r"import sys; sys.stderr.write('\r 1/3 [9.00s/it]\r 2/3 [2.00s/it]\r 3/3 [1.25s/it, loss=0.1]\n')"
    assert run(code, r"([0-9.]+)s/it") == {"s_per_step": 1.25}


def test_what_it_prints_is_shown_as_it_comes() -> None:
    shown: list[str] = []
    OtherTrainer(python("""print('первый'); print('{"s_per_step": 1}')""")).run(shown.append)
    assert shown == ["первый", '{"s_per_step": 1}'] or "s_per_step" in shown[-1]  # a Windows console's own encoding


@pytest.mark.parametrize(
    "code",
    [
        "pass",
        """print('{"s_per_step": "fast"}')""",
        """print('{"s_per_step": 0}')""",
        """print('{"s_per_step": true}')""",
        """print('{"s_per_step": 1e999}')""",
        """print('{"cpu_s_per_step": 2}')""",
        "print('[1]')",
    ],
)
def test_no_number_is_told_with_the_way_to_tell_it(code: str) -> None:
    with pytest.raises(TrainToolsError, match="tells no seconds per step") as error:
        run(code)
    assert '{"s_per_step": 1.23}' in error.value.hint
    assert "--pattern" in error.value.hint


@pytest.mark.parametrize("printed", ["", "2.0 it/s", "...s/it", "0s/it"])
def test_no_match_is_told_with_what_was_printed(printed: str) -> None:
    with pytest.raises(TrainToolsError, match="tells no seconds per step") as error:
        run(f"print({printed!r})", r"([0-9.]*)s/it")
    assert "--pattern" in error.value.hint
    assert printed in error.value.hint


def test_a_command_that_fails_is_told_with_its_last_lines() -> None:
    with pytest.raises(TrainToolsError, match="exit code 3") as error:
        run("""print('{"s_per_step": 1}'); print('CUDA out of memory'); raise SystemExit(3)""")
    assert "CUDA out of memory" in error.value.hint


def test_a_command_that_is_not_there() -> None:
    with pytest.raises(TrainToolsError, match="no-such-trainer can't be run") as error:
        OtherTrainer(["no-such-trainer", "--fast"]).run(lambda _: None)
    assert "whole path" in error.value.hint


@pytest.mark.parametrize(
    ("command", "pattern", "told"),
    [
        ([], "", "write the other command after it"),
        (["x"], "([0-9]", "no regular expression"),
        (["x"], "[0-9]+s/it", "has no group"),
    ],
)
def test_what_can_not_be_run(command: list[str], pattern: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        OtherTrainer(command, pattern)


def test_medians_of_pairs() -> None:
    """Ratios pair by pair: 4 / 2, 9 / 3, 4 / 4; the median is 2, not that of the medians (4 / 3)."""
    ours = [{"s_per_step": own, "cpu_s_per_step": 1.0} for own in (2.0, 3.0, 4.0)]
    theirs = [{"s_per_step": its} for its in (4.0, 9.0, 4.0)]
    found = compared(ours, theirs)
    assert found["ratios"] == [2.0, 3.0, 1.0]
    assert (found["ratio"], found["ours_s_per_step"], found["theirs_s_per_step"]) == (2.0, 3.0, 4.0)
    assert "cpu_ratio" not in found
    assert found["date"] == time.strftime("%Y-%m-%d")
    assert found["versions"]["Python"]
    assert found["machine"]


def test_cpu_seconds_where_both_tell_them() -> None:
    one = [{"s_per_step": 1.0, "cpu_s_per_step": 2.0}]
    other = [{"s_per_step": 1.0, "cpu_s_per_step": 3.0}]
    assert compared(one, other)["cpu_ratio"] == 1.5


def test_what_is_not_counted_is_refused() -> None:
    assert count_spec({"rank": "8", "gradient_checkpointing": "true"}).settings.rank == 8
    assert count_spec({"train_text_encoder": "false"}).settings.train_text_encoder is False
    for name, value in (("base_model", "sd15"), ("resolution", "256"), ("train_text_encoder", "true")):
        with pytest.raises(ConfigError, match=f"{name}: --count has"):
            count_spec({name: value})


def test_pairs_are_counted() -> None:
    with pytest.raises(ConfigError, match="pairs: 0 is not a whole number from 1 to 1000"):
        require_pairs(0)
