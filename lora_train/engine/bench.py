"""The bench job: what a training step costs here, measured through the same code that trains."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from lora_train.core.assets import resolve_base_model
from lora_train.core.checkpoints import read_checkpoint, with_choices
from lora_train.core.config import TrainSettings
from lora_train.core.jobs import JobFolder
from lora_train.core.presets import native_resolution_px
from lora_train.core.specs import BENCH_MODELS, BenchSpec, TrainSpec
from lora_train.data.dataset import fingerprint, scan_dataset
from lora_train.data.epochs import Batch
from lora_train.engine import devices
from lora_train.engine.reporting import Reporter
from lora_train.engine.run import Run
from lora_train.engine.setup import prepare_run
from lora_train.engine.step import train_step


def bench(spec: BenchSpec, job: JobFolder, report: Reporter) -> dict[str, object]:
    """Time `spec.steps` steps after the first, then count the operations of one more.

    s_to_first_step and its CPU seconds count from the start of the process: imports, loading, encoding, one step.
    """
    begun_at, begun_cpu_s = time.monotonic(), time.process_time()
    settings, checkpoint = spec.settings, job.path / "full-size.safetensors"
    try:
        if settings.base_model in BENCH_MODELS:
            report.phase("making a full-size model with random weights")
            _make_full_size_model(settings.base_model, checkpoint)
            settings = msgspec.structs.replace(settings, base_model=str(checkpoint))
        size_px = settings.resolution or _native_resolution_px(settings)
        _make_pictures(job.path / "dataset", spec.pictures, size_px)
        making = time.monotonic() - begun_at, time.process_time() - begun_cpu_s
        return _measure(spec, settings, job, report, making)
    finally:
        checkpoint.unlink(missing_ok=True)


def _native_resolution_px(settings: TrainSettings) -> int:
    facts = read_checkpoint(resolve_base_model(settings.base_model))
    return native_resolution_px(with_choices(facts, settings.prediction, settings.zero_terminal_snr))


def _measure(
    spec: BenchSpec, settings: Any, job: JobFolder, report: Reporter, making: tuple[float, float]
) -> dict[str, object]:
    """`making` is what the model and the pictures of the bench took: wall and CPU seconds that no training has."""
    dataset = scan_dataset(job.path / "dataset")
    train = TrainSpec(
        name="bench",
        dataset="dataset",
        dataset_fingerprint=fingerprint(dataset),
        trash="trash",
        settings=msgspec.structs.replace(settings, epochs=spec.steps + 2, repeats=-1),
        concept="bench",
    )
    run = prepare_run(train, job.path, report)
    batches = [batch for epoch in range(spec.steps + 2) for batch in run.planner.batches(epoch)]
    run.texts.prepare(batches)
    report.phase("timing steps", 0, spec.steps)
    _timed_step(run, batches[0])
    to_first_step_s = time.time() - psutil.Process().create_time() - making[0]
    to_first_step_cpu_s = time.process_time() - making[1]
    times: list[tuple[float, float]] = []
    for index in range(1, spec.steps + 1):
        times.append(_timed_step(run, batches[index % len(batches)]))
        report.phase("timing steps", index, spec.steps)
    wall_s, cpu_s = zip(*times, strict=True)
    with _OperationCounter() as counter:
        train_step(run, [batches[0]])
    return {
        "device": run.device.label,
        "precision": run.facts.compute_precision,
        "base_model": spec.settings.base_model,
        "resolution_px": run.resolution_px,
        "batch_size": settings.batch_size,
        "rank": settings.rank,
        "s_per_step": statistics.median(wall_s),
        "cpu_s_per_step": statistics.median(cpu_s),
        "s_to_first_step": to_first_step_s,
        "cpu_s_to_first_step": to_first_step_cpu_s,
        "peak_rss_gb": devices.peak_process_bytes() / 1e9,
        "peak_vram_gb": devices.peak_device_bytes(run.device.torch) / 1e9,
        "aten_ops_per_step": counter.count,
        "steps": spec.steps,
        "torch": str(torch.__version__),
    }


def _timed_step(run: Run, batch: Batch) -> tuple[float, float]:
    """Wall and CPU seconds of one step."""
    wall, cpu = time.perf_counter(), time.process_time()
    train_step(run, [batch])
    devices.synchronize(run.device)
    return time.perf_counter() - wall, time.process_time() - cpu


class _OperationCounter(TorchDispatchMode):
    """Counts leaf ATen operations, except those that only look at memory in another way."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aliases = [returned.alias_info for returned in func._schema.returns]
        is_view = any(alias is not None and not alias.is_write for alias in aliases)
        self.count += not is_view
        return func(*args, **(kwargs or {}))


def _make_full_size_model(name: str, path: Path) -> None:
    """In a process of its own, so that its memory does not count as the training's."""
    code = (
        "import sys, torch\n"
        "from pathlib import Path\n"
        "from lora_train.engine.random_model import SD1, SD2, SDXL, write_random_checkpoint\n"
        "sizes = {'sd15': SD1, 'sd2': SD2, 'sdxl': SDXL}[sys.argv[1]]\n"
        "write_random_checkpoint(Path(sys.argv[2]), sizes, dtype=torch.float16, seed=0)\n"
    )
    subprocess.run([sys.executable, "-c", code, name, str(path)], check=True, env=dict(os.environ))


def _make_pictures(folder: Path, count: int, size_px: int) -> None:
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0)
    for index in range(count):
        coarse = noise.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((size_px, size_px), Image.Resampling.BICUBIC)
        picture.save(folder / f"{index:03}.png")
        (folder / f"{index:03}.txt").write_text(f"picture {index}, noise", encoding="utf-8")
