"""What is foretold of memory, against what was counted and published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from lora_train.core.config import TrainSettings
from lora_train.core.memory import MemoryNeed, MemoryPlan, budget_bytes, ladder
from lora_train.core.memory_need import Workload, predicted_need
from lora_train.core.numbers import gigabytes_text

GB = 1e9
SD1 = Workload(family="sd1", area_px=512 * 512, bytes_per_number=2)
SDXL = Workload(family="sdxl", area_px=1024 * 1024, bytes_per_number=2)


def need(work: Workload, plan: MemoryPlan | None = None, **settings: Any) -> MemoryNeed:
    plain = {"max_tokens": 75, "train_text_encoder": False, **settings}
    return predicted_need(msgspec.convert(plain, TrainSettings), work, plan or MemoryPlan())


def changed(work: Workload, **changes: Any) -> Workload:
    return msgspec.structs.replace(work, **changes)


# Counted by a FakeTensor trace that is not this project's own: weights in bf16 and 8 bits, and activations without and
# with checkpointing, of a UNet with a fused LoRA of rank 16 at batch 1.
@pytest.mark.parametrize(
    ("work", "bf16", "fp8", "activations", "checkpointed"),
    [(SD1, 1.72, 0.86, 0.97, 0.21), (SDXL, 5.14, 2.57, 6.9, 0.88)],
)
def test_weights_are_as_counted_elsewhere_and_activations_less(
    work: Workload, bf16: float, fp8: float, activations: float, checkpointed: float
) -> None:
    assert need(work).weights_bytes / GB == pytest.approx(bf16, abs=0.006)
    assert need(work, MemoryPlan(base_weights="fp8")).weights_bytes / GB == pytest.approx(fp8, abs=0.006)
    assert 0.75 < need(work).activations_bytes / GB / activations < 0.9
    assert 0.5 < need(work, MemoryPlan(checkpointing="all")).activations_bytes / GB / checkpointed < 0.9


@pytest.mark.parametrize(
    ("work", "plan", "peak"),
    [
        (SD1, MemoryPlan(), 2.60),
        (SD1, MemoryPlan(checkpointing="some"), 2.26),
        (SD1, MemoryPlan(checkpointing="all"), 2.01),
        (SD1, MemoryPlan(base_weights="int8"), 1.75),
        (SD1, MemoryPlan(base_weights="int8", checkpointing="all"), 1.16),
        (SDXL, MemoryPlan(), 11.54),
        (SDXL, MemoryPlan(checkpointing="some"), 8.73),
        (SDXL, MemoryPlan(checkpointing="all"), 6.35),
        (SDXL, MemoryPlan(base_weights="int8"), 8.99),
        (SDXL, MemoryPlan(base_weights="int8", checkpointing="all"), 3.80),
    ],
)
def test_a_whole_step_is_as_large_as_the_bench_counts_it(work: Workload, plan: MemoryPlan, peak: float) -> None:
    """`lora-train bench --count`: peak of all tensors of a step, weights and optimizer included, in GB."""
    assert need(work, plan).tensors_bytes / GB == pytest.approx(peak, rel=0.01)


# Counted as the tables were, at other sizes than theirs.
@pytest.mark.parametrize(
    ("work", "plan", "settings", "peak"),
    [
        (changed(SD1, area_px=768 * 768), MemoryPlan(), {}, 1_734_426_180),
        (SD1, MemoryPlan(), {"batch_size": 4}, 3_092_420_980),
        (SD1, MemoryPlan(checkpointing="some"), {"batch_size": 4}, 1_734_964_204),
        (SD1, MemoryPlan(checkpointing="all"), {"batch_size": 4}, 744_795_036),
        (changed(SD1, bytes_per_number=4), MemoryPlan(), {}, 1_543_757_380),
        (changed(SD1, bytes_per_number=4), MemoryPlan(checkpointing="all"), {}, 366_842_872),
        (SD1, MemoryPlan(), {"rank": 128}, 834_104_516),
        (SD1, MemoryPlan(), {"max_tokens": 225}, 781_516_484),
        (SD1, MemoryPlan(), {"conv_rank": 16}, 858_425_092),
        (SD1, MemoryPlan(), {"conv_rank": 128, "rank": 128}, 937_027_140),
        (changed(SDXL, area_px=768 * 768), MemoryPlan(), {}, 3_230_782_460),
        (SDXL, MemoryPlan(), {"batch_size": 4}, 22_890_544_628),
        (SDXL, MemoryPlan(checkpointing="some"), {"batch_size": 4}, 11_636_696_372),
        (SDXL, MemoryPlan(checkpointing="all"), {"batch_size": 4}, 2_137_427_156),
        (SDXL, MemoryPlan(), {"rank": 128}, 5_920_724_092),
        (SDXL, MemoryPlan(), {"max_tokens": 225}, 5_776_083_708),
        (SDXL, MemoryPlan(), {"conv_rank": 16}, 6_099_916_828),
        (SDXL, MemoryPlan(checkpointing="all"), {"rank": 128}, 1_362_163_780),  # of the update, not of activations
    ],
)
def test_activations_grow_as_counted(work: Workload, plan: MemoryPlan, settings: dict[str, Any], peak: int) -> None:
    assert need(work, plan, **settings).activations_bytes == pytest.approx(peak, rel=0.01)


def test_gradients_of_several_passes_are_kept_as_sums() -> None:
    once, twice = need(SDXL), need(SDXL, gradient_accumulation_steps=2)
    assert twice.network_bytes - once.network_bytes == 4 * 42_557_440
    assert need(SDXL, MemoryPlan(views_at_once=1), batch_size=2).network_bytes == twice.network_bytes
    exact = changed(SDXL, bytes_per_number=4)
    assert need(exact).network_bytes == need(exact, gradient_accumulation_steps=2).network_bytes == once.network_bytes


def test_a_trained_text_encoder_takes_its_weights_and_activations() -> None:
    """CLIP-L traced alone: 123.1 M weights, 29.9 MB for the 77 tokens of a view."""
    without, trained = need(SD1), need(SD1, train_text_encoder=True)
    assert trained.weights_bytes - without.weights_bytes == 2 * 123_060_480
    assert (trained.activations_bytes - without.activations_bytes) / 1e6 == pytest.approx(30.0, abs=0.2)


@pytest.mark.parametrize("settings", [{"shuffle_captions": True}, {"caption_dropout": 0.1}])
def test_captions_that_change_keep_the_text_encoder(settings: dict[str, Any]) -> None:
    """Plans that save memory let it wait in main memory between epochs, which a CPU can't."""
    assert need(SDXL, **settings).weights_bytes - need(SDXL).weights_bytes == 2 * 817_720_320
    saving = MemoryPlan(checkpointing="some")
    assert need(SDXL, saving, **settings).weights_bytes == need(SDXL, saving).weights_bytes
    on_cpu = changed(SDXL, on_cpu=True)
    assert need(on_cpu, saving, **settings).weights_bytes > need(on_cpu, saving).weights_bytes


