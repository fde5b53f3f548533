"""Our LoRA file, loaded by diffusers with peft, does what it does attached by us."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_train.engine.loading import load_base_model
from lora_train.engine.network_file import checked, named_parts, save_lora

peft = pytest.importorskip("peft", reason="peft is not installed", exc_type=ImportError)


@torch.no_grad()
def _outputs(unet: Any, *text_encoders: Any) -> list[torch.Tensor]:
    """What a model's UNet and text encoders make of fixed random inputs, in float64."""
    generator = torch.Generator().manual_seed(4)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    latents = draw(2, unet.config.in_channels, 8, 8)
    text = draw(2, 77, unet.config.cross_attention_dim)
    sizes = {"time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2, dtype=torch.float64)}
    if len(text_encoders) == 2:
        sizes["text_embeds"] = draw(2, text_encoders[1].config.projection_dim)
    ids = torch.randint(0, 49000, (2, 77), generator=generator)
    outputs = [unet(latents, torch.tensor([3, 900]), text, added_cond_kwargs=sizes).sample]
    for text_encoder in text_encoders:
        encoded = text_encoder(ids)
        outputs.append(encoded.last_hidden_state)
        if "text_embeds" in encoded:
            outputs.append(encoded.text_embeds)
    return outputs


GROUPED = {"input": (3, 3.0), "middle": (5, 3.0), "output": (2, 3.0), "text_encoder": (1, 3.0)}
"""(rank, alpha) of block groups. The alphas are alike: where attention layers differ in alpha, diffusers asks peft for
layers by names that it doesn't have, which peft ignores with a warning.
"""


@pytest.mark.parametrize(
    ("family", "convolutions", "groups"),
    [
        *[("sd1", False, {}), ("sd1", True, {}), ("sd1", True, GROUPED), ("sd2", True, {}), ("sdxl", True, GROUPED)],
        *[("sd2-inpaint", False, {}), ("sdxl-inpaint", False, {})],
    ],
)
def test_diffusers_and_peft_agree(
    checkpoint_of: Callable[[str], Path],
    make_lora: Callable[..., Any],
    make_pipeline: Callable[..., Any],
    tmp_path: Path,
    family: str,
    convolutions: bool,
    groups: dict[str, tuple[int, float]],
) -> None:
    """Computed in float64, so that 1e-6 of what the LoRA changes is far above what rounding does.

    Merged into the weights it does the same.
    """
    model = load_base_model(checkpoint_of(family), vae_path=None, device=torch.device("cpu"), dtype=torch.float32)
    for part in (model.unet, *model.text_encoders):
        part.double()
    base = _outputs(model.unet, *model.text_encoders)
    network = make_lora(model, convolutions=convolutions, groups=groups).double()
    save_lora(tmp_path / "lora.safetensors", checked(named_parts(network), torch.float32), {})
    network.attach()
    ours = _outputs(model.unet, *model.text_encoders)
    network.detach()

    weights = {target.layer: target.layer.weight.detach().clone() for target in network.targets}
    with torch.no_grad():
        for target, lora in network.pairs():
            target.layer.weight += lora.delta_weight()
    merged = _outputs(model.unet, *model.text_encoders)
    with torch.no_grad():
        for layer, weight in weights.items():
            layer.weight.copy_(weight)

    pipeline = make_pipeline(model)
    pipeline.load_lora_weights(str(tmp_path), weight_name="lora.safetensors")
    second = [pipeline.text_encoder_2] if len(model.text_encoders) == 2 else []
    theirs = _outputs(pipeline.unet, pipeline.text_encoder, *second)
    assert len(ours) == (4 if family.startswith("sdxl") else 2)
    for own, other, fused, without in zip(ours, theirs, merged, base, strict=True):
        change = (own - without).abs().max()
        assert change > 0.01
        assert (own - other).abs().max() < 1e-6 * change
        assert (own - fused).abs().max() < 1e-6 * change
