"""Our LoRA file, loaded by diffusers with peft, does what it does attached by us."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_train.engine.network_file import file_tensors, save_lora

peft = pytest.importorskip("peft", reason="peft is not installed", exc_type=ImportError)


@torch.no_grad()
def _outputs(unet: Any, text_encoder: Any) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    latents = torch.randn(2, 4, 8, 8, generator=generator, dtype=torch.float64)
    text = torch.randn(2, 77, 64, generator=generator, dtype=torch.float64)
    ids = torch.randint(0, 49000, (2, 77), generator=generator)
    noise = unet(latents, torch.tensor([3, 900]), text).sample
    return noise, text_encoder(ids).last_hidden_state


GROUPED = {"input": (3, 3.0), "middle": (5, 3.0), "output": (2, 3.0), "text_encoder": (1, 3.0)}
"""(rank, alpha) of block groups. The alphas are alike: where attention layers differ in alpha, diffusers asks peft for
layers by names that it doesn't have, which peft ignores with a warning.
"""


@pytest.mark.parametrize(
    ("convolutions", "groups"), [(False, {}), (True, {}), (True, GROUPED)], ids=["LoRA", "LoCon", "by block groups"]
)
def test_diffusers_and_peft_agree(
    load_small: Callable[[], Any],
    make_lora: Callable[..., Any],
    make_pipeline: Callable[..., Any],
    tmp_path: Path,
    convolutions: bool,
    groups: dict[str, tuple[int, float]],
) -> None:
    """Computed in float64, so that 1e-6 of what the LoRA changes is far above what rounding does."""
    model = load_small()
    model.unet.double()
    model.text_encoders[0].double()
    base = _outputs(model.unet, model.text_encoders[0])
    network = make_lora(model, convolutions=convolutions, groups=groups)
    save_lora(tmp_path / "lora.safetensors", file_tensors(network, torch.float32), {})
    network.attach()
    ours = _outputs(model.unet, model.text_encoders[0])
    network.detach()

    pipeline = make_pipeline(model)
    pipeline.load_lora_weights(str(tmp_path), weight_name="lora.safetensors")
    theirs = _outputs(pipeline.unet, pipeline.text_encoder)
    for own, other, without in zip(ours, theirs, base, strict=True):
        change = (own - without).abs().max()
        assert change > 0.01
        assert (own - other).abs().max() < 1e-6 * change