def test_the_network_counts_with_gradients_optimizer_and_averages() -> None:
    """SDXL's attention blocks: 42,557,440 numbers at rank 16 (a fp16 file of 85 MB)."""
    numbers = 42_557_440
    assert need(SDXL).network_bytes == 16 * numbers
    assert need(SDXL, ema_decay=0.999).network_bytes == 20 * numbers
    assert need(SDXL, optimizer="Lion").network_bytes == 12 * numbers
    assert need(SDXL, rank=32).network_bytes == 32 * numbers
    assert need(SDXL, rank=8, middle_rank=16).network_bytes == 16 * numbers


def test_a_lora_that_is_continued_is_as_large_as_its_file(tmp_path: Path) -> None:
    (tmp_path / "old.safetensors").write_bytes(bytes(2_000))
    assert need(SD1, continue_from=str(tmp_path / "old.safetensors")).network_bytes == 16 * 1_000


def test_caches_grow_with_pictures_and_captions() -> None:
    """SDXL at 225 tokens: 0.9 MB for each caption in bf16; mean and deviation of 4 x 128 x 128 latents in float32."""
    many = changed(SDXL, pictures=10, captions=10)
    latents = 10 * 2 * 4 * 128 * 128 * 4
    caches = need(many, max_tokens=225).caches_bytes
    assert (caches - latents) / 10 / 1e6 == pytest.approx(0.95, abs=0.01)
    assert need(many, max_tokens=225, flip=True).caches_bytes - caches == latents
    assert need(many, train_sdxl_text_encoders=True).caches_bytes == latents
    assert need(changed(SDXL, captions=1_000), max_tokens=225).caches_bytes == 0  # in main memory


