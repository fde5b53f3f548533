"""Number formats, gradient checkpointing, and running out of memory, on the small model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from lora_train import worker
from lora_train.core import events as ev
from lora_train.core.jobs import JobFolder
from lora_train.core.specs import TrainSpec
from lora_train.engine import setup, step
from lora_train.engine import train as engine
from lora_train.engine.reporting import Reporter

if TYPE_CHECKING:
    from tests.integration.conftest import Files, Studio


@pytest.fixture
def images(studio: Studio) -> Path:
    return studio.pictures("pictures", ["a red thing", "a blue thing"])


def prepare(job: JobFolder) -> setup.Run:
    spec = job.read_spec()
    assert isinstance(spec, TrainSpec)
    events = ev.EventWriter(job.events_path)
    try:
        return setup.prepare_run(spec, job.path, Reporter(job, events))
    finally:
        events.close()


def worker_here(job: JobFolder, monkeypatch: pytest.MonkeyPatch) -> int:
    """The worker's main function in this process, whose modules and environment it may not change."""
    monkeypatch.setattr(worker, "_isolate", lambda _: None)
    return worker.main([str(job.path)])


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)]
)
def test_every_precision_trains(
    studio: Studio,
    files: type[Files],
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    dtype: torch.dtype,
) -> None:
    computed: set[torch.dtype] = set()
    scales: list[float] = []
    losses_of = step.losses_of

    def spied(run: setup.Run, inputs: Any) -> torch.Tensor:
        computed.add(next(run.model.unet.parameters()).dtype)
        assert all(weight.dtype == torch.float32 for weight in run.network.parameters())
        if run.scaler.is_enabled():
            scales.append(run.scaler.get_scale())
        return losses_of(run, inputs)

    monkeypatch.setattr(step, "losses_of", spied)
    job = studio.plan(images, precision=precision, epochs=10, repeats=2, batch_size=2)
    assert worker_here(job, monkeypatch) == 0
    assert computed == {dtype}
    assert bool(scales) == (precision == "fp16"), "losses are scaled in fp16 alone"
    assert all(scale > 1 for scale in scales)

    status = studio.app.status(job)
    assert not any("half the learning rate" in note for note in status.notes)
    losses = [event.loss for event in job.events() if isinstance(event, ev.Step)]
    assert len(losses) == 20
    assert sum(losses[-5:]) < sum(losses[:5]), "it learns"
    assert files.are_finite(files.final(job))
    from safetensors.torch import load_file

    unchanged = [
        name
        for name, tensor in load_file(files.final(job)).items()
        if name.endswith("lora_up.weight") and not bool(tensor.any())  # what they begin with
    ]
    # At 64 px the middle block has a single latent pixel: what it looks at makes no difference.
    assert all("mid_block" in name for name in unchanged)
    assert all(name.endswith(("attn1_to_q.lora_up.weight", "attn1_to_k.lora_up.weight")) for name in unchanged)


@pytest.mark.parametrize("trains_text", [True, False])
def test_checkpointing_gives_the_same_gradients(studio: Studio, images: Path, trains_text: bool) -> None:
    gradients: list[dict[str, torch.Tensor]] = []
    block_calls: list[int] = []
    for is_on in (False, True):
        job = studio.plan(images, batch_size=2, gradient_checkpointing=is_on, train_text_encoder=trains_text)
        run = prepare(job)
        with torch.no_grad():  # `up` begins at zero, and then `down` has no gradient
            for lora in run.network.layers:
                lora.up.fill_(0.01)
        batches = run.planner.batches(0)
        run.texts.prepare(batches)
        calls: list[int] = []
        block = run.model.unet.up_blocks[1].resnets[0]
        block.register_forward_pre_hook(lambda *_, seen=calls: seen.append(1))
        step.losses_of(run, step.batch_inputs(run, batches[0])).sum().backward()
        block_calls.append(len(calls))
        gradients.append(
            {name: tensor.grad for name, tensor in run.network.tensors().items() if tensor.grad is not None}
        )
    assert block_calls == [1, 2], "blocks are computed again on the way back"
    plain, checkpointed = gradients
    assert len(plain) == len(run.network.tensors())
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        assert bool(gradient.any()), name
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    "error",
    [
        getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_names_three_settings(
    studio: Studio, images: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(*_: Any) -> torch.Tensor:
        raise error

    monkeypatch.setattr(engine, "train_step", fails)
    job = studio.plan(images, epochs=1)
    assert worker_here(job, monkeypatch) == 1
    failed = job.events()[-1]
    assert isinstance(failed, ev.Failed)
    assert failed.error == "DeviceMemoryError"
    assert "too little memory" in failed.message
    for setting in ("gradient_checkpointing", "batch_size", "resolution"):
        assert setting in failed.hint
    assert "Traceback" in failed.traceback
    assert studio.app.status(job).state == "failed"


def test_a_fault_of_ours_is_told_as_one(studio: Studio, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> torch.Tensor:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(engine, "train_step", fails)
    job = studio.plan(images, epochs=1)
    assert worker_here(job, monkeypatch) == 1
    failed = job.events()[-1]
    assert isinstance(failed, ev.Failed)
    assert (failed.error, failed.message) == ("ZeroDivisionError", "Unexpected: division by zero")
    assert "worker.log" in failed.hint
