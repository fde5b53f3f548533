"""CUDA graphs for real: the same LoRA as without them, no waiting for the device, no growing memory.

Skipped, with the reason, where there is no CUDA device. What steps do with recordings is tested without one in
`tests/unit/engine/test_recordings.py` and `tests/integration/test_recorded_steps.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from lora_train.app import App  # noqa: E402
from lora_train.core import events as ev  # noqa: E402
from lora_train.core.jobs import JobFolder  # noqa: E402
from lora_train.core.specs import TrainSpec  # noqa: E402
from lora_train.core.workspace import Workspace  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]

SETTINGS: dict[str, Any] = {
    "base_model": "demo",
    "device": "cuda",
    "hold_out": 0,
    "epochs": 40,
    "repeats": 2,
    "batch_size": 2,
    "rank": 8,
    "alpha": 8,
    "learning_rate": 1e-3,
    "text_encoder_lr": 1e-3,
    "save_every_epochs": 0,
    "state_every_s": 0,
}
"""Two shapes of four pictures each: 8 batches an epoch, 320 in all."""
BY_OPTIMIZER: dict[str, dict[str, Any]] = {"AdamW": {}, "Lion": {"learning_rate": 1e-4, "text_encoder_lr": 1e-4}}


def job_of(folder: Path, **settings: Any) -> JobFolder:
    images = folder / "pictures"
    images.mkdir(parents=True)
    chance = np.random.default_rng(0)
    for index in range(8):
        coarse = chance.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((64, 64) if index % 2 else (96, 64)).save(images / f"{index}.png")
        (images / f"{index}.txt").write_text(f"a thing {index}", encoding="utf-8")
    return App(Workspace(folder / "workspace")).plan_train(name="gpu", images=images, values=SETTINGS | settings).job


class Steps:
    """A prepared run, taken step by step."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        from lora_train.engine.reporting import Reporter
        from lora_train.engine.setup import prepare_run

        self.job = job_of(folder, **settings)
        spec = self.job.read_spec()
        assert isinstance(spec, TrainSpec)
        events = ev.EventWriter(self.job.events_path)
        self.run = prepare_run(spec, self.job.path, Reporter(self.job, events))
        self._batches = self._all_batches()
        self.before = self.weights()

    def _all_batches(self) -> Iterator[Any]:
        for epoch in range(self.run.settings.epochs):
            batches = self.run.planner.batches(epoch)
            self.run.texts.prepare(batches)
            yield from batches

    def take(self, count: int) -> Any:
        """The losses, still on the device."""
        from lora_train.engine.step import train_step

        return torch.stack([train_step(self.run, [next(self._batches)]) for _ in range(count)])

    def weights(self) -> Any:
        return torch.cat([tensor.detach().flatten().clone() for tensor in self.run.network.tensors().values()])

    def notes(self) -> list[str]:
        return [event.message for event in self.job.events() if isinstance(event, ev.Note)]


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("trains_text", [False, True])
@pytest.mark.parametrize("optimizer", ["AdamW", "Lion"])
@pytest.mark.parametrize(("precision", "most"), [("fp32", 0.02), ("bf16", 0.1)])
def test_replayed_steps_are_the_plain_ones(
    tmp_path: Path, precision: str, most: float, optimizer: str, trains_text: bool
) -> None:
    """Over 20 steps: the difference of the weights, as a share of how far they went. Kernels may add up in any order,
    and what an optimizer makes of a gradient near 0 depends on its sign: so some of the way may differ.
    """
    settings = {"precision": precision, "optimizer": optimizer, "train_text_encoder": trains_text}
    settings |= BY_OPTIMIZER[optimizer]
    plain = Steps(tmp_path / "plain", cuda_graphs=False, **settings)
    replayed = Steps(tmp_path / "replayed", cuda_graphs=True, **settings)
    wanted, found = plain.take(20), replayed.take(20)
    assert not any("without CUDA graphs" in note for note in replayed.notes()), replayed.notes()
    assert replayed.run.recordings.count >= 2, "two shapes, and the update where it can be recorded"
    torch.testing.assert_close(found, wanted, rtol=most, atol=1e-3)
    way = plain.weights() - plain.before
    assert (replayed.weights() - plain.weights()).norm() < most * way.norm()


