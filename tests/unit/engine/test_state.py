"""States come back exactly, two of them are kept, and damage is noticed."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import nn

from lora_train.core.config import Optimizer, TrainSettings
from lora_train.core.errors import JobError
from lora_train.core.optimizers import is_absent
from lora_train.engine.optimizers import make_optimizer
from lora_train.engine.state import (
    Clock,
    LoadedState,
    StateFacts,
    flatten_optimizer,
    forget_states_after,
    group_values,
    load_state,
    restore_optimizer,
    save_state,
)

pytestmark = pytest.mark.compat


def facts(step: int) -> StateFacts:
    return StateFacts(
        clock=Clock(step=step, epoch=2, step_in_epoch=3),
        dataset_fingerprint="0" * 32,
        halvings=1,
        session_id=4_000_000_000,
        started_at=1726639674.9234567,
        optimizer_groups=[{"lr": 1e-4 / 3, "betas": [0.9, 0.999], "fused": None, "foreach": False}],
        optimizer_scalars={"0.step": 5.0},
        schedule={"last_epoch": 7, "base_lrs": [1e-4 / 3]},
        scaler={},
    )


def tensors(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "lora.unet.x.down": torch.randn(3, 4, generator=generator),
        "lora.unet.x.up": torch.randn(4, 3, generator=generator).t(),  # not contiguous
        "optimizer.0.step": torch.tensor(7.0),
        "optimizer.0.half": torch.randn(5, generator=generator).to(torch.bfloat16),
    }


def assert_is_state(loaded: LoadedState | None, step: int) -> None:
    assert loaded is not None
    assert loaded.facts == facts(step)
    wanted = tensors(step)
    assert loaded.tensors.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert loaded.tensors[name].dtype == tensor.dtype
        assert torch.equal(loaded.tensors[name], tensor)


def test_round_trip_is_exact(tmp_path: Path) -> None:
    assert load_state(tmp_path / "state") is None
    save_state(tmp_path / "state", facts(5), tensors(5))
    assert_is_state(load_state(tmp_path / "state"), 5)


def test_two_generations_are_kept(tmp_path: Path) -> None:
    for step in (0, 9, 10, 100):
        save_state(tmp_path, facts(step), tensors(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "state-00000010.safetensors",
        "state-00000100.safetensors",
    ]
    assert_is_state(load_state(tmp_path), 100)


def test_same_step_again_replaces_the_state(tmp_path: Path) -> None:
    """After a roll-back the run writes its step a second time, with other rates."""
    save_state(tmp_path, facts(5), tensors(1))
    save_state(tmp_path, facts(5), tensors(5))
    assert_is_state(load_state(tmp_path), 5)
    assert len(list(tmp_path.iterdir())) == 1


def test_later_states_are_forgotten(tmp_path: Path) -> None:
    for step in (5, 12):
        save_state(tmp_path, facts(step), tensors(step))
    forget_states_after(tmp_path, 12)
    assert_is_state(load_state(tmp_path), 12)
    forget_states_after(tmp_path, 5)
    assert_is_state(load_state(tmp_path), 5)


@pytest.fixture
def two_states(tmp_path: Path) -> tuple[Path, Path]:
    for step in (5, 6):
        save_state(tmp_path, facts(step), tensors(step))
    older, newer = sorted(tmp_path.iterdir())
    return older, newer


@pytest.mark.parametrize("left", [0, 4, 8, 100, -40, -1])
def test_state_cut_short(two_states: tuple[Path, Path], left: int) -> None:
    older, newer = two_states
    newer.write_bytes(newer.read_bytes()[:left])
    assert_is_state(load_state(newer.parent), 5)
    older.write_bytes(b"")
    with pytest.raises(JobError, match=r"Every state in .* is damaged") as error:
        load_state(newer.parent)
    assert "untouched" in error.value.hint


def test_any_flipped_bit_is_noticed(two_states: tuple[Path, Path]) -> None:
    """One bit of every byte: length, header and tensors."""
    _, newer = two_states
    content = newer.read_bytes()
    bits = random.Random(1)
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << bits.randrange(8)
        newer.write_bytes(damaged)
        assert_is_state(load_state(newer.parent), 5)


def test_half_written_state_is_never_looked_at(two_states: tuple[Path, Path]) -> None:
    _, newer = two_states
    (newer.parent / "state-00000099.safetensors.tmp").write_bytes(b"half")
    assert_is_state(load_state(newer.parent), 6)


# --- optimizers ---


def optimizer_of(name: Optimizer, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    arguments = ("min_8bit_size=1",) if name.endswith("8bit") else ()
    settings = TrainSettings(
        optimizer=name, learning_rate=0.01, text_encoder_lr=0.001, weight_decay=0.1, optimizer_args=arguments
    )
    groups = {"unet": parameters[:2], "text_encoder": parameters[2:]}
    return make_optimizer(settings, groups, fused=False)


def some_steps(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(3):
        for own in parameters:
            own.grad = torch.randn(own.shape, generator=generator)
        optimizer.step()


@pytest.mark.parametrize("name", get_args(Optimizer))
def test_optimizers_come_back_exactly(name: Optimizer, tmp_path: Path) -> None:
    """Three steps, through a file, three more: as six in one go."""
    if is_absent(name):
        pytest.skip(f"{name} needs a package that is not installed")
    generator = torch.Generator().manual_seed(1)
    straight = [nn.Parameter(torch.randn(4, 3, generator=generator)) for _ in range(3)]
    optimizer = optimizer_of(name, straight)
    some_steps(optimizer, straight, seed=2)
    stored, scalars = flatten_optimizer(optimizer)
    own = facts(3)
    groups = group_values(optimizer)
    own.optimizer_groups, own.optimizer_scalars = groups, scalars
    save_state(tmp_path, own, stored)
    resumed = [nn.Parameter(parameter.detach().clone()) for parameter in straight]
    some_steps(optimizer, straight, seed=3)

    state = load_state(tmp_path)
    assert state is not None
    other = optimizer_of(name, resumed)
    restore_optimizer(other, state.facts.optimizer_groups, state.tensors, state.facts.optimizer_scalars)
    assert group_values(other) == _as_json(groups)
    some_steps(other, resumed, seed=3)
    assert stored or scalars
    assert flatten_optimizer(other)[1] == flatten_optimizer(optimizer)[1]
    for one, two in zip(straight, resumed, strict=True):
        assert torch.equal(one, two)


def _as_json(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """JSON has lists for tuples."""
    return [
        {key: list(value) if isinstance(value, tuple) else value for key, value in group.items()} for group in groups
    ]
