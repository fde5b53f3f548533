"""How a run is laid out in memory: the plan that it begins with, and the change to another, also under way."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lora_train.core.config import TrainSettings
from lora_train.core.errors import DeviceMemoryError
from lora_train.core.memory import (
    MemoryFacts,
    MemoryNeed,
    MemoryPlan,
    Trial,
    asked_plan,
    backward_passes,
    ladder,
    read_memory,
    write_memory,
)
from lora_train.core.memory_need import Workload, predicted_need
from lora_train.core.numbers import gigabytes_text
from lora_train.core.optimizers import sees_shapes
from lora_train.engine import devices
from lora_train.engine.checkpointing import checkpoint_blocks
from lora_train.engine.graphs import WAITS
from lora_train.engine.offload import CudaMover, Offload
from lora_train.engine.quantised import quantise
from lora_train.engine.texts import CachedTexts

if TYPE_CHECKING:
    from lora_train.engine.run import Run


def earlier_or_asked(settings: TrainSettings, job_dir: Path) -> tuple[MemoryPlan, list[Trial]]:
    """The plan that an earlier worker of the job found to fit, and what it tried; else what the settings say."""
    facts = read_memory(job_dir)
    return (facts.plan, list(facts.trials)) if facts is not None else (asked_plan(settings), [])


def next_plan(run: Run) -> MemoryPlan | None:
    """The next way to save memory; None at the end of the ladder."""
    plans = ladder(run.settings, on_cpu=not run.device.is_cuda)
    coming = plans[plans.index(run.plan) + 1 :] if run.plan in plans else ()
    return coming[0] if coming else None


def take_plan(run: Run, plan: MemoryPlan) -> None:
    """Lay a run, whose network is attached, out as the plan says. Weights that are packed already are not unpacked."""
    unet = run.model.unet
    run.plan = plan
    run.recordings.forget()
    if run.processes is not None or backward_passes(run.settings, plan) > 1 or sees_shapes(run.settings):
        for part in run.groups.values():
            part.keep_sums()
    if plan != asked_plan(run.settings):
        run.texts.let_encoders_rest()
    checkpoint_blocks(unet, plan.checkpointing)
    lean, compiled = run.fast_unet, run.compiled
    if compiled is not None:
        compiled.detach()
    lean.detach()
    run.network.detach()  # layers become others, and what replaces their `forward` has to know
    try:
        quantise(unet, plan.base_weights)
        if plan.offload_share and run.device.is_cuda:
            run.offload = run.offload or Offload(unet, CudaMover(run.device.torch))
            run.offload.take(plan.offload_share)
            run.recordings.end(WAITS)
    finally:
        run.network.attach()
        lean.attach()
        if compiled is not None:
            compiled.attach()
    devices.free_cached_memory(run.device)


def load_unet(run: Run) -> None:
    """Read the UNet as the plan says; where it is too large for the device, with the next plan that packs it."""
    while True:
        try:
            _ = run.model.unet
        except Exception as error:
            if not devices.is_out_of_memory(error):
                raise
        else:
            return
        _leave_rung_for_packed(run)


def _leave_rung_for_packed(run: Run) -> None:
    """Raises DeviceMemoryError where the weights can't be smaller."""
    run.tried.append(Trial(plan=run.plan, why_not="out_of_memory"))
    before = run.plan.base_weights
    while (plan := next_plan(run)) is not None:
        run.plan = plan
        if plan.base_weights != before:
            run.model.base_weights = plan.base_weights
            devices.free_cached_memory(run.device)
            return
    raise devices.out_of_memory(MemoryError("the base model does not fit"))


def need_of(run: Run, plan: MemoryPlan) -> MemoryNeed:
    """What the run is expected to take."""
    sources = run.planner.sources
    work = Workload(
        family=run.model.family,
        model_channels=run.model.unet.config.block_out_channels[0],
        area_px=max(width * height for width, height in (source.bucket for source in sources)),
        pictures=len(sources),
        captions=run.texts.count if isinstance(run.texts, CachedTexts) else 0,
        bytes_per_number=2 if run.dtype.itemsize == 2 else 4,
        on_cpu=run.device.is_cpu,
        stays_half=run.dtype.itemsize == 4 and any(own.dtype.itemsize == 2 for own in run.model.unet.parameters()),
    )
    return predicted_need(run.settings, work, plan)


def remember(run: Run) -> MemoryFacts:
    """Write the plan that is in force, and all that was tried, into the job's folder."""
    facts = MemoryFacts(
        plan=run.plan,
        trials=tuple(run.tried),
        predicted=need_of(run, run.plan),
        budget_bytes=run.gauge.budget_bytes if run.gauge is not None else 0,
        device_bytes=run.gauge.device_bytes if run.gauge is not None else 0,
    )
    write_memory(run.job_dir, facts)
    return facts


def take_leaner_plan(run: Run, step: int) -> None:
    """Memory ran out at this step: take up the next plan that can be. Raises DeviceMemoryError after the last one."""
    while True:
        run.tried.append(Trial(plan=run.plan, why_not="out_of_memory", step=step))
        plan = next_plan(run)
        if plan is None:
            raise nothing_fits(run)
        try:
            take_plan(run, plan)
        except Exception as error:
            if not devices.is_out_of_memory(error):
                raise
        else:
            remember(run)
            return


def nothing_fits(run: Run) -> DeviceMemoryError:
    """The end of the ladder, in words."""
    needs = gigabytes_text(max(run.tried[-1].peak_bytes, need_of(run, run.plan).total_bytes))
    there = f", and {gigabytes_text(run.gauge.budget_bytes)} are there for it" if run.gauge is not None else ""
    return DeviceMemoryError(
        f"With all that saves memory, this training still needs about {needs} on {run.device.label}{there}.",
        "Lower the resolution or the rank, or close other programs that use the graphics card.",
    )
