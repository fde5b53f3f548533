"""The one call of the UNet, with everything its family is told: for training, drawing and measuring alike.

Legend: B pictures, T text tokens, D text width, P pooled width; latents (B, 4, h, w).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lora_train.core.conditioning import conditioning_of
from lora_train.data.epochs import Batch, Bucket
from lora_train.data.images import fit
from lora_train.engine.devices import to_device
from lora_train.engine.disk_cache import DiskCache, Tensors
from lora_train.engine.loading import BaseModel
from lora_train.engine.text import Embeddings

INPAINT_CHANNELS = 9
"""What an inpainting UNet takes: 4 noisy latents, 1 mask, 4 latents of the masked picture."""


def predict(
    unet: Any,
    noisy: torch.Tensor,
    timesteps: torch.Tensor,
    text: Embeddings,
    sizes: torch.Tensor | None,
    inpaint: torch.Tensor | None,
) -> torch.Tensor:
    """(B, 4, h, w): what the UNet predicts for noisy latents at their timesteps (B,), in its own number format.

    sizes     (B, 6) float32, for SDXL (see `SizeTable`)
    inpaint   (1 or B, 5, h, w), for inpainting models (see `full_mask`)
    """
    dtype = next(unet.parameters()).dtype
    if inpaint is not None:
        noisy = torch.cat([noisy, inpaint.to(noisy).expand(len(noisy), -1, -1, -1)], dim=1)
    is_last = unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    noisy = noisy.to(dtype, memory_format=torch.channels_last if is_last else torch.preserve_format)
    extra: dict[str, Any] = {}
    if sizes is not None:
        assert text.pooled is not None, "families that tell sizes have pooled embeddings"
        extra["added_cond_kwargs"] = {"text_embeds": text.pooled.to(dtype), "time_ids": sizes}
    return unet(noisy, timesteps, text.hidden.to(dtype), return_dict=False, **extra)[0]


class SizeTable:
    """The size conditioning of every picture (Podell et al. 2023, section 2.2), mirrored or not, on the device.

    A row is (original height, original width, crop top, crop left, target height, target width) in pixels, the crop
    being measured in the resized picture.
    """

    def __init__(self, originals: Sequence[tuple[int, int]], buckets: Sequence[Bucket], device: torch.device) -> None:
        """`originals` are the pictures' (width_px, height_px), `buckets` what they are cut to."""
        rows = [_both_sides(size, bucket) for size, bucket in zip(originals, buckets, strict=True)]
        self._rows = torch.tensor(rows, dtype=torch.float32)
        self._device = device

    def of(self, batch: Batch) -> torch.Tensor:
        """(B, 6) float32 of the batch's views."""
        sources = torch.tensor([view.source for view in batch.views])
        flips = torch.tensor([int(view.flip) for view in batch.views])
        return to_device(self._rows[sources, flips], self._device)


def _both_sides(size: tuple[int, int], bucket: Bucket) -> list[list[int]]:
    how = fit(size, bucket)
    (width, height), (target_width, target_height), (left, top) = size, bucket, how.crop_left_top
    return [[height, width, top, side, target_height, target_width] for side in (left, how.mirrored_left_px)]


def drawn_sizes(model: BaseModel, width_px: int, height_px: int, count: int) -> torch.Tensor | None:
    """(count, 6) for pictures that are drawn, as the hosts tell it: nothing was cut off. None where it isn't told."""
    if not conditioning_of(model.family).tells_sizes:
        return None
    row = [height_px, width_px, 0, 0, height_px, width_px]
    return torch.tensor([row], dtype=torch.float32, device=model.device).expand(count, -1)


@torch.no_grad()
def full_mask(model: BaseModel, width_px: int, height_px: int, kept: DiskCache | None = None) -> torch.Tensor | None:
    """(1, 5, h, w) that lets an inpainting model make the whole picture; None for other models.

    The mask is 1 everywhere, so of the picture under it grey is left, which the VAE encodes: what the hosts give the
    model when they draw without a picture. What is in `kept` is not encoded again.
    """
    if model.in_channels != INPAINT_CHANNELS:
        return None

    def make() -> Tensors:
        weight = next(model.vae.parameters())
        grey = torch.zeros(1, 3, height_px, width_px, device=weight.device, dtype=weight.dtype)
        return {"mean": model.vae.encode(grey).latent_dist.mean.float()}

    found = make() if kept is None else kept.get(make, "grey", f"{width_px} {height_px}")
    masked = found["mean"].to(model.device) * model.vae_scale
    return torch.cat([torch.ones_like(masked[:, :1]), masked], dim=1)
