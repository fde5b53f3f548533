"""How a training is laid out in memory, the ways to need less of it, and what became of them: `memory.json`.

A plan never changes what is learned, but for rounding.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from lora_train.core.config import TrainSettings
from lora_train.core.memory_settings import BaseWeights
from lora_train.core.records import read_json, write_json

Checkpointing = Literal["none", "some", "all"]

OFFLOAD_SHARES = (0.3, 0.6, 0.9)
"""Shares of the UNet's weights that the last rungs leave in main memory. What computes has to be on the card, and what
comes next too, so that not all can wait outside."""

_LEFT_SHARE, _LEFT_BYTES = 0.03, 200_000_000
_FILE = "memory.json"


class MemoryPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One rung of the ladder.

    views_at_once   a batch goes through the model in parts of at most so many views; 0: whole
    checkpointing   of which blocks the activations are computed again in the backward pass; "some" are the UNet's up
                    blocks, which hold more than half of them in every family: 63 % in SD 1.x, 56 % in SDXL (those of
                    the finest level alone would be 55 % and 5 %)
    base_weights    how the frozen base model is stored
    offload_share   share of the UNet's weights that wait in main memory
    """

    views_at_once: int = 0
    checkpointing: Checkpointing = "none"
    base_weights: BaseWeights = "full"
    offload_share: float = 0.0


def asked_plan(settings: TrainSettings) -> MemoryPlan:
    """What the settings alone say: the first rung."""
    return MemoryPlan(
        checkpointing="all" if settings.gradient_checkpointing else "none",
        base_weights=settings.base_weights,
        offload_share=settings.offload_share,
    )


def ladder(settings: TrainSettings, *, on_cpu: bool = False) -> tuple[MemoryPlan, ...]:
    """The plans to try one after the other, from what is asked for to what needs least; each keeps what the one before
    saves, so nothing that a person asked for is undone.

    In this order: the batch in halves, quarters ... single views; checkpointing of some blocks, then all; the base
    model in 8 bits; shares of it in main memory, which on a CPU is where it is anyway. Without *Fit to my GPU* the
    first alone. Text encoders whose captions are all encoded, and the VAE, are let go on every rung; text encoders
    whose captions are others in every epoch wait in main memory between epochs, from the second rung on.
    """
    plans = [asked_plan(settings)]
    if not settings.fit_to_gpu:
        return tuple(plans)

    def add(**changes: object) -> None:
        plans.append(msgspec.structs.replace(plans[-1], **changes))

    for views in _halves(settings.batch_size):
        add(views_at_once=views)
    if plans[-1].checkpointing == "none":
        add(checkpointing="some")
        add(checkpointing="all")
    if plans[-1].base_weights == "full":
        add(base_weights="int8")
    for share in () if on_cpu else OFFLOAD_SHARES:
        if share > plans[-1].offload_share:
            add(offload_share=share)
    return tuple(plans)


def backward_passes(settings: TrainSettings, plan: MemoryPlan) -> int:
    """How many backward passes an optimizer step has at most."""
    parts = math.ceil(settings.batch_size / (plan.views_at_once or settings.batch_size))
    return settings.gradient_accumulation_steps * parts


class Measure(NamedTuple):
    """One way in which a plan saves memory: fixed words, and a value behind them or none."""

    text: str
    value: str = ""


def measures(plan: MemoryPlan, *, beyond: MemoryPlan | None = None) -> list[Measure]:
    """How a plan saves memory; with `beyond` only what it does more than that one."""
    before = beyond or MemoryPlan()
    found: list[Measure] = []
    if plan.views_at_once != before.views_at_once:
        found.append(Measure("the batch in parts of", str(plan.views_at_once)))
    if plan.checkpointing != before.checkpointing:
        which = "some" if plan.checkpointing == "some" else "all"
        found.append(Measure(f"gradient checkpointing of {which} blocks"))
    if plan.base_weights != before.base_weights:
        found.append(Measure("the base model stored as", plan.base_weights))
    if plan.offload_share != before.offload_share:
        found.append(Measure("share of the base model in main memory:", f"{plan.offload_share:.0%}"))
    return found


