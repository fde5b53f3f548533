"""What is refused before a merge is begun, all at once and with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from lora_train.core.errors import ConfigError, ModelError
from lora_train.core.specs import MergeSpec

if TYPE_CHECKING:
    from tests.unit.app.conftest import Desk


def write(path: Path, inputs: int) -> Path:
    name = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {
        f"{name}.lora_down.weight": np.ones((2, inputs), dtype=np.float16),
        f"{name}.lora_up.weight": np.ones((8, 2), dtype=np.float16),
    }
    save_file(tensors, path)
    return path


def test_the_job_says_what_was_asked_for(desk: Desk) -> None:
    first, second = write(desk.root / "a.safetensors", 768), write(desk.root / "b.safetensors", 768)
    out = desk.root / "out.safetensors"
    spec = desk.app.plan_merge(loras=[first, second], weights=(), out=out, keep=0.9).read_spec()
    assert spec == MergeSpec(loras=(str(first), str(second)), weights=(1.0, 1.0), out=str(out), keep=0.9)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"weights": (1.0,)}, "weights: 1 were given for 2 LoRAs"),
        ({"weights": (1.0, 0.0)}, "other than 0"),
        ({"weights": (1.0, float("nan"))}, "other than 0"),
        ({"rank": -1}, "rank: -1 is not from 1 to 1024"),
        ({"rank": 1025}, "rank: 1025"),
        ({"keep": 1.0}, "keep: 1 is not over 0 and below 1"),
        ({"keep": -0.1}, "keep"),
        ({"out": "out.ckpt"}, "does not end with .safetensors"),
        ({"out": "a.safetensors"}, "exists already"),
        ({"out": "no folder/out.safetensors"}, "is not a folder"),
        ({"loras": ("a.safetensors", "gone.safetensors")}, "gone.safetensors does not exist"),
        ({"loras": ("a.safetensors",)}, "give one of them"),
    ],
)
def test_what_is_wrong(desk: Desk, changed: dict[str, Any], says: str) -> None:
    for name in ("a", "b"):
        write(desk.root / f"{name}.safetensors", 768)
    asked: dict[str, Any] = {
        "loras": ("a.safetensors", "b.safetensors"),
        "weights": (),
        "out": "out.safetensors",
        **changed,
    }
    asked["loras"] = [desk.root / name for name in asked["loras"]]
    asked["out"] = desk.root / asked["out"]
    with pytest.raises(ConfigError) as error:
        desk.app.plan_merge(**asked)
    (problem,) = error.value.problems
    assert says in problem


def test_families_are_not_mixed(desk: Desk) -> None:
    loras = [write(desk.root / "sd.safetensors", 768), write(desk.root / "xl.safetensors", 2048)]
    with pytest.raises(
        ModelError, match=r"sd.safetensors is a LoRA for Stable Diffusion 1.x, .*xl.safetensors for SDXL"
    ):
        desk.app.plan_merge(loras=loras, weights=(), out=desk.root / "out.safetensors")
