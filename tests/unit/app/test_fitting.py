"""Whether trainings fit into cards of different sizes, told before they begin."""

from __future__ import annotations

import threading
from importlib.metadata import PackageNotFoundError
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from lora_train.app import fitting
from lora_train.app.fit_snapshot import Fit
from lora_train.app.fitting import Fitting, fit_into
from lora_train.core.config import TrainSettings
from lora_train.core.families import CheckpointFacts
from lora_train.core.host import DeviceMemory, NoHost
from lora_train.core.memory import MemoryPlan, budget_bytes
from lora_train.core.memory_need import Workload
from lora_train.data.epochs import EpochPlanner, Source
from lora_train.launch.queue import JobQueue

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.app.conftest import Desk

GIB = 2**30
PLANS = {
    "as asked": MemoryPlan(),
    "batch of 2": MemoryPlan(views_at_once=2),
    "single": MemoryPlan(views_at_once=1),
    "some": MemoryPlan(checkpointing="some"),
    "all": MemoryPlan(checkpointing="all"),
    "int8": MemoryPlan(checkpointing="all", base_weights="int8"),
    "single, all": MemoryPlan(views_at_once=1, checkpointing="all"),
}


def card(gigabytes: float, free: float = 1.0) -> DeviceMemory:
    total = int(gigabytes * GIB)
    return DeviceMemory(name="a card", total_bytes=total, free_bytes=int(total * free))


def fit(family: str, side_px: int, device: DeviceMemory, **settings: Any) -> Fit:
    work = Workload(family=family, area_px=side_px**2, pictures=20, captions=20, bytes_per_number=2)
    budget = budget_bytes(device.free_bytes, device.total_bytes)
    return fit_into(msgspec.convert(settings, TrainSettings), work, device, budget)


# By the targets of a project of speed figures: SDXL at 1024 px with checkpointing in 6.4 GB of tensors, with an 8-bit
# base in 3.8 GB; SD 1.5 at 512 px in 2.1 GB with checkpointing. So SD 1.5 fits every card of these as it is.
@pytest.mark.parametrize(
    ("family", "side_px", "batch_size", "gigabytes", "plan"),
    [
        ("sd1", 512, 1, 8, "as asked"),
        ("sd1", 512, 4, 8, "as asked"),
        ("sd1", 512, 4, 6, "batch of 2"),
        ("sd1", 512, 4, 4, "single"),
        ("sd1", 512, 4, 12, "as asked"),
        ("sdxl", 1024, 1, 6, "int8"),
        ("sdxl", 1024, 1, 8, "all"),
        ("sdxl", 1024, 4, 8, "single, all"),
        ("sdxl", 1024, 1, 12, "some"),
        ("sdxl", 1024, 1, 24, "as asked"),
        ("sdxl", 1024, 4, 24, "batch of 2"),
    ],
)
def test_the_first_plan_that_fits_a_card(
    family: str, side_px: int, batch_size: int, gigabytes: float, plan: str
) -> None:
    found = fit(family, side_px, card(gigabytes), batch_size=batch_size)
    assert (found.plan, found.fits) == (PLANS[plan], True)
    assert found.needed_bytes <= found.budget_bytes < found.device_bytes
    assert (found.asked_bytes == found.needed_bytes) == (plan == "as asked")


def test_a_card_that_is_too_small_gets_the_last_plan() -> None:
    found = fit("sdxl", 1024, card(2))
    assert not found.fits
    assert found.plan.offload_share == 0.9
    assert found.needed_bytes > 2 * GIB * 0.9


def test_without_fit_to_my_gpu_nothing_is_saved() -> None:
    found = fit("sdxl", 1024, card(8), fit_to_gpu=False)
    assert (found.plan, found.fits, found.is_tried) == (MemoryPlan(), False, False)


def test_what_others_hold_is_told_where_it_is_much() -> None:
    """SDXL with all blocks checkpointed fits into 8 GB; where a game holds a third of them it needs 8-bit weights."""
    found = fit("sdxl", 1024, card(8, free=0.65))
    assert found.plan == PLANS["int8"]
    assert found.others_bytes == pytest.approx(0.35 * 8 * GIB, rel=0.01)
    assert fit("sdxl", 1024, card(8, free=0.95)).others_bytes == 0


# --- which device it is ---


class CardHost(NoHost):
    def __init__(self, card: DeviceMemory | None) -> None:
        self.card = card

    def card_memory(self) -> DeviceMemory | None:
        return self.card


PLANNER = EpochPlanner([Source(bucket=(512, 768), repeats=2, caption="a cat")] * 3, batch_size=1, seed=0)
SD1 = CheckpointFacts("sd1")


def told(
    root: Path,
    *,
    host: DeviceMemory | None = None,
    cards: list[DeviceMemory] | None = None,
    build: str = "",
    facts: CheckpointFacts = SD1,
    monkeypatch: pytest.MonkeyPatch,
    **settings: Any,
) -> Fit | None:
    monkeypatch.setattr(fitting, "_torch_build", lambda: build)
    monkeypatch.setattr(fitting.sys, "platform", "linux")
    fits = Fitting(CardHost(host), JobQueue(root), lambda: cards or [])
    fits.wait()
    return fits.fit(msgspec.convert(settings, TrainSettings), facts, PLANNER)


