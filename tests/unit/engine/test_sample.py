"""Preview pictures: against diffusers' own pipeline, and each picture by its own seed."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from lora_train.core.config import TrainSettings
from lora_train.core.samplers import SAMPLERS, Sampler
from lora_train.engine import sample
from lora_train.engine.loading import BaseModel
from lora_train.engine.sample import DrawSettings, draw, draw_settings, picture_seeds
from lora_train.engine.text import Embeddings, Prompts

pytestmark = pytest.mark.compat

PROMPTS = ["a red circle on a white background", "blue, square, black background", "sks"]
SEEDS = [5, 6, 7]


@torch.no_grad()
def encode(model: BaseModel, captions: list[str]) -> Embeddings:
    prompts = Prompts(model, clip_skip=1, max_tokens=150)
    return prompts.encode(prompts.ids(captions))


def theirs_of(sampler: Sampler, prediction: str = "epsilon", *, zero_terminal_snr: bool = False) -> Any:
    """diffusers' scheduler for those samplers that it takes the same steps with."""
    import diffusers

    kind = {
        "Euler": diffusers.EulerDiscreteScheduler,
        "Euler a": diffusers.EulerAncestralDiscreteScheduler,
        "Heun": diffusers.HeunDiscreteScheduler,
    }[sampler]
    extra = {"rescale_betas_zero_snr": True} if zero_terminal_snr else {}
    return kind(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction,
        timestep_spacing="trailing" if zero_terminal_snr else "linspace",
        **extra,
    )


def settings(sampler: Sampler, **values: Any) -> DrawSettings:
    return DrawSettings(width_px=64, height_px=64, sampler=sampler, steps=6, cfg_scale=3.0, **values)


def drawn(model: BaseModel, seeds: list[int], draw_with: DrawSettings, first: int = 0) -> np.ndarray[Any, Any]:
    """(B, H, W, 3) of so many prompts, as whole numbers that can be subtracted."""
    positive = encode(model, PROMPTS).split()[first : first + len(seeds)]
    pictures = draw(model, positive, encode(model, [""]), seeds, draw_with)
    return np.stack([np.asarray(picture) for picture in pictures]).astype(np.int64)


@pytest.mark.parametrize("sampler", ["Euler", "Euler a", "Heun"])
def test_equal_to_diffusers_own_pipeline(
    demo_model: BaseModel, make_pipeline: Callable[..., Any], sampler: Sampler
) -> None:
    """The same scheduler, embeddings and seeds; 2 of 255 is what rounding of pixels may do."""
    pipeline = make_pipeline(demo_model, theirs_of(sampler))
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        prompt_embeds=encode(demo_model, PROMPTS).hidden,
        negative_prompt_embeds=encode(demo_model, [""]).expand(3).hidden,
        num_inference_steps=6,
        guidance_scale=3.0,
        height=64,
        width=64,
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        output_type="np",
    ).images
    ours = drawn(demo_model, SEEDS, settings(sampler))
    assert np.abs(ours - theirs * 255).max() <= 2
    assert ours.std() > 20, "a picture, not a grey field"


