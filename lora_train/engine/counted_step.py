"""The count job: what one training step of a full-size model asks of a CUDA device, told without one.

The step is the one that trains (`step.train_step`), with the network, optimizer and caches of a real run; only the
numbers in its tensors are missing (see `counting`).
"""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import msgspec
import torch

from lora_train.core.config import TrainSettings
from lora_train.core.memory import asked_plan
from lora_train.core.specs import CountSpec
from lora_train.data.epochs import EpochPlanner, Source
from lora_train.engine import devices, step
from lora_train.engine.building import build_run_network
from lora_train.engine.cache import LatentCache
from lora_train.engine.counting import META, StepCounter, Work, counting, replaced
from lora_train.engine.denoiser import SizeTable
from lora_train.engine.diffusion import alphas_cumprod
from lora_train.engine.random_model import SD1, SDXL, Sizes, unet_shapes
from lora_train.engine.reporting import Reporter
from lora_train.engine.run import Run
from lora_train.engine.text import Embeddings
from lora_train.engine.texts import CachedTexts
from lora_train.engine.topology import Hints, unet_config

PHASES = ("inputs", "forward", "loss", "backward", "clip", "optimizer", "other")
"""In this order. clip: from the end of the backward pass to the optimizer."""
_LATENT_PX = 8
_TOKENS = 77


class Case(msgspec.Struct, frozen=True):
    """A full-size model at the resolution it was made for."""

    name: str
    family: str
    sizes: Sizes
    resolution_px: int


CASES = (Case("sd15", "sd1", SD1, 512), Case("sdxl", "sdxl", SDXL, 1024))


def count(spec: CountSpec, report: Reporter) -> dict[str, object]:
    """By case, as `sd15_512_b1`: kernels, host_syncs, bytes_moved, flops, peak_bytes, and the same by phase."""
    found: dict[str, object] = {}
    for index, case in enumerate(CASES):
        report.phase("counting", index, len(CASES))
        name = f"{case.name}_{case.resolution_px}_b{spec.settings.batch_size}"
        found[name] = count_step(case, spec.settings)
    report.phase("counting", len(CASES), len(CASES))
    return found


def count_step(case: Case, settings: TrainSettings) -> dict[str, object]:
    """What the second step asks for: the first one also makes the optimizer's state."""
    started = time.perf_counter()
    with counting() as counter:
        run = _bare_run(case, settings)
        batches = [batch for epoch in range(2) for batch in run.planner.batches(epoch)]
        run.texts.prepare(batches)
        step.train_step(run, batches[:1])
        counter.restart()
        _counted(run, batches[1:2], counter)
    total = counter.total
    return {
        **total._asdict(),
        "peak_bytes": counter.peak_bytes,
        "phases": {phase: counter.work.get(phase, Work())._asdict() for phase in PHASES},
        "calls": dict(counter.calls.most_common()),
        "waited_for": dict(counter.syncs),
        "seconds": round(time.perf_counter() - started, 1),
    }


def _counted(run: Run, group: Any, counter: StepCounter) -> None:
    """One step; where a phase begins is told by what `step` calls."""

    def predict(*args: Any) -> Any:
        counter.phase = "forward"
        try:
            return own(*args)
        finally:
            counter.phase = "loss"

    def set_phase(phase: str) -> Any:
        return lambda *_: setattr(counter, "phase", phase)

    own = step.predict
    run.optimizer.register_step_pre_hook(set_phase("optimizer"))
    run.optimizer.register_step_post_hook(set_phase("other"))
    counter.phase = "inputs"
    with replaced(step, "predict", predict):
        step.train_step(run, group)


class _AsCuda(devices.Device):
    """The meta device, for which everything is chosen that is chosen for CUDA."""

    @property
    def is_cuda(self) -> bool:
        return True


def _bare_run(case: Case, settings: TrainSettings) -> Run:
    """What a step reads of a run: pictures are encoded and captions, too; nothing was loaded."""
    run = Run()
    run.settings, run.trains_text = settings, False
    run.device = _AsCuda(META, "as CUDA")
    run.dtype = torch.bfloat16 if settings.precision == "auto" else devices.DTYPES[settings.precision]
    bucket = (case.resolution_px, case.resolution_px)
    captions = [f"picture {index}" for index in range(settings.batch_size)]
    sources = [Source(bucket, repeats=1, caption=caption) for caption in captions]
    run.planner = EpochPlanner(sources, batch_size=settings.batch_size, seed=settings.seed)
    run.total_steps = 2
    side = case.resolution_px // _LATENT_PX
    run.latents = LatentCache(1.0, META)
    run.latents.put(bucket, range(len(sources)), torch.empty(len(sources), 1, 2, 4, side, side, device=META))
    captions_encoder: Any = _Captions(case.sizes, run.dtype)
    run.texts = CachedTexts(captions_encoder)
    run.sizes = SizeTable([bucket] * len(sources), [bucket] * len(sources), META) if case.sizes.pooled_width else None
    run.inpaint, run.masks, run.continued = {bucket: None}, None, None
    run.plan, run.tried, run.gauge = asked_plan(settings), [], None
    model: Any = SimpleNamespace(unet=_bare_unet(case, run.dtype), family=case.family, prediction="epsilon")
    run.model = model
    run.alphas = alphas_cumprod(zero_terminal_snr=False).to(META)
    build_run_network(run)
    return run


def _bare_unet(case: Case, dtype: torch.dtype) -> Any:
    from diffusers import UNet2DConditionModel

    with META:
        unet: Any = UNet2DConditionModel(**unet_config(unet_shapes(case.sizes), Hints(), case.family))
    torch.nn.Module.to(unet, dtype)  # diffusers' own warns of modules that a file would have in float32
    return unet.requires_grad_(False).eval()


class _Captions:
    """Stands for tokenizers and text encoders: captions of one chunk each (see `text.Prompts`)."""

    device = META

    def __init__(self, sizes: Sizes, dtype: torch.dtype) -> None:
        self._width = sum(text.width for text in sizes.text)
        self._pooled_width = sizes.pooled_width
        self._dtype = dtype

    def encode_each(self, captions: list[str]) -> list[Embeddings]:
        return self.encode(self.ids(captions)).split()

    def ids(self, captions: list[str]) -> torch.Tensor:
        return torch.zeros(len(captions), _TOKENS, dtype=torch.int64)

    def encode(self, ids: torch.Tensor) -> Embeddings:
        hidden = torch.empty(len(ids), _TOKENS, self._width, dtype=self._dtype, device=META)
        if not self._pooled_width:
            return Embeddings(hidden)
        return Embeddings(hidden, torch.empty(len(ids), self._pooled_width, dtype=self._dtype, device=META))

    def length(self, _: str) -> int:
        return _TOKENS

    def forget(self) -> None:
        pass

    def rest(self) -> None:
        pass
