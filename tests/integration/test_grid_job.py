"""Grids by real workers and from the command line, with the demo model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from lora_train.app.grid_planning import plan_grid_job
from lora_train.core.config import TrainSettings
from lora_train.core.grid_settings import GridSettings
from lora_train.core.grids import ALL_GRIDS_FILE, grid_file
from lora_train.core.jobs import JobFolder
from lora_train.engine.network_file import checked, named_parts, save_lora

GRID: dict[str, Any] = {"prompt": "a red circle", "steps": (3,), "seeds": (5,), "weights": (0, 1)}


@pytest.fixture
def loras(demo_model: Any, make_lora: Callable[..., Any], tmp_path: Path) -> list[Path]:
    """Two different LoRAs for the demo model, which changes nothing of the model itself."""
    paths = [tmp_path / "猫-000002.safetensors", tmp_path / "猫.safetensors"]
    for path, up in zip(paths, (0.05, 0.1), strict=True):
        network = make_lora(demo_model, up=up)
        save_lora(path, checked(named_parts(network), torch.float32), {"ss_output_name": path.stem})
    return paths


def plan(studio: Any, loras: list[Path], **grid: Any) -> JobFolder:
    own = TrainSettings(base_model="demo", cpu_threads=1)
    spec = plan_grid_job(studio.app.workspace, loras, GridSettings(**{**GRID, **grid}), own, fallback_prompt="")
    job = JobFolder(studio.app.workspace.new_job_dir("grid"))
    job.create(spec)
    return job


def test_stopped_and_resumed_by_workers(studio: Any, loras: list[Path]) -> None:
    """100 steps of Heun for a batch of 6 take far longer than this waits; the stop is heard within them."""
    job = plan(studio, loras[:1], steps=(2, 100), samplers=("Heun",), weights=(1,), batch_size=6)
    process = studio.start(job)
    studio.wait_until(lambda: len(list((job.path / "pictures").glob("*.png"))) == 6, process)
    job.request("stop")
    assert studio.end(job, process).state == "stopped"
    spec: Any = job.read_spec()
    job.replace_spec(msgspec.structs.replace(spec, grid=msgspec.structs.replace(spec.grid, steps=(2, 3))))
    status = studio.run(job)
    assert (status.state, status.result["pictures"]) == ("finished", 6)
    assert (job.path / grid_file(loras[0].stem)).is_file()


def test_command_line(studio: Any, loras: list[Path]) -> None:
    out = studio.root / "out"
    out.mkdir()
    (out / ALL_GRIDS_FILE).write_bytes(b"mine")
    arguments = [
        *("grid", *loras, "--prompt", "a [red] circle", "--weights", "0.5,1", "--samplers", "Euler, Heun"),
        *("--steps", "2", "--base-model", "demo", "--out", out, "--workspace", studio.root / "w"),
    ]
    done = studio.cli(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["result"]["pictures"] == 2 * 2 * 2
    assert sorted(Path(path).name for path in result["grids"]) == sorted(
        ["all-grid-2.png", *(grid_file(lora.stem) for lora in loras)]
    )
    assert (out / ALL_GRIDS_FILE).read_bytes() == b"mine", "nothing is overwritten"
    assert all(Path(path).parent == out and Path(path).is_file() for path in result["grids"])
    wrong = studio.cli("grid", loras[0], "--prompt", "x", "--base-model", "demo", "--samplers", "Restart", "--json")
    assert wrong.returncode == 2
    assert "'Restart'" in json.loads(wrong.stdout)["message"]
