"""What a sweep trains: every combination of its lists."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import product
from pathlib import PurePath
from typing import Any

import msgspec

from lora_train.core.errors import ConfigError
from lora_train.core.sweep_settings import SweepSettings

MOST_RUNS = 200

_AXES = (
    ("base_models", "base_model"),
    ("presets", "preset"),
    ("learning_rates", "learning_rate"),
    ("optimizers", "optimizer"),
    ("ranks", "rank"),
    ("alphas", "alpha"),
    ("batch_sizes", "batch_size"),
    ("clip_skips", "clip_skip"),
)
"""Each list with the setting that it is of, the outermost loop first: learning rates around optimizers, as the
original has them.
"""

_LABELLED = ("base_model", "preset", "optimizer", "learning_rate", "rank", "alpha", "batch_size", "clip_skip")
"""The order in a label: what differs most comes first."""

_WORDS = {"rank": "rank", "alpha": "alpha", "batch_size": "batch", "clip_skip": "clip skip"}
"""Before values that don't say what they are."""


class Combination(msgspec.Struct, frozen=True):
    """One run of a sweep: what it changes of a version's settings."""

    label: str
    """`Lion · 0.0001 · rank 16`, of lists with several values; empty where there is none."""
    values: dict[str, Any]
    """By names of settings; these win over the preset's."""
    preset: str = ""


def combinations(sweep: SweepSettings) -> list[Combination]:
    """Every combination once, in the order of the loops. A sweep without lists has one, that changes nothing.

    Raises ConfigError for more than MOST_RUNS.
    """
    axes = [(name, list(dict.fromkeys(getattr(sweep, axis)))) for axis, name in _AXES if getattr(sweep, axis)]
    count = math.prod(len(values) for _, values in axes)
    if count > MOST_RUNS:
        sizes = " × ".join(str(len(values)) for _, values in axes)
        raise ConfigError([f"These lists make {count} runs ({sizes}); a sweep has {MOST_RUNS} at most."])
    names = [name for name, _ in axes]
    several = [name for name, values in axes if len(values) > 1]
    short = _short_names(sweep.base_models)
    found: list[Combination] = []
    for chosen in product(*(values for _, values in axes)):
        values: dict[str, Any] = dict(zip(names, chosen, strict=True))
        label = " · ".join(_labelled(name, values[name], short) for name in _LABELLED if name in several)
        found.append(Combination(label, values, str(values.pop("preset", ""))))
    return found


def _labelled(name: str, value: Any, short: dict[str, str]) -> str:
    if name == "base_model":
        return short[value]
    text = repr(value).removesuffix(".0") if isinstance(value, float) else str(value)
    return f"{_WORDS[name]} {text}" if name in _WORDS else text


def _short_names(paths: Iterable[str]) -> dict[str, str]:
    """Path -> the stem of its name, or the whole path where two have the same."""
    stems = {
        path: PurePath(path.replace("\\", "/")).name.removesuffix(".safetensors").removesuffix(".ckpt")
        for path in paths
    }
    twice = [stem for stem in stems.values() if list(stems.values()).count(stem) > 1]
    return {path: path if stem in twice else stem for path, stem in stems.items()}