@pytest.mark.parametrize(("sampler", "zero_terminal_snr"), [("Euler a", False), ("Euler", True)])
def test_sdxl_equal_to_diffusers_own_pipeline(
    model_of: Callable[[str], Any], make_pipeline: Callable[..., Any], sampler: Sampler, zero_terminal_snr: bool
) -> None:
    """It works out the sizes by itself; prompt of two chunks. With v and zero terminal SNR too."""
    model = model_of("sdxl")
    prediction = "v_prediction" if zero_terminal_snr else "epsilon"
    told = SimpleNamespace(
        **{name: getattr(model, name) for name in ("family", "unet", "vae", "vae_scale", "in_channels", "device")},
        prediction=prediction,
        zero_terminal_snr=zero_terminal_snr,
    )
    pipeline = make_pipeline(model, theirs_of(sampler, prediction, zero_terminal_snr=zero_terminal_snr))
    pipeline.set_progress_bar_config(disable=True)
    positive, negative = encode(model, ["a red circle, " * 30]), encode(model, ["blue, " * 60])
    theirs = pipeline(
        prompt_embeds=positive.hidden,
        pooled_prompt_embeds=positive.pooled,
        negative_prompt_embeds=negative.hidden,
        negative_pooled_prompt_embeds=negative.pooled,
        num_inference_steps=3,
        guidance_scale=3.0,
        height=64,
        width=96,
        generator=torch.Generator().manual_seed(5),
        output_type="latent",
    ).images
    draw_with = DrawSettings(width_px=96, height_px=64, sampler=sampler, steps=3, cfg_scale=3.0)
    ours = sample.denoise(cast("BaseModel", told), positive, negative, [5], draw_with)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_inpainting_models_draw_as_the_hosts_let_them(model_of: Callable[[str], Any]) -> None:
    """Every call of the UNet has the full mask over grey behind the latents."""
    model = model_of("sd1-inpaint")
    masks: list[torch.Tensor] = []
    handle = model.unet.conv_in.register_forward_pre_hook(lambda _, inputs: masks.append(inputs[0][:, 4:]))
    try:
        (picture,) = draw(model, [encode(model, ["sks"])], encode(model, [""]), [1], settings("DDIM"))
    finally:
        handle.remove()
    assert picture.size == (64, 64)
    grey = model.vae.encode(torch.zeros(1, 3, 64, 64)).latent_dist.mean * 0.18215
    wanted = torch.cat([torch.ones(1, 1, 8, 8), grey], dim=1).expand(2, -1, -1, -1)
    assert len(masks) == 6
    for mask in masks:
        torch.testing.assert_close(mask, wanted)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_picture_is_a_function_of_its_seed(
    demo_model: BaseModel, sampler: Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = drawn(demo_model, SEEDS, settings(sampler))
    assert np.array_equal(drawn(demo_model, SEEDS, settings(sampler)), together)
    assert np.abs(drawn(demo_model, [8, 6, 7], settings(sampler))[0] - together[0]).mean() > 2
    # Nothing depends on who is drawn at the same time, or on how many.
    alone = drawn(demo_model, [6], settings(sampler), first=1)
    assert np.abs(alone[0] - together[1]).max() <= 2
    monkeypatch.setattr(sample, "_MOST_TOGETHER", 2)
    in_twos = drawn(demo_model, SEEDS, settings(sampler))
    assert np.abs(in_twos - together).max() <= 2


@torch.no_grad()
def test_prompts_of_different_length(demo_model: BaseModel) -> None:
    """A negative prompt of two chunks beside a positive one of a single one, and the other way round.

    As in the hosts neither is filled up: the UNet sees each in its own length.
    """
    seen: list[int] = []
    handle = demo_model.unet.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[2].shape[1]))
    long = encode(demo_model, ["a red circle " * 30])
    short = encode(demo_model, ["a red circle"])
    assert (long.hidden.shape[1], short.hidden.shape[1]) == (154, 77)
    for positive, negative in ((long, short), (short, long)):
        together, _ = draw(demo_model, [positive, positive], negative, [1, 2], settings("DDIM"))
        (alone,) = draw(demo_model, [positive], negative, [1], settings("DDIM"))
        assert np.abs(np.asarray(together).astype(int) - np.asarray(alone).astype(int)).max() <= 2
    handle.remove()
    assert seen[:2] == [154, 77]
    assert sorted(set(seen)) == [77, 154]


def test_sizes(demo_model: BaseModel) -> None:
    draw_with = DrawSettings(width_px=96, height_px=64, sampler="DDIM", steps=2)
    (picture,) = draw(demo_model, [encode(demo_model, ["sks"])], encode(demo_model, [""]), [1], draw_with)
    assert isinstance(picture, Image.Image)
    assert (picture.size, picture.mode) == ((96, 64), "RGB")


def test_settings_are_taken_over() -> None:
    own = TrainSettings(preview_sampler="DPM++ 2M", preview_steps=9, preview_cfg_scale=4.5, clip_skip=2)
    sd1, sdxl = (cast("BaseModel", SimpleNamespace(family=family)) for family in ("sd1-inpaint", "sdxl"))
    drawing = draw_settings(own, sd1, 512)
    assert (drawing.width_px, drawing.height_px) == (512, 512)
    assert (drawing.sampler, drawing.steps, drawing.cfg_scale) == ("DPM++ 2M", 9, 4.5)
    assert (drawing.clip_skip, draw_settings(own, sdxl, 512).clip_skip) == (2, None)
    assert draw_settings(TrainSettings(preview_size_px=256), sd1, 512).width_px == 256


def test_seeds_of_a_row() -> None:
    """The first is the seed itself: what a WebUI draws for it."""
    seeds = picture_seeds(42, 5)
    assert seeds[0] == 42
    assert len(set(seeds)) == 5
    assert picture_seeds(42, 3) == seeds[:3]
    assert not set(seeds[1:]) & set(picture_seeds(43, 5))
