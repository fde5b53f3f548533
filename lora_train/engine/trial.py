"""A few real steps before a training's first one: whether it fits its device, and what it does where it doesn't."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

import msgspec
import torch

from lora_train.core.events import Note
from lora_train.core.memory import Trial, WhyNot, measures, read_memory
from lora_train.core.numbers import gigabytes_text
from lora_train.data.epochs import Batch
from lora_train.engine import devices
from lora_train.engine.averages import Averages
from lora_train.engine.building import give_optimizer
from lora_train.engine.gauge import Gauge
from lora_train.engine.memory import next_plan, nothing_fits, remember, take_plan
from lora_train.engine.reporting import Reporter
from lora_train.engine.run import Run
from lora_train.engine.step import train_step

TRIAL_STEPS = 3
"""The first makes the optimizer's state, and libraries choose their kernels in it; the others cost what steps cost."""

_FITS = "Fits the memory that this training may take."


def fit(run: Run, report: Reporter) -> None:
    """Find the first plan from the run's own on that fits its device, take it, write it into the job's folder and tell
    of it. Nothing is tried where a worker of this job did so before, or where the run isn't to be fitted.

    Raises DeviceMemoryError where none fits, RequestedEnd when the person asked to end.
    """
    earlier = read_memory(run.job_dir)
    if run.gauge is None or earlier is not None:
        report.usual_s_per_step = earlier.fitting.s_per_step if earlier is not None and earlier.fitting else 0.0
        return
    batches = run.planner.batches(0)
    run.texts.prepare(batches)
    batch = largest_batch(batches, run.texts.length)
    run.texts.prepare([*batches, batch])
    while True:
        report.phase("trying whether it fits the device")
        run.tried.append(_try(run, batch, run.gauge))
        if not run.tried[-1].why_not:
            break
        plan = next_plan(run)
        if plan is None:
            raise nothing_fits(run)
        run.plan = plan
    remember(run)
    report.usual_s_per_step = run.tried[-1].s_per_step
    report.events.write(Note("info", _told(run, run.gauge)))


def largest_batch(batches: Sequence[Batch], length: Callable[[str], int]) -> Batch:
    """A batch that takes as much memory as any: one with most pixels, each view of it with the longest caption."""
    largest = max(batches, key=lambda batch: batch.bucket[0] * batch.bucket[1] * len(batch.views))
    longest = max((view.caption for batch in batches for view in batch.views), key=length)
    views = tuple(msgspec.structs.replace(view, caption=longest) for view in largest.views)
    return Batch(largest.bucket, views)


@contextmanager
def untouched(run: Run) -> Generator[None, None, None]:
    """Within, steps teach a network that is thrown away. After it the run is, bit for bit, what it was before."""
    own = run.optimizer, run.schedule, run.scaler
    kept = {name: tensor.detach().to("cpu", copy=True) for name, tensor in run.network.tensors().items()}
    give_optimizer(run)
    decay = run.settings.ema_decay
    averages = Averages(run.groups.values(), decay) if decay else None  # the run will need their memory
    cards = [run.device.torch] if run.device.is_cuda else []
    run.recordings.pauses = True  # one that fails for want of memory would end them all
    try:
        with torch.random.fork_rng(devices=cards):
            yield
    finally:
        del averages
        run.network.after_step()
        for part in run.groups.values():
            part.forget()
        run.recordings.forget()
        run.recordings.pauses = False
        run.optimizer, run.schedule, run.scaler = own
        with torch.no_grad():
            for name, tensor in run.network.tensors().items():
                tensor.copy_(kept[name])


def _try(run: Run, batch: Batch, gauge: Gauge) -> Trial:
    """The run's plan, tried with real steps."""
    gauge.restart()
    why_not: WhyNot = ""
    s_per_step = 0.0
    try:
        take_plan(run, run.plan)
        with untouched(run):
            s_per_step = _s_per_step(run, batch)
    except Exception as error:
        if not devices.is_out_of_memory(error):
            raise
        why_not = "out_of_memory"
    peak_bytes = gauge.peak_bytes()
    if not why_not and peak_bytes > gauge.budget_bytes:
        why_not = "over_budget"
    if not why_not and devices.spills(run.device.torch):
        why_not = "spilled"
    return Trial(plan=run.plan, peak_bytes=peak_bytes, s_per_step=s_per_step, why_not=why_not)


def _s_per_step(run: Run, batch: Batch) -> float:
    """Of the quickest step."""
    group = [batch] * run.settings.gradient_accumulation_steps
    times: list[float] = []
    for _ in range(TRIAL_STEPS):
        began = time.perf_counter()
        train_step(run, group)
        devices.synchronize(run.device)
        times.append(time.perf_counter() - began)
    return min(times)


def _told(run: Run, gauge: Gauge) -> str:
    fitting = run.tried[-1]
    peak = f"{gigabytes_text(fitting.peak_bytes)} / {gigabytes_text(gauge.budget_bytes)}"
    numbers = f"{peak}, {fitting.s_per_step:.2f} s/step"
    return "\n".join([_FITS, numbers, *(part for measure in measures(fitting.plan) for part in measure if part)])
