"""How trainings fit into memory, foretold and tried."""

from __future__ import annotations

import msgspec

from lora_train.app.fit_snapshot import Fit
from lora_train.core.memory import MemoryFacts, MemoryNeed, MemoryPlan, Trial
from lora_train.ui import view
from ui_states.makers import make_forecast, make_snapshot, make_train

GIB = 2**30
LAST = MemoryPlan(views_at_once=1, checkpointing="all", base_weights="int8", offload_share=0.6)


def make_fit(**changes: object) -> Fit:
    fit = Fit(
        device="NVIDIA GeForce RTX 3070",
        on_cpu=False,
        device_bytes=8 * GIB,
        budget_bytes=7 * GIB,
        fits=True,
        asked=MemoryPlan(),
        plan=MemoryPlan(),
        asked_bytes=5 * GIB,
        needed=MemoryNeed(weights_bytes=5 * GIB),
        needed_bytes=5 * GIB,
    )
    return msgspec.structs.replace(fit, **changes)


def make_memory(**changes: object) -> MemoryFacts:
    some = MemoryPlan(checkpointing="some")
    trials = (
        Trial(plan=MemoryPlan(), why_not="out_of_memory"),
        Trial(plan=some, peak_bytes=8 * GIB, s_per_step=0.4, why_not="over_budget"),
        Trial(plan=MemoryPlan(checkpointing="all"), peak_bytes=8 * GIB, s_per_step=3.5, why_not="spilled"),
        Trial(plan=LAST, peak_bytes=6 * GIB, s_per_step=0.5),
    )
    return msgspec.structs.replace(MemoryFacts(plan=LAST, trials=trials, budget_bytes=7 * GIB), **changes)


def memory_states() -> dict[str, str]:
    fits = {
        "as it is": make_fit(),
        "on a CPU": make_fit(on_cpu=True, device="CPU"),
        "beside others": make_fit(others_bytes=3 * GIB),
        "made to fit": make_fit(asked_bytes=9 * GIB, plan=MemoryPlan(checkpointing="some")),
        "made to fit by all": make_fit(asked_bytes=9 * GIB, plan=LAST),
        "too large": make_fit(fits=False, plan=LAST, needed_bytes=9 * GIB),
        "too large for a CPU": make_fit(fits=False, is_tried=False, on_cpu=True, device="CPU", needed_bytes=9 * GIB),
        "too large and off": make_fit(fits=False, is_tried=False, needed_bytes=9 * GIB),
    }
    as_it_is = MemoryFacts(plan=MemoryPlan(), trials=(Trial(plan=MemoryPlan(), peak_bytes=5 * GIB, s_per_step=0.3),))
    left = Trial(plan=MemoryPlan(checkpointing="all"), why_not="out_of_memory", step=421)
    facts = {
        "as it is": as_it_is,
        "fitted": make_memory(),
        "left at a step": make_memory(trials=(left, Trial(plan=LAST, peak_bytes=6 * GIB, s_per_step=0.5))),
        "no trial": make_memory(trials=()),
    }
    trains = {name: msgspec.structs.replace(make_train("running", 0), memory=memory) for name, memory in facts.items()}
    return {
        **{f"memory {name}": view.sum_html(make_forecast(fit=fit)) for name, fit in fits.items()},
        **{f"progress, memory {name}": view.progress_html(make_snapshot(train), 0.9) for name, train in trains.items()},
    }
