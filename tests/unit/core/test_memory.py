"""The ladder of memory plans, and the record of what became of them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_train.core.config import TrainSettings
from lora_train.core.memory import (
    OFFLOAD_SHARES,
    MemoryFacts,
    MemoryNeed,
    MemoryPlan,
    Trial,
    ladder,
    read_memory,
    write_memory,
)

_ORDER = {"none": 0, "some": 1, "all": 2}


def test_the_ladder_goes_in_the_order_of_what_costs_least() -> None:
    plans = ladder(TrainSettings(batch_size=7))
    assert plans == (
        MemoryPlan(),
        MemoryPlan(views_at_once=4),
        MemoryPlan(views_at_once=2),
        MemoryPlan(views_at_once=1),
        MemoryPlan(views_at_once=1, checkpointing="some"),
        MemoryPlan(views_at_once=1, checkpointing="all"),
        MemoryPlan(views_at_once=1, checkpointing="all", base_weights="int8"),
        *(
            MemoryPlan(views_at_once=1, checkpointing="all", base_weights="int8", offload_share=share)
            for share in OFFLOAD_SHARES
        ),
    )


def test_a_batch_of_one_has_no_parts() -> None:
    assert ladder(TrainSettings())[1] == MemoryPlan(checkpointing="some")


def test_on_a_cpu_nothing_is_moved_to_main_memory() -> None:
    assert ladder(TrainSettings(), on_cpu=True)[-1] == MemoryPlan(checkpointing="all", base_weights="int8")


def test_without_fit_to_my_gpu_only_what_was_asked_for_is_tried() -> None:
    settings = TrainSettings(fit_to_gpu=False, batch_size=4, gradient_checkpointing=True, base_weights="fp8")
    assert ladder(settings) == (MemoryPlan(checkpointing="all", base_weights="fp8"),)


@given(
    batch_size=st.integers(1, 256),
    checkpointing=st.booleans(),
    base_weights=st.sampled_from(("full", "int8", "fp8")),
    offload_share=st.floats(0, 1),
)
def test_no_rung_undoes_what_was_asked_for_or_what_the_one_before_saves(
    batch_size: int, checkpointing: bool, base_weights: str, offload_share: float
) -> None:
    settings = msgspec.convert(
        {
            "batch_size": batch_size,
            "gradient_checkpointing": checkpointing,
            "base_weights": base_weights,
            "offload_share": offload_share,
        },
        TrainSettings,
    )
    plans = ladder(settings)
    assert plans[0].base_weights == base_weights
    assert plans[0].offload_share == offload_share
    assert (plans[0].checkpointing == "all") == checkpointing
    assert len(set(plans)) == len(plans)
    for before, after in pairwise(plans):
        assert (after.views_at_once or batch_size) <= (before.views_at_once or batch_size)
        assert _ORDER[after.checkpointing] >= _ORDER[before.checkpointing]
        assert after.base_weights == before.base_weights or before.base_weights == "full"
        assert after.offload_share >= before.offload_share


def test_what_was_tried_is_found_again(tmp_path: Path) -> None:
    assert read_memory(tmp_path) is None
    plan = MemoryPlan(checkpointing="some")
    facts = MemoryFacts(
        plan=plan,
        trials=(
            Trial(plan=MemoryPlan(), peak_bytes=9_000, why_not="over_budget"),
            Trial(plan=plan, peak_bytes=6_000, s_per_step=0.5),
        ),
        predicted=MemoryNeed(weights_bytes=5_000, workspace_bytes=500),
        budget_bytes=7_000,
        device_bytes=8_000,
    )
    write_memory(tmp_path, facts)
    assert read_memory(tmp_path) == facts
    assert facts.fitting == facts.trials[1]
    assert msgspec.structs.replace(facts, plan=MemoryPlan()).fitting is None


@pytest.mark.parametrize("content", [b"", b"{", b'{"plan": 3}', b"\xff\xfe"])
def test_a_damaged_record_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "memory.json").write_bytes(content)
    assert read_memory(tmp_path) is None


def test_a_need_adds_up() -> None:
    need = MemoryNeed(
        weights_bytes=1, activations_bytes=20, network_bytes=300, caches_bytes=4_000, workspace_bytes=50_000
    )
    assert (need.tensors_bytes, need.total_bytes) == (4_321, 54_321)
