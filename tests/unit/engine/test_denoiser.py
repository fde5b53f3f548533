"""What the UNet is told: size conditioning by hand, masks as the hosts make them, and nothing for other families."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lora_train.data.epochs import Batch, View
from lora_train.data.images import fit, fit_to_bucket
from lora_train.engine.denoiser import SizeTable, drawn_sizes, full_mask, predict
from lora_train.engine.loading import BaseModel
from lora_train.engine.text import Embeddings

pytestmark = pytest.mark.compat


def small_unet(**values: Any) -> Any:
    """Two levels, random weights, text of 16 numbers."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    unet: Any = UNet2DConditionModel(
        block_out_channels=(32, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=2,
        **values,
    )
    return unet.eval()


SDXL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 12,
}
"""Sizes of 8 numbers each, and pooled text of 12."""


def numbers(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


NOISY = numbers(2, 4, 8, 8)
TIMESTEPS = torch.tensor([3, 900])
TEXT = Embeddings(numbers(2, 77, 16, seed=2), numbers(2, 12, seed=3))


# --- the UNet's arguments ---


@torch.no_grad()
def test_plain_families_hear_of_the_text_alone() -> None:
    unet = small_unet()
    wanted = unet(NOISY, TIMESTEPS, TEXT.hidden).sample
    assert torch.equal(predict(unet, NOISY, TIMESTEPS, TEXT, None, None), wanted)


@torch.no_grad()
def test_sdxl_hears_of_pooled_text_and_sizes() -> None:
    unet = small_unet(**SDXL)
    sizes = torch.tensor([[700.0, 1023, 0, 31, 64, 64], [64, 64, 0, 0, 64, 64]])
    wanted = unet(NOISY, TIMESTEPS, TEXT.hidden, added_cond_kwargs={"text_embeds": TEXT.pooled, "time_ids": sizes})
    found = predict(unet, NOISY, TIMESTEPS, TEXT, sizes, None)
    assert torch.equal(found, wanted.sample)
    other = predict(unet, NOISY, TIMESTEPS, TEXT, sizes + torch.tensor([1.0, 0, 0, 0, 0, 0]), None)
    assert not torch.equal(found, other), "a single pixel more counts"


@torch.no_grad()
def test_sizes_stay_exact_in_half_precision() -> None:
    """bfloat16 has no 1023 and no 1025: the sizes are made to waves before they are rounded."""
    unet = small_unet(**SDXL).to(torch.bfloat16)
    rows = [[float(size), 64, 0, 0, 64, 64] for size in (1023, 1024, 1025)]
    noisy, timesteps, text = NOISY[:1].expand(3, -1, -1, -1), TIMESTEPS[:1].expand(3), TEXT.split()[0].expand(3)
    first, second, third = predict(unet, noisy, timesteps, text, torch.tensor(rows), None)
    assert first.dtype == torch.bfloat16
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)


@torch.no_grad()
def test_inpainting_hears_of_mask_and_masked_picture() -> None:
    unet = small_unet(in_channels=9)
    extra = numbers(1, 5, 8, 8, seed=4)
    wanted = unet(torch.cat([NOISY, extra.expand(2, -1, -1, -1)], 1), TIMESTEPS, TEXT.hidden).sample
    torch.testing.assert_close(predict(unet, NOISY, TIMESTEPS, TEXT, None, extra), wanted)
    # In the memory layout of the weights too, which is faster and is the same.
    unet.to(memory_format=torch.channels_last)
    torch.testing.assert_close(predict(unet, NOISY, TIMESTEPS, TEXT, None, extra), wanted, rtol=1e-4, atol=1e-5)


# --- sizes ---


def batch(bucket: tuple[int, int], *views: tuple[int, bool]) -> Batch:
    return Batch(bucket, tuple(View(source, 0, place, flip, "") for place, (source, flip) in enumerate(views)))


def test_sizes_by_hand() -> None:
    """
    1000 x 600 into 64 x 64: scaled by 64 / 600 to 107 x 64, of which 43 columns are cut: 21 left, 22 right.
    50 x 90 into 64 x 96: scaled by 64 / 50 to 64 x 115, of which 19 rows are cut: 9 above.
    """
    table = SizeTable([(1000, 600), (50, 90)], [(64, 64), (64, 96)], torch.device("cpu"))
    rows = table.of(batch((64, 64), (0, False), (0, True)))
    assert rows.tolist() == [[600, 1000, 0, 21, 64, 64], [600, 1000, 0, 22, 64, 64]]
    assert rows.dtype == torch.float32
    tall = [90, 50, 9, 0, 96, 64]
    assert table.of(batch((64, 96), (1, True), (1, False))).tolist() == [tall, tall]


@pytest.mark.parametrize("size", [(107, 64), (64, 107), (64, 64), (331, 77)])
def test_a_mirrored_cut_shows_the_mirrored_pixels(size: tuple[int, int]) -> None:
    """What is cut at `mirrored_left_px` from the mirrored resized picture is the mirrored cut."""
    pixels = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    cut, how = fit_to_bucket(picture, (64, 64)), fit(size, (64, 64))
    mirrored = picture.resize(how.resized_size, Image.Resampling.LANCZOS).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    left, top = how.mirrored_left_px, how.crop_left_top[1]
    shown = np.asarray(mirrored.crop((left, top, left + 64, top + 64)))
    assert np.array_equal(shown, cut[:, ::-1])


def test_sizes_of_drawn_pictures() -> None:
    sdxl: Any = SimpleNamespace(family="sdxl-inpaint", device=torch.device("cpu"))
    sizes = drawn_sizes(sdxl, 96, 64, 2)
    assert sizes is not None
    assert sizes.tolist() == [[64, 96, 0, 0, 64, 96]] * 2
    sd2: Any = SimpleNamespace(family="sd2", device=torch.device("cpu"))
    assert drawn_sizes(sd2, 96, 64, 2) is None


# --- masks ---


@torch.no_grad()
def test_full_mask_is_one_over_grey(small_model: BaseModel) -> None:
    """As the WebUI makes it for txt2img: a picture of 0.5, brought to -1 ... 1, encoded and scaled, and ones before."""
    assert full_mask(small_model, 96, 64) is None, "it takes four channels"
    inpaint: Any = SimpleNamespace(vae=small_model.vae, in_channels=9, vae_scale=0.5, device=torch.device("cpu"))
    mask = full_mask(inpaint, 96, 64)
    assert mask is not None
    assert mask.shape == (1, 5, 8, 12)
    assert torch.equal(mask[:, :1], torch.ones(1, 1, 8, 12))
    grey = torch.full((1, 3, 64, 96), 0.5) * 2 - 1
    wanted = small_model.vae.encode(grey).latent_dist.mean * 0.5
    torch.testing.assert_close(mask[:, 1:], wanted)
