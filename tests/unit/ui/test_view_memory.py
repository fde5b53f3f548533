"""The lines that tell how a training fits into memory."""

from __future__ import annotations

import re
from html import unescape

import msgspec
import pytest

from lora_train.app.fit_snapshot import Fit
from lora_train.app.fitting import fit_into
from lora_train.app.snapshot import Forecast, Selection, Snapshot, TrainSnapshot
from lora_train.core.config import TrainSettings
from lora_train.core.host import DeviceMemory
from lora_train.core.jobs import JobStatus
from lora_train.core.memory import MemoryFacts, MemoryPlan, Trial, budget_bytes
from lora_train.core.memory_need import Workload
from lora_train.ui import view

GIB = 2**30


def text_of(html: str) -> list[str]:
    """Each line as a person reads it."""
    lines = re.sub(r"</(p|tr|summary|dl|div)>", "\n", html)
    plain = unescape(re.sub(r"<[^>]*>", "", lines.replace("</td>", " ").replace("<dd>", " ")))
    return [" ".join(line.split()) for line in plain.splitlines() if line.strip()]


def fit(family: str, side_px: int, gigabytes: int, **settings: object) -> Fit:
    total = gigabytes * GIB
    device = DeviceMemory(name=f"Card of {gigabytes}", total_bytes=total, free_bytes=int(0.95 * total))
    work = Workload(family=family, area_px=side_px**2, pictures=20, captions=20, bytes_per_number=2)
    budget = budget_bytes(device.free_bytes, total)
    return fit_into(msgspec.convert(settings, TrainSettings), work, device, budget)


def lines(fit: Fit | None) -> list[str]:
    with_it, without = (view.sum_html(Forecast(pictures=1, total_steps=9, fit=one)) for one in (fit, None))
    return [line for line in text_of(with_it) if line not in text_of(without)]


@pytest.mark.parametrize("gigabytes", [8, 12, 24])
def test_sd15_fits_every_card_as_it_is_set(gigabytes: int) -> None:
    (line,) = lines(fit("sd1", 512, gigabytes))
    assert re.fullmatch(rf"Memory of the card: about 3\.\d GB of {gigabytes}\.0 GB \(Card of {gigabytes}\)", line)


@pytest.mark.parametrize(
    ("gigabytes", "how"),
    [
        (8, "gradient checkpointing of all blocks"),
        (12, "gradient checkpointing of some blocks"),
        (24, ""),
    ],
)
def test_sdxl_is_made_to_fit(gigabytes: int, how: str) -> None:
    line, *more = lines(fit("sdxl", 1024, gigabytes))
    needed = float(line.split()[5])
    assert needed < gigabytes
    expected = [f"As it is set, it would need about 11.9 GB. It is made to fit by: {how}"] if how else []
    assert more == expected


def test_all_that_saves_memory_is_listed_once() -> None:
    _, more = lines(fit("sdxl", 1024, 4, batch_size=4, gradient_checkpointing=True))
    assert more.endswith(
        "the batch in parts of 1 · the base model stored as int8 · share of the base model in main memory: 60%"
    )


def test_what_does_not_fit_is_no_refusal() -> None:
    _, warning = lines(fit("sdxl", 1024, 2))
    assert warning.startswith("Probably too much, even with all that saves memory. This is an estimate;")
    _, warning = lines(fit("sdxl", 1024, 8, fit_to_gpu=False))
    assert warning == "It may run out of memory: Fit to my GPU is off."


def test_nothing_is_said_of_unknown_memory() -> None:
    assert lines(None) == []


# --- what was tried ---

CHOSEN = MemoryPlan(checkpointing="some")


def progress(facts: MemoryFacts | None, status: JobStatus | None = None) -> list[str]:
    status = status or JobStatus(state="finished")
    train = TrainSnapshot(job="j", name="Cat", status=status, memory=facts)
    return text_of(view.progress_html(Snapshot(Selection("Cat", "v1"), shown=train), 0.9))


def test_what_was_tried_is_told_with_its_reasons() -> None:
    trials = (
        Trial(plan=MemoryPlan(), why_not="out_of_memory"),
        Trial(plan=CHOSEN, peak_bytes=6 * GIB, s_per_step=0.52),
    )
    told = progress(MemoryFacts(plan=CHOSEN, trials=trials, budget_bytes=7 * GIB))
    assert "Fit to my GPU: gradient checkpointing of some blocks · at most 6.0 GB of 7.0 GB" in told
    assert "as it is set out of memory" in told
    assert "gradient checkpointing of some blocks 6.0 GB 0.52 s/step fits" in told


def test_what_fits_at_once_is_told_in_a_line() -> None:
    trial = Trial(plan=MemoryPlan(), peak_bytes=3 * GIB, s_per_step=0.1)
    told = progress(MemoryFacts(plan=MemoryPlan(), trials=(trial,)))
    assert "Fit to my GPU: It fits as it is set. · at most 3.0 GB" in told
    assert "What was tried" not in told


def test_a_training_without_a_trial_tells_nothing() -> None:
    assert progress(None) == progress(MemoryFacts(plan=CHOSEN))


def test_a_running_training_tells_when_it_ends() -> None:
    """Told ten minutes before 12:00 UTC on the first of January 2026."""
    status = JobStatus(state="running", total_steps=9, eta_s=600.0, last_event_t=1_767_268_200.0)
    assert any("Ready at about 2026-01-01 12:00 UTC" in line for line in progress(None, status))
