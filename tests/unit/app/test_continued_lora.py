"""A LoRA that is taught more: what is told of it before a training begins."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from lora_train.app import planning
from lora_train.core.assets import DEMO_MODEL
from lora_train.core.config import TrainSettings
from lora_train.core.errors import ConfigError, WorkspaceError
from lora_train.core.families import CheckpointFacts
from lora_train.core.specs import TrainSpec

if TYPE_CHECKING:
    from tests.unit.app.conftest import Desk


def write_lora(path: Path, inputs: int = 768, part: str = "lora_down.weight", modules: int = 1) -> Path:
    """A LoRA of layers that read the text, whose width tells the family."""
    tensors = {}
    for number in range(modules):
        name = f"lora_unet_down_blocks_0_attentions_{number}_transformer_blocks_0_attn2_to_k"
        tensors[f"{name}.{part}"] = np.ones((2, inputs), dtype=np.float16)
        tensors[f"{name}.lora_up.weight"] = np.ones((320, 2), dtype=np.float16)
        tensors[f"{name}.alpha"] = np.array(1.0, dtype=np.float32)
    save_file(tensors, path)
    return path


def test_a_lora_to_continue_from(desk: Desk) -> None:
    desk.trained("4_cat/a.png")
    lora = write_lora(desk.root / "自作 LoRA.safetensors")
    desk.save(continue_from=str(lora))
    assert desk.app.training.forecast("cat", "v1").problems == []
    spec = desk.job(desk.app.training.begin("cat", "v1")).read_spec()
    assert isinstance(spec, TrainSpec)
    assert Path(spec.settings.continue_from).is_absolute()
    assert "continues 自作 LoRA" in desk.app.training.list("cat", "v1")[0].summary


def test_why_a_lora_can_not_be_continued(desk: Desk) -> None:
    """Each told in one sentence before anything is made, from the header alone."""
    desk.trained("4_cat/a.png")
    text = desk.root / "text.safetensors"
    text.write_bytes(b"I am a text, and long enough to be read as a header.")
    for path, says in (
        (desk.root / "gone.safetensors", "does not exist"),
        (text, "neither a safetensors file nor a checkpoint"),
        (DEMO_MODEL, "is not a LoRA"),
        (
            write_lora(desk.root / "xl.safetensors", 2048),
            "is a LoRA for SDXL, but the base model is of Stable Diffusion 1",
        ),
        (write_lora(desk.root / "loha.safetensors", part="hada_w1_a"), "hada_w1_a, which no plain LoRA has"),
        (write_lora(desk.root / "dora.safetensors", part="dora_scale"), "dora_scale, which no plain LoRA has"),
    ):
        desk.save(continue_from=str(path))
        (problem,) = desk.app.training.forecast("cat", "v1").problems
        assert says in problem
        with pytest.raises(ConfigError):
            desk.app.training.begin("cat", "v1")
    assert desk.app.training.list("cat", "v1") == []


def test_an_open_page_continues_from_no_path(desk: Desk) -> None:
    desk.trained("4_cat/a.png")
    desk.save(continue_from=str(write_lora(desk.root / "a.safetensors")))
    desk.host.is_local = False
    (problem,) = desk.app.training.forecast("cat", "v1").problems
    assert problem.startswith("Continue from LoRA: leave it empty")


def test_the_disk_is_measured_by_the_lora_itself(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """2 x its size for each of 100 saves, and 6 for each of three states, all of twice its size."""
    lora = write_lora(desk.root / "a.safetensors")
    size = lora.stat().st_size
    settings = TrainSettings(continue_from=str(lora), epochs=99, save_every_epochs=1, rank=1024)
    needed = (100 + 18) * 2 * size + 200_000_000

    def usage(free: int) -> Any:
        return lambda path: shutil._ntuple_diskusage(0, 0, free)  # type: ignore[attr-defined]

    monkeypatch.setattr(shutil, "disk_usage", usage(needed))
    planning.check_disk(desk.root, settings, CheckpointFacts("sd1"))
    monkeypatch.setattr(shutil, "disk_usage", usage(needed - 1))
    with pytest.raises(WorkspaceError, match="MB free"):
        planning.check_disk(desk.root, settings, CheckpointFacts("sd1"))