def test_views_at_once_are_never_more_than_the_batch() -> None:
    whole = need(SD1, batch_size=2).activations_bytes
    assert need(SD1, MemoryPlan(views_at_once=8), batch_size=2).activations_bytes == whole
    assert need(SD1, MemoryPlan(views_at_once=1), batch_size=2).activations_bytes == pytest.approx(whole / 2, rel=1e-6)


@pytest.mark.parametrize("work", [SD1, SDXL])
def test_every_rung_needs_less_than_the_one_before(work: Workload) -> None:
    settings = TrainSettings(batch_size=4)
    totals = [predicted_need(settings, work, plan).total_bytes for plan in ladder(settings)]
    assert totals == sorted(totals, reverse=True)
    assert len(set(totals)) == len(totals)


def test_sd15_on_a_cpu_takes_what_was_measured() -> None:
    """Peak RSS of `lora-train bench`, fp32, rank 16, on Linux, at 256 and 512 px (docs/benchmarks.md)."""
    measured = ((256, False, 4.67), (512, False, 6.04), (256, True, 3.83), (512, True, 5.22))
    for side_px, stays_half, gigabytes in measured:
        work = Workload(family="sd1", area_px=side_px**2, bytes_per_number=4, on_cpu=True, stays_half=stays_half)
        assert need(work).total_bytes / GB == pytest.approx(gigabytes, rel=0.02)


def test_nothing_waits_elsewhere_on_a_cpu() -> None:
    work = Workload(family="sd1", area_px=512**2, bytes_per_number=4, on_cpu=True, stays_half=True)
    assert need(work, MemoryPlan(offload_share=0.9)) == need(work)


def test_a_small_model_needs_little() -> None:
    """`lora-train bench --base-model demo --batch-size 4` peaked at 0.52 GB (docs/benchmarks.md)."""
    work = Workload(family="sd1", model_channels=32, area_px=64 * 64, bytes_per_number=4, on_cpu=True)
    assert need(work, batch_size=4).total_bytes / GB == pytest.approx(0.52, abs=0.07)


def test_a_little_is_left_to_others() -> None:
    assert budget_bytes(8_000_000_000, 8_000_000_000) == 7_760_000_000
    assert budget_bytes(1_000_000_000, 2_000_000_000) == 800_000_000
    assert budget_bytes(100_000_000, 2_000_000_000) == 0


def test_the_table_of_the_documentation_is_what_is_foretold() -> None:
    """A batch of 4, a rung a row: the need with SD 1.5 at 512 px, and with SDXL at 1024 px."""
    page = (Path(__file__).parents[3] / "docs" / "memory.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| ") and " GB |" in line]
    shown = [tuple(cell.strip() for cell in row[2:4]) for row in rows]
    settings = TrainSettings(batch_size=4, train_text_encoder=False, max_tokens=75)
    assert shown == [
        tuple(gigabytes_text(predicted_need(settings, work, plan).total_bytes) for work in (SD1, SDXL))
        for plan in ladder(settings)
    ]
