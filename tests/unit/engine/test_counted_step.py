"""The step that is counted, of Stable Diffusion 1 with few channels."""

from __future__ import annotations

from collections import Counter
from copy import deepcopy
from typing import Any

import msgspec
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lora_train.core.config import TrainSettings
from lora_train.engine import losses
from lora_train.engine.counted_step import PHASES, Case, count_step
from lora_train.engine.counting import counting
from lora_train.engine.network import LoraNetwork, unet_targets
from lora_train.engine.random_model import SMALL

CASE = Case("small", "sd1", SMALL, 256)
SETTINGS = TrainSettings(rank=4, train_text_encoder=False)


def counted(**values: Any) -> dict[str, Any]:
    return count_step(CASE, msgspec.structs.replace(SETTINGS, **values))


@pytest.fixture(scope="module")
def one() -> dict[str, Any]:
    return counted()


@pytest.fixture(scope="module")
def two() -> dict[str, Any]:
    return counted(batch_size=2)


def test_every_phase_has_its_share(one: dict[str, Any]) -> None:
    kernels = {phase: work["kernels"] for phase, work in one["phases"].items()}
    assert tuple(kernels) == PHASES
    assert kernels["other"] <= 2, "no more than setting gradients back"
    assert kernels["optimizer"] <= 2, "one fused step, and one that counts it"
    assert min(kernels["forward"], kernels["backward"]) > 10 * max(kernels["inputs"], kernels["loss"])
    assert 0 < kernels["clip"] < 20
    assert one["phases"]["optimizer"]["flops"] == one["phases"]["inputs"]["flops"] == 0


def test_the_host_never_waits(one: dict[str, Any]) -> None:
    assert one["host_syncs"] == 0
    assert counted(optimizer="Lion")["host_syncs"] == 0


def test_a_wait_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a step without clipping has, from its backward pass to the optimizer, next to nothing to do."""
    own = losses.sample_losses

    def reads(errors: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return own(errors, weights * (1.0 if errors.mean().item() else 2.0))

    monkeypatch.setattr(losses, "sample_losses", reads)
    found = counted(max_grad_norm=0)
    assert found["waited_for"] == {"_local_scalar_dense": 1}
    assert found["phases"]["loss"]["host_syncs"] == 1
    assert found["phases"]["clip"]["kernels"] <= 4


def test_a_batch_of_two_is_the_same_kernels_and_twice_the_work(one: dict[str, Any], two: dict[str, Any]) -> None:
    """But for joining captions and inputs; weights and the optimizer's work don't double."""
    assert two["phases"]["forward"]["flops"] == 2 * one["phases"]["forward"]["flops"]
    assert two["kernels"] == pytest.approx(one["kernels"], rel=0.1)
    assert two["phases"]["optimizer"] == one["phases"]["optimizer"]
    assert one["peak_bytes"] < two["peak_bytes"] < 2 * one["peak_bytes"]


def test_checkpointing_works_twice_and_takes_less(two: dict[str, Any]) -> None:
    again = counted(batch_size=2, gradient_checkpointing=True)
    assert again["phases"]["backward"]["flops"] > 1.4 * two["phases"]["backward"]["flops"]
    assert again["peak_bytes"] < two["peak_bytes"]


class _Names(TorchDispatchMode):
    """Every call that makes a tensor of its own, with numbers or without."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aliases = [returned.alias_info for returned in func._schema.returns]
        is_view = any(alias is not None and not alias.is_write for alias in aliases)
        name = func._overloadpacket.__name__
        if not is_view and not name.startswith(("empty", "new_empty", "_unsafe_view")):
            self.calls[name.replace("_for_cpu", "")] += 1
        return func(*args, **(kwargs or {}))


def test_the_same_step_with_numbers_calls_the_same(small_model: Any) -> None:
    """UNet and LoRA forward and backward on the CPU, in the layout that CPU and CUDA treat alike, and without numbers.

    Only attention has another name on a CPU.
    """

    unets = {"cpu": deepcopy(small_model.unet), "meta": deepcopy(small_model.unet).to("meta")}
    for unet in unets.values():
        ranks = {"linear": (4, 4.0), "conv": (4, 4.0)}
        LoraNetwork.new(unet_targets(unet, with_convolutions=True), ranks, seed=0).attach()

    def step(device: str) -> None:
        noisy, text = torch.empty(1, 4, 32, 32, device=device), torch.empty(1, 77, 64, device=device)
        prediction = unets[device](noisy, torch.empty(1, device=device), text, return_dict=False)[0]
        prediction.pow(2).mean().backward()

    with _Names() as named:
        step("cpu")
    with counting() as counter:
        step("meta")
    assert counter.calls == named.calls
    assert counter.total.kernels > 1000
