"""Full-size models on the meta device: every name and shape of the original layout, without memory."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import pytest
import torch

from lora_train.engine import ldm_names
from lora_train.engine.frozen import block_layers
from lora_train.engine.lowered import may_stay_half
from lora_train.engine.network import text_encoder_targets, unet_targets
from lora_train.engine.random_model import SD1, SD2, SDXL, Sizes, checkpoint_shapes, with_in_channels
from lora_train.engine.topology import Hints, text_config, unet_config, vae_config, without_last_layer

Shapes = dict[str, tuple[int, ...]]


def digest(shapes: Shapes) -> str:
    """SHA-256 over sorted lines of a name and its shape, such as `a.weight [320, 4, 3, 3]`."""
    lines = sorted(f"{name} {list(shape)}" for name, shape in shapes.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


# Of sd-mecha's lists of the public files' keys and shapes (its sdxl-sgm.yaml and sd1-ldm.yaml at b8d4d88), made there
# from the original repositories' own model classes; of these lists without EMA weights and noise schedules, which
# carry no model.
SDXL_DIGEST = (2515, "3417e4dabcea9327d05c3c560dcc9c94b4ce22e074aee74af19b311d2f607a16")
SD1_DIGEST = (1131, "6526f487a98afe4c81660ebe6391558c4e38c52cbf4236b255cecbf877bd88f4")


@pytest.mark.parametrize(("sizes", "expected"), [(SD1, SD1_DIGEST), (SDXL, SDXL_DIGEST)], ids=["sd1", "sdxl"])
def test_names_and_shapes_of_the_public_checkpoints(sizes: Sizes, expected: tuple[int, str]) -> None:
    shapes = checkpoint_shapes(sizes)
    assert (len(shapes), digest(shapes)) == expected


def build(shapes: Shapes, family: str) -> tuple[Any, Any, list[Any]]:
    """UNet, VAE and text encoders on the meta device, as they are loaded from a file with these shapes."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    def clip(name: str) -> str:
        return next(p + name for p in ldm_names.CLIP_PREFIXES if p + "final_layer_norm.weight" in shapes)

    def open_clip(prefix: str) -> dict[str, Any]:
        def place(name: str) -> str:
            return prefix + ldm_names.open_clip_place(name).name

        return text_config(shapes, place, Hints(), is_open_clip=True)

    with torch.device("meta"):
        unet = UNet2DConditionModel(**unet_config(shapes, Hints(), family))
        vae = AutoencoderKL(**vae_config(shapes, ldm_names.VAE_PREFIX, 0.18215))
        texts: list[Any] = []
        if family != "sd2":
            texts.append(CLIPTextModel(CLIPTextConfig(**text_config(shapes, clip, Hints(), is_open_clip=False))))
        if family == "sd2":
            config = without_last_layer(open_clip(ldm_names.SD2_TEXT_PREFIXES[0]))
            texts.append(CLIPTextModel(CLIPTextConfig(**config)))
        if family == "sdxl":
            config = open_clip(ldm_names.SDXL_TEXT_PREFIXES[0])
            texts.append(CLIPTextModelWithProjection(CLIPTextConfig(**config)))
    return unet, vae, texts


def count(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# Weights of the public models as their makers and diffusers give them; SD2's encoder is counted without its last layer.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "sizes", "unet_weights", "large", "text_weights", "targets", "with_convolutions", "text_targets"),
    [
        ("sd1", SD1, 859_520_964, 464_486_400, [123_060_480], 192, 278, 72),
        ("sd2", SD2, 865_910_724, 464_486_400, [340_387_840], 192, 278, 138),
        ("sdxl", SDXL, 2_567_463_684, 243_302_400, [123_060_480, 694_659_840], 722, 788, 72 + 192),
    ],
    ids=["sd1", "sd2", "sdxl"],
)
def test_full_size_models(
    family: str,
    sizes: Sizes,
    unet_weights: int,
    large: int,
    text_weights: list[int],
    targets: int,
    with_convolutions: int,
    text_targets: int,
) -> None:
    from diffusers.loaders import single_file_utils

    shapes = checkpoint_shapes(sizes)
    unet, vae, texts = build(shapes, family)
    assert count(unet) == unet_weights
    cpu = torch.device("cpu")
    kept = [layer for _, layer in block_layers(unet) if may_stay_half(layer, torch.float16, torch.float32, cpu)]
    assert sum(layer.weight.numel() for layer in kept) == large
    assert count(vae) == 83_653_863
    assert [count(text) for text in texts] == text_weights
    assert len(unet_targets(unet, with_convolutions=False)) == targets
    assert len(unet_targets(unet, with_convolutions=True)) == with_convolutions
    assert len(text_encoder_targets(*texts)) == text_targets

    file = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    for module, converted in (
        (unet, single_file_utils.convert_ldm_unet_checkpoint(dict(file), dict(unet.config))),
        (vae, single_file_utils.convert_ldm_vae_checkpoint(dict(file), dict(vae.config))),
    ):
        own = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
        assert own.keys() == converted.keys()
        assert {name for name, shape in own.items() if converted[name].shape[: len(shape)] != shape} == set()
    if family != "sd1":
        prefix = ldm_names.SD2_TEXT_PREFIXES[0] if family == "sd2" else ldm_names.SDXL_TEXT_PREFIXES[0]
        converted = single_file_utils.convert_open_clip_checkpoint(texts[-1], file, prefix=prefix)
        own = {name.removeprefix("text_model."): own for name, own in texts[-1].named_parameters()}
        theirs = {name.removeprefix("text_model."): tensor for name, tensor in converted.items()}
        assert {name for name, parameter in own.items() if theirs[name].shape != parameter.shape} == set()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "sizes", "heads"),
    [("sd1", SD1, 8), ("sd2", SD2, (5, 10, 20, 20)), ("sdxl", SDXL, (5, 10, 20))],
    ids=["sd1", "sd2", "sdxl"],
)
def test_heads_of_the_public_models(family: str, sizes: Sizes, heads: int | tuple[int, ...]) -> None:
    """As in their configurations at diffusers."""
    config = unet_config(checkpoint_shapes(sizes), Hints(), family)
    assert config["attention_head_dim"] == heads
    assert config["use_linear_projection"] == (family != "sd1")


def test_inpainting_differs_in_one_tensor() -> None:
    plain, inpaint = checkpoint_shapes(SDXL), checkpoint_shapes(with_in_channels(SDXL, 9))
    assert [name for name in plain if plain[name] != inpaint[name]] == ["model.diffusion_model.input_blocks.0.0.weight"]
    assert math.prod(inpaint["model.diffusion_model.input_blocks.0.0.weight"]) == 320 * 9 * 3 * 3