def measures_text(plan: MemoryPlan, *, beyond: MemoryPlan | None = None) -> str:
    """`measures` on one line, in English; empty where there are none."""
    return ", ".join(" ".join(filter(None, measure)) for measure in measures(plan, beyond=beyond))


def _halves(batch_size: int) -> list[int]:
    """4, 2, 1 of 7: parts of at most so many views; a batch of one has none."""
    views: list[int] = []
    while batch_size > 1:
        batch_size = (batch_size + 1) // 2
        views.append(batch_size)
    return views


class MemoryNeed(msgspec.Struct, frozen=True, kw_only=True):
    """What a training takes on its device, in bytes, by what it is for."""

    weights_bytes: int = 0
    """Of the base model, as far as they stay there."""
    activations_bytes: int = 0
    """Kept from the forward pass for the backward pass, and what the largest layer takes besides."""
    network_bytes: int = 0
    """The LoRA, its gradients, the optimizer's state and the averages (EMA)."""
    caches_bytes: int = 0
    """Encoded pictures and captions."""
    workspace_bytes: int = 0
    """What the device's libraries take for themselves, and what allocation leaves unused."""

    @property
    def tensors_bytes(self) -> int:
        """Without the workspace: what `torch.cuda.max_memory_allocated` would tell."""
        return self.weights_bytes + self.activations_bytes + self.network_bytes + self.caches_bytes

    @property
    def total_bytes(self) -> int:
        return self.tensors_bytes + self.workspace_bytes


def budget_bytes(free_bytes: int, device_bytes: int) -> int:
    """What a training may take of so much free memory: a desktop's windows get a little of it, or the driver would
    move something of the training into main memory as soon as one is opened.
    """
    return max(0, free_bytes - max(int(_LEFT_SHARE * device_bytes), _LEFT_BYTES))


WhyNot = Literal["", "out_of_memory", "over_budget", "spilled"]
"""Why a rung was left: torch ran out of memory; its peak passed the budget; the driver moved a part of it into main
memory, where every step waits for it."""


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """A rung that was tried with real steps on the largest bucket; or, in the middle of a run, left."""

    plan: MemoryPlan
    peak_bytes: int = 0
    """0 where it was not measured."""
    s_per_step: float = 0.0
    """0 where no step came to its end."""
    why_not: WhyNot = ""
    """Empty: it fits."""
    step: int = 0
    """Of the run, where memory ran out in its middle; 0: before the start."""


class MemoryFacts(msgspec.Struct, frozen=True, kw_only=True):
    """`memory.json` in a training's folder: how it was fitted to its device."""

    plan: MemoryPlan
    """The one that trains; what a resume begins with, and a repetition, which has no trials of its own."""
    trials: tuple[Trial, ...] = ()
    """In the order in which they were made."""
    predicted: MemoryNeed | None = None
    """Of `plan`."""
    budget_bytes: int = 0
    """What the training may take: less than what was free. 0: not limited."""
    device_bytes: int = 0
    """All memory of the device; 0 where it can't be told."""

    @property
    def fitting(self) -> Trial | None:
        """The trial of the plan that trains; None where there was none."""
        found = (trial for trial in reversed(self.trials) if trial.plan == self.plan and not trial.why_not)
        return next(found, None)


_NONE = MemoryFacts(plan=MemoryPlan())


def read_memory(job_dir: Path) -> MemoryFacts | None:
    """None before the trial, and where an earlier release trained."""
    facts = read_json(job_dir / _FILE, MemoryFacts, _NONE)
    return None if facts is _NONE else facts


def write_memory(job_dir: Path, facts: MemoryFacts) -> None:
    """Atomically. Raises OSError where it can't be written."""
    write_json(job_dir / _FILE, facts)
