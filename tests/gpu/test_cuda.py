"""The same training on a CUDA device: number formats, checkpointing, stop and resume, memory, speed.

Skipped, with the reason, where there is no such device.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from lora_train.app import App  # noqa: E402
from lora_train.core.assets import DEMO_PICTURES  # noqa: E402
from lora_train.core.jobs import JobFolder, JobStatus  # noqa: E402
from lora_train.core.workspace import Workspace  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]

SETTINGS: dict[str, Any] = {
    "base_model": "demo",
    "device": "cuda",
    "epochs": 4,
    "batch_size": 4,
    "rank": 8,
    "alpha": 8,
    "learning_rate": 1e-3,
    "text_encoder_lr": 1e-3,
    "save_every_epochs": 0,
}


def run_to_end(app: App, job: JobFolder) -> JobStatus:
    process = app.start(job)
    process.wait(300)
    return app.status(job, process)


def tensors_of(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(str(path))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("optimizer", ["AdamW", "Lion"])
def test_every_number_format_learns(tmp_path: Path, precision: str, optimizer: str) -> None:
    app = App(Workspace(tmp_path))
    rate = 1e-3 if optimizer == "AdamW" else 1e-4
    values = {**SETTINGS, "precision": precision, "optimizer": optimizer, "learning_rate": rate}
    plan = app.plan_train(name="gpu", images=DEMO_PICTURES, values=values)
    status = run_to_end(app, plan.job)
    assert status.state == "finished", status.message
    assert status.device == torch.cuda.get_device_name(0)
    saved = tensors_of(plan.job.path / status.saved[-1])
    assert all(bool(torch.isfinite(tensor).all()) for tensor in saved.values())
    assert any(tensor.abs().max() > 0 for name, tensor in saved.items() if "lora_up" in name)


def test_checkpointing_trains_the_same(tmp_path: Path) -> None:
    """Recomputed activations give the same gradients; kernels may differ, so fp32 and a tolerance of 1e-3."""
    found = []
    for checkpointing in (False, True):
        app = App(Workspace(tmp_path / str(checkpointing)))
        values = {**SETTINGS, "precision": "fp32", "gradient_checkpointing": checkpointing, "epochs": 1}
        plan = app.plan_train(name="gpu", images=DEMO_PICTURES, values=values)
        status = run_to_end(app, plan.job)
        assert status.state == "finished", status.message
        found.append(tensors_of(plan.job.path / status.saved[-1]))
    plain, recomputed = found
    for name, tensor in plain.items():
        torch.testing.assert_close(tensor.float(), recomputed[name].float(), atol=1e-3, rtol=1e-2)


def test_stop_and_resume(tmp_path: Path) -> None:
    app = App(Workspace(tmp_path))
    values = {**SETTINGS, "epochs": 60}
    plan = app.plan_train(name="gpu", images=DEMO_PICTURES, values=values)
    process = app.start(plan.job)
    for _ in range(600):
        if app.status(plan.job, process).step > 5:
            break
        time.sleep(0.1)
    plan.job.request("stop")
    process.wait(120)
    stopped = app.status(plan.job)
    assert stopped.state == "stopped"
    assert 5 < stopped.step < plan.total_steps
    finished = run_to_end(app, plan.job)
    assert finished.state == "finished"
    assert finished.step == plan.total_steps


def test_bench_measures_memory_and_speed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lora_train", "bench", "--base-model", "sd15", "--resolution", "512", "--json"]
    done = subprocess.run(
        [*command, "--workspace", str(tmp_path)], capture_output=True, text=True, encoding="utf-8", check=True
    )
    measured = json.loads(done.stdout.splitlines()[-1])
    assert measured["s_per_step"] > 0
    assert 0 < measured["peak_vram_gb"] < 12