@pytest.mark.parametrize("optimizer", ["AdamW", "Lion"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_steps_wait_for_nothing(tmp_path: Path, precision: str, optimizer: str, cuda_graphs: bool) -> None:
    settings = {"precision": precision, "optimizer": optimizer, "cuda_graphs": cuda_graphs}
    steps = Steps(tmp_path, **settings, **BY_OPTIMIZER[optimizer])
    steps.take(12)  # optimizers make their state, and recordings are made
    with waiting_is_an_error():
        losses = steps.take(20)
    assert bool(losses.isfinite().all())


def test_memory_stays_as_it_is(tmp_path: Path) -> None:
    steps = Steps(tmp_path, precision="bf16")
    steps.take(50)
    before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    steps.take(100)
    assert (torch.cuda.memory_allocated(), torch.cuda.memory_reserved()) == before


def test_a_step_that_overflows_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lora_train.engine import step

    steps = Steps(tmp_path, precision="fp16")
    steps.take(16)
    assert steps.run.recordings.count >= 2
    before, scale = steps.weights(), steps.run.scaler.get_scale()
    batch_inputs = step.batch_inputs
    with monkeypatch.context() as patched:
        patched.setattr(
            step,
            "batch_inputs",
            lambda run, batch: (own := batch_inputs(run, batch))._replace(latents=own.latents * float("inf")),
        )
        with waiting_is_an_error():
            steps.take(1)
    assert torch.equal(steps.weights(), before)
    assert steps.run.scaler.get_scale() == scale / 2
    steps.take(8)
    assert not torch.equal(steps.weights(), before)
    assert bool(steps.weights().isfinite().all())


def test_what_can_not_be_recorded_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lora_train.engine import step

    losses_of = step.losses_of

    def asking(run: Any, inputs: Any) -> Any:
        assert inputs.timesteps[0].item() < 1000
        return losses_of(run, inputs)

    monkeypatch.setattr(step, "losses_of", asking)
    steps = Steps(tmp_path, precision="bf16")
    losses = steps.take(24)
    assert bool(losses.isfinite().all())
    assert [note for note in steps.notes() if note.startswith("Steps run without CUDA graphs: recording failed")]
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    torch.cuda.empty_cache()  # torch before 2.13 refuses after a capture that was broken off


def test_previews_and_validation_in_between(tmp_path: Path) -> None:
    """They take memory and hand it back; recordings stay what they were."""
    settings = {"hold_out": 2, "generate_previews": True, "preview_prompts": ("a thing",), "validate_every_steps": 7}
    job = job_of(tmp_path, precision="bf16", **{**settings, "epochs": 6, "save_every_epochs": 2, "state_every_s": 1})
    app = App(Workspace(tmp_path / "workspace"))
    process = app.start(job)
    process.wait(300)
    status = app.status(job, process)
    assert status.state == "finished", status.message
    assert not any("without CUDA graphs" in note for note in status.notes)
    kinds = {type(event) for event in job.events()}
    assert {ev.Saved, ev.Sampled, ev.Validated} <= kinds
    losses = [event.loss for event in job.events() if isinstance(event, ev.Step)]
    assert sum(losses[-8:]) < sum(losses[:8]), "it learns"


def test_a_snapshot_is_of_its_moment() -> None:
    from lora_train.engine.saving import Snapshot

    own = {"large": torch.randn(3000, 3000, device="cuda"), "small": torch.ones(3, device="cuda", dtype=torch.bfloat16)}
    wanted = {name: tensor.cpu() for name, tensor in own.items()}
    with waiting_is_an_error():
        snapshot = Snapshot(own)
        for tensor in own.values():
            tensor.zero_()
    found = snapshot.tensors()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_compiled_blocks_train(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="Triton is not installed here")
    plain = Steps(tmp_path / "plain", precision="fp32", train_text_encoder=False)
    compiled = Steps(tmp_path / "compiled", precision="fp32", train_text_encoder=False, compile_blocks=True)
    torch.testing.assert_close(compiled.take(20), plain.take(20), rtol=0.02, atol=1e-3)
    assert not any("not compiled" in note or "without CUDA graphs" in note for note in compiled.notes())
