"""Fitting a training to a CUDA device: the trial and its budget, packed weights, layers that wait in pinned memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from lora_train.app import App  # noqa: E402
from lora_train.core.assets import DEMO_PICTURES  # noqa: E402
from lora_train.core.jobs import JobFolder  # noqa: E402
from lora_train.core.memory import read_memory  # noqa: E402
from lora_train.core.workspace import Workspace  # noqa: E402
from lora_train.engine.frozen import block_layers  # noqa: E402
from lora_train.engine.loading import load_base_model  # noqa: E402
from lora_train.engine.offload import CudaMover, Offload  # noqa: E402
from lora_train.engine.quantised import quantise, require_kind  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]

SETTINGS: dict[str, Any] = {
    "base_model": "demo",
    "device": "cuda",
    "epochs": 1,
    "batch_size": 4,
    "rank": 8,
    "alpha": 8,
    "learning_rate": 1e-3,
    "save_every_epochs": 0,
    "hold_out": 0,
}


def train(tmp_path: Path, **settings: Any) -> JobFolder:
    app = App(Workspace(tmp_path))
    job = app.plan_train(name="gpu", images=DEMO_PICTURES, values={**SETTINGS, **settings}).job
    process = app.start(job)
    process.wait(300)
    status = app.status(job, process)
    assert status.state == "finished", status.message
    return job


def test_the_trial_is_measured_and_within_the_budget(tmp_path: Path) -> None:
    facts = read_memory(train(tmp_path).path)
    assert facts is not None
    assert facts.fitting is not None
    assert 0 < facts.fitting.peak_bytes <= facts.budget_bytes < facts.device_bytes
    assert facts.fitting.s_per_step > 0


@pytest.mark.parametrize("values", [{"base_weights": "int8"}, {"base_weights": "fp8"}, {"offload_share": 0.6}])
def test_every_way_to_save_memory_trains(tmp_path: Path, values: dict[str, Any]) -> None:
    facts = read_memory(train(tmp_path, **values).path)
    assert facts is not None
    assert all(getattr(facts.plan, name) == value for name, value in values.items())


@pytest.mark.parametrize("kind", ["full", "int8", "fp8"])
def test_layers_that_wait_compute_the_same(small_checkpoint: Path, kind: Any) -> None:
    """Many passes, so that a copy that came too early or too late would show."""
    device, dtype = torch.device("cuda"), torch.bfloat16
    require_kind(kind, device, dtype)
    plain, unet = (
        load_base_model(small_checkpoint, vae_path=None, device=device, dtype=dtype, base_weights=kind).unet
        for _ in range(2)
    )
    Offload(unet, CudaMover(device)).take(0.9)
    assert sum(not layer.weight.is_cuda for _, layer in block_layers(unet)) > 50
    text = torch.randn(2, 77, unet.config.cross_attention_dim, device=device, dtype=dtype)
    times = torch.tensor([10, 700], device=device)
    for _ in range(20):
        noisy = torch.randn(2, 4, 32, 32, device=device, dtype=dtype)
        found: list[Any] = []
        for model in (plain, unet):
            own = noisy.clone().requires_grad_(True)
            output = model(own, times, text, return_dict=False)[0]
            output.float().square().sum().backward()
            found.append((output.detach(), own.grad))
        torch.testing.assert_close(found[0], found[1], atol=2e-2, rtol=2e-2)


def test_packing_frees_memory(small_checkpoint: Path) -> None:
    """Most of the small model's weights are in its blocks: bf16 takes twice the bytes of int8."""
    device = torch.device("cuda")
    unet = load_base_model(small_checkpoint, vae_path=None, device=device, dtype=torch.bfloat16).unet
    before = torch.cuda.memory_allocated()
    quantise(unet, "int8")
    weights = sum(layer.weight.nelement() for _, layer in block_layers(unet))
    assert before - torch.cuda.memory_allocated() > 0.8 * weights
