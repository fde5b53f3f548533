"""What is measured: time and memory of training steps, what a step asks of a GPU, and the pace of another trainer."""

from __future__ import annotations

import math
import re
import shlex
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import msgspec

from lora_train.app.planning import check_base_model, with_absolute_paths, with_threads
from lora_train.core.errors import ConfigError, TrainToolsError
from lora_train.core.files import DAMAGED_JSON
from lora_train.core.history import package_versions, platform_name, processor_name
from lora_train.core.settings import parse_settings
from lora_train.core.specs import BENCH_MODELS, BenchSpec, CountSpec

PACE = "s_per_step"
_CPU_PACE = "cpu_s_per_step"
_CONTRACT = (
    f'It has to print {{"{PACE}": 1.23}} on a line of its own, the last one counts; or give --pattern with a '
    "regular expression whose first group is the seconds."
)
_SHOWN_LINES = 5


def bench_spec(values: Mapping[str, Any], *, pictures: int, steps: int) -> BenchSpec:
    """Time some training steps. `BENCH_MODELS` are full-size ones with random weights. Raises ConfigError."""
    _require_counts(pictures=pictures, steps=steps)
    settings = parse_settings(values)
    if settings.base_model in BENCH_MODELS:
        return BenchSpec(settings=with_threads(settings, None), pictures=pictures, steps=steps)
    settings = with_absolute_paths(settings)
    return BenchSpec(settings=with_threads(settings, check_base_model(settings)), pictures=pictures, steps=steps)


def count_spec(values: Mapping[str, Any]) -> CountSpec:
    """Count what a step asks for, captions being encoded ahead. Raises ConfigError for what isn't counted."""
    settings = parse_settings({"train_text_encoder": False, **values})
    fixed = {"base_model", "resolution", "train_text_encoder", "train_sdxl_text_encoders", "flip", "masked_loss"}
    problems = [
        f"{name}: --count has Stable Diffusion 1.5 at 512 and SDXL at 1024, with captions encoded ahead; leave it out"
        for name in sorted(fixed & {key.replace("-", "_") for key in values})
        if getattr(settings, name) not in (False, None)
    ]
    if problems:
        raise ConfigError(problems)
    return CountSpec(settings=settings)


class OtherTrainer:
    """A command that runs another trainer and tells its seconds per step."""

    def __init__(self, command: Sequence[str], pattern: str = "") -> None:
        """`pattern` finds the seconds in what it prints, in place of the JSON. Raises ConfigError."""
        if not command:
            raise ConfigError(["--compare: write the other command after it, as in `--compare -- python theirs.py`"])
        self.command = list(command)
        self._pattern = _compiled(pattern) if pattern else None

    def run(self, show: Callable[[str], None]) -> dict[str, float]:
        """Seconds per step, and CPU seconds where they are told. What it prints is shown line by line.

        Raises TrainToolsError when it can't be started, fails, or tells no number.
        """
        try:
            process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,  # also makes a line of each state of a progress bar
                encoding="utf-8",
                errors="replace",
            )
        except OSError as error:
            raise TrainToolsError(
                f"{self.command[0]} can't be run: {error.strerror or error}.",
                "Give the whole path of the program, and its arguments one by one.",
            ) from None
        with process:
            assert process.stdout is not None
            try:
                lines = [_shown(line, show) for line in process.stdout]
            except KeyboardInterrupt:
                process.kill()
                raise
        if process.returncode:
            raise TrainToolsError(
                f"{shlex.join(self.command)} ended with exit code {process.returncode}.", _last(lines)
            )
        return self._read(lines)

    def _read(self, lines: Sequence[str]) -> dict[str, float]:
        for line in reversed(lines):
            found = _numbers_of(line) if self._pattern is None else _number_by(self._pattern, line)
            if found:
                return found
        if self._pattern is not None:
            reason = f"None of its {len(lines)} lines holds a number above 0 where --pattern looks. {_last(lines)}"
            raise TrainToolsError(f"{shlex.join(self.command)} tells no seconds per step.", reason.rstrip())
        raise TrainToolsError(f"{shlex.join(self.command)} tells no seconds per step.", _CONTRACT)


def compared(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Medians of both, and of their ratios pair by pair: above 1 we are quicker. CPU seconds where both tell them."""
    result: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform_name()}, {processor_name()}".rstrip(", "),
        "versions": package_versions(),
        "pairs": len(ours),
    }
    for key, ratio in ((PACE, "ratio"), (_CPU_PACE, "cpu_ratio")):
        if all(key in one for one in (*ours, *theirs)):
            pairs = [(own[key], its[key]) for own, its in zip(ours, theirs, strict=True)]
            result[f"ours_{key}"] = statistics.median(own for own, _ in pairs)
            result[f"theirs_{key}"] = statistics.median(its for _, its in pairs)
            result[f"{ratio}s"] = [its / own for own, its in pairs]
            result[ratio] = statistics.median(result[f"{ratio}s"])
    return result


def require_pairs(pairs: int) -> None:
    """Raises ConfigError."""
    _require_counts(pairs=pairs)


def _require_counts(**counts: int) -> None:
    problems = [
        f"{name}: {number} is not a whole number from 1 to 1000"
        for name, number in counts.items()
        if not 1 <= number <= 1000
    ]
    if problems:
        raise ConfigError(problems)


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError([f"--pattern: {pattern!r} is no regular expression: {error}"]) from None
    if compiled.groups < 1:
        raise ConfigError([f"--pattern: {pattern!r} has no group; put the number in brackets, as in '([0-9.]+)s/it'"])
    return compiled


def _shown(line: str, show: Callable[[str], None]) -> str:
    line = line.rstrip()
    show(line)
    return line


def _last(lines: Sequence[str]) -> str:
    told = [line for line in lines if line.strip()][-_SHOWN_LINES:]
    return "Its last lines:\n" + "\n".join(told) if told else "It printed nothing."


def _numbers_of(line: str) -> dict[str, float]:
    """What a line of JSON tells; nothing where it is none."""
    try:
        told: Any = msgspec.json.decode(line)
    except DAMAGED_JSON:
        return {}
    if not isinstance(told, dict):
        return {}
    given = cast("dict[str, Any]", told)
    found = {key: float(given[key]) for key in (PACE, _CPU_PACE) if _is_pace(given.get(key))}
    return found if PACE in found else {}


def _is_pace(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def _number_by(pattern: re.Pattern[str], line: str) -> dict[str, float]:
    """The last place of the line that fits."""
    found = [match.group(1) for match in pattern.finditer(line)]
    try:
        seconds = float(found[-1].replace(",", ".")) if found and found[-1] else 0.0
    except ValueError:
        return {}
    return {PACE: seconds} if _is_pace(seconds) else {}