def test_the_host_knows_its_card_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = told(tmp_path, host=card(8), cards=[card(24)], monkeypatch=monkeypatch)
    assert found is not None
    assert (found.device_bytes, found.on_cpu) == (8 * GIB, False)


def test_else_the_driver_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = told(tmp_path, cards=[card(24), card(8)], monkeypatch=monkeypatch, device="cuda")
    assert found is not None
    assert found.device_bytes == 24 * GIB


@pytest.mark.parametrize("settings", [{}, {"device": "cpu"}])
def test_without_a_card_main_memory_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str]
) -> None:
    found = told(tmp_path, monkeypatch=monkeypatch, **settings)
    assert found is not None
    assert found.on_cpu
    # fp32 weights and a network of rank 16 with the text encoder's
    assert found.needed.weights_bytes == 4 * (859_520_964 + 123_060_480)


def test_a_file_in_16_bits_takes_less_of_main_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its largest convolutions stay as they are; whatever is computed in 16 bits is so anyway."""
    half = CheckpointFacts("sd1", unet_dtype="F16")
    full, lean = (told(tmp_path, facts=facts, monkeypatch=monkeypatch) for facts in (SD1, half))
    assert full is not None
    assert lean is not None
    saved = 2 * 464_486_400 - 4 * 2560 * 1280 * 9  # less room for the widest of them in float32
    assert full.needed.weights_bytes - lean.needed.weights_bytes == saved
    for precision in ("bf16", "fp32"):
        on_card = told(tmp_path, facts=half, host=card(8), monkeypatch=monkeypatch, precision=precision)
        of_full = told(tmp_path, host=card(8), monkeypatch=monkeypatch, precision=precision)
        assert on_card is not None
        assert on_card == of_full


def test_on_a_cpu_nothing_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system gives what there is, and may take it back: the plan is what was asked for, whether it fits or not."""
    small = DeviceMemory(name="CPU", total_bytes=4 * GIB, free_bytes=3 * GIB, on_cpu=True)
    monkeypatch.setattr(fitting, "main_memory", lambda: small)
    found = told(tmp_path, monkeypatch=monkeypatch, batch_size=4)
    assert found is not None
    assert (found.fits, found.is_tried, found.plan) == (False, False, MemoryPlan())


def test_a_card_that_this_torch_can_not_use_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = told(tmp_path, cards=[card(24)], build="cpu", monkeypatch=monkeypatch)
    assert found is not None
    assert found.on_cpu


@pytest.mark.parametrize(
    ("version", "platform", "build"),
    [
        ("2.1.2+cu121", "win32", "cu121"),
        ("2.9.0+cpu", "linux", "cpu"),
        ("2.9.0+rocm6.4", "linux", "rocm6.4"),
        ("2.9.0", "linux", ""),
        ("2.9.0", "win32", "cpu"),
        (None, "win32", ""),
    ],
)
def test_for_what_this_torch_was_built(
    monkeypatch: pytest.MonkeyPatch, version: str | None, platform: str, build: str
) -> None:
    def told(_: str) -> str:
        if version is None:
            raise PackageNotFoundError
        return version

    monkeypatch.setattr(fitting, "version", told)
    monkeypatch.setattr(fitting.sys, "platform", platform)
    assert fitting._torch_build() == build


@pytest.mark.parametrize(
    "settings", [{"device": "cuda"}, {"device": "mps"}, {"device": "xpu"}, {"build": "rocm6.2"}, {"build": "xpu"}]
)
def test_nothing_is_told_of_a_device_that_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    assert told(tmp_path, monkeypatch=monkeypatch, **settings) is None


def test_nothing_is_told_of_an_unknown_base_model(tmp_path: Path) -> None:
    fits = Fitting(CardHost(card(8)), JobQueue(tmp_path))
    assert fits.fit(TrainSettings(), None, PLANNER) is None


def test_nobody_waits_for_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page is drawn without the answer first, and with it when it has come."""
    monkeypatch.setattr(fitting, "_torch_build", lambda: "")
    may_answer = threading.Event()

    def slow() -> list[DeviceMemory]:
        assert may_answer.wait(20)
        return [card(8)]

    fits = Fitting(NoHost(), JobQueue(tmp_path), slow)
    assert fits.fit(TrainSettings(), SD1, PLANNER) is None
    may_answer.set()
    fits.wait()
    found = fits.fit(TrainSettings(), SD1, PLANNER)
    assert found is not None
    assert found.device_bytes == 8 * GIB


def test_what_a_training_of_ours_holds_will_be_free(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one begins when it has ended."""
    monkeypatch.setattr(desk.host, "card_memory", lambda: card(8, free=0.1), raising=False)
    desk.trained("4_cat/a.png")
    assert desk.app.settings.save("cat", "v1", train={"base_model": "demo"}) == []
    before = desk.app.training.forecast("cat", "v1").fit
    assert before is not None
    assert before.budget_bytes < GIB
    monkeypatch.setattr(JobQueue, "running", lambda _: "a job")
    beside = desk.app.training.forecast("cat", "v1").fit
    assert beside is not None
    assert beside.budget_bytes == budget_bytes(8 * GIB, 8 * GIB)


def test_a_sum_that_can_not_begin_tells_no_memory(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk.host, "card_memory", lambda: card(8), raising=False)
    desk.trained("4_cat/a.png")
    desk.version()
    forecast = desk.app.training.forecast("cat", "v1")  # no base model is chosen
    assert forecast.problems
    assert forecast.fit is None
