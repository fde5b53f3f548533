"""The combinations of a sweep's lists."""

from __future__ import annotations

import pytest

from lora_train.core.errors import ConfigError
from lora_train.core.sweep_settings import SweepSettings
from lora_train.core.sweeps import combinations


def test_rates_around_optimizers_as_the_original_has_them() -> None:
    """4 rates x 2 optimizers are its 8 trainings, in its order."""
    sweep = SweepSettings(learning_rates=(1e-4, 2e-4, 5e-4, 1e-3), optimizers=("Lion", "AdamW"))
    found = combinations(sweep)
    assert [(run.values["learning_rate"], run.values["optimizer"]) for run in found] == [
        (rate, optimizer) for rate in (1e-4, 2e-4, 5e-4, 1e-3) for optimizer in ("Lion", "AdamW")
    ]
    assert found[0].label == "Lion · 0.0001"


def test_every_list_makes_an_axis_and_a_word() -> None:
    found = combinations(
        SweepSettings(
            learning_rates=(1.0, 3e-5),
            ranks=(8, 16),
            alphas=(4.0, 0.5),
            batch_sizes=(1, 2),
            clip_skips=(1, 2),
            presets=("style", "character"),
            base_models=("/models/猫.safetensors", "C:\\models\\b.ckpt"),
        )
    )
    assert len(found) == 2**7
    assert found[0].label == "猫 · style · 1 · rank 8 · alpha 4 · batch 1 · clip skip 1"
    assert found[-1].label == "b · character · 3e-05 · rank 16 · alpha 0.5 · batch 2 · clip skip 2"
    assert (found[0].preset, found[-1].preset) == ("style", "character")
    assert "preset" not in found[0].values
    assert len({run.label for run in found}) == len(found)


def test_the_same_value_twice_is_one_run() -> None:
    assert [run.label for run in combinations(SweepSettings(ranks=(8, 16, 8)))] == ["rank 8", "rank 16"]


def test_a_list_of_one_value_is_set_and_not_named() -> None:
    (one, other) = combinations(SweepSettings(ranks=(8, 16), learning_rates=(1e-3,)))
    assert (one.label, one.values) == ("rank 8", {"learning_rate": 1e-3, "rank": 8})
    assert other.values["learning_rate"] == 1e-3


def test_without_lists_nothing_is_changed() -> None:
    (only,) = combinations(SweepSettings())
    assert (only.label, only.values, only.preset) == ("", {}, "")


def test_models_of_the_same_name_are_told_apart() -> None:
    labels = [run.label for run in combinations(SweepSettings(base_models=("/a/m.safetensors", "/b/m.safetensors")))]
    assert labels == ["/a/m.safetensors", "/b/m.safetensors"]


def test_too_many_runs_are_told_before_they_are_made() -> None:
    ranks = tuple(range(1, 101))
    assert len(combinations(SweepSettings(ranks=ranks, clip_skips=(1, 2)))) == 200
    with pytest.raises(ConfigError, match=r"300 runs \(100 × 3\)"):
        combinations(SweepSettings(ranks=ranks, clip_skips=(1, 2, 3)))
