"""Files that can't be trained on, and what is said of each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lora_train.core.errors import ModelError
from tests.unit.engine.test_loading import TEXT, VAE, Tensors, load, save, tensors_of_small

pytestmark = [pytest.mark.compat, pytest.mark.usefixtures("no_network")]


def _without(*beginnings: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: own for name, own in tensors.items() if not name.startswith(beginnings)}


UNET = "model.diffusion_model."


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            _without(UNET + "middle_block.0.in_layers.2"),
            "lacks 2 tensors, the first is model.diffusion_model.middle_block.0.in_layers.2.weight",
        ),
        (_without(UNET + "input_blocks.0.0"), "unknown number of input channels"),
        (_without(UNET + "out.2"), "out.2.weight"),
        (_without(UNET + "input_blocks.4"), "not built like Stable Diffusion's"),
        (_without(TEXT), "no text encoder"),
        (_without(TEXT + "text_model.final_layer_norm"), "lacks 2 tensors"),
        (_without(TEXT + "text_model.embeddings.position_embedding"), "position_embedding"),
        (_without(VAE), "no VAE"),
        (_without(VAE + "quant_conv"), "lacks 2 tensors"),
        (lambda own: {**own, UNET + "out.2.weight": torch.zeros(4, 31, 3, 3)}, "(4, 31, 3, 3)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_incomplete_checkpoints_are_named(change: Callable[[Tensors], Tensors], says: str, tmp_path: Path) -> None:
    path = save(tmp_path, change(tensors_of_small()), "名前.safetensors")
    with pytest.raises(ModelError) as error:
        load(path)
    assert str(path) in error.value.message
    assert says in error.value.message


def test_file_cut_short(small_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "half.safetensors"
    content = small_checkpoint.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError) as error:
        load(path)
    assert str(path) in error.value.message
    assert "cut short" in error.value.message


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"conditioner.embedders.0.model.ln_final.weight": (1280,)}, "is an SDXL refiner"),
        ({UNET + "x_embedder.proj.weight": (1536, 16, 2, 2)}, "is a Stable Diffusion 3 checkpoint"),
        ({"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": (4, 320)}, "this is a LoRA"),
    ],
    ids=["refiner", "SD3", "LoRA"],
)
def test_other_families_are_recognised(tensors: dict[str, tuple[int, ...]], says: str, tmp_path: Path) -> None:
    stored = {name: torch.zeros(shape) for name, shape in tensors.items()}
    if "LoRA" not in says:
        stored[UNET + "input_blocks.0.0.weight"] = torch.zeros(32, 4, 3, 3)
    path = save(tmp_path, stored)
    with pytest.raises(ModelError) as error:
        load(path)
    assert str(path) in error.value.message
    assert says in error.value.message
    assert error.value.hint
