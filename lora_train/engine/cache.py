"""Latents of all pictures, encoded once before the loop and kept as mean and std, so that each view draws its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from lora_train.core.errors import DatasetError
from lora_train.data.epochs import Batch, Bucket
from lora_train.data.images import fit_to_bucket, open_picture
from lora_train.engine.devices import to_device


class LatentCache:
    """Per bucket one tensor (pictures, flips, 2, 4, h/8, w/8) on the device: mean and std, as the VAE gives them.

    `flips` is 2 when views may be mirrored (an encoded mirror picture is not a mirrored encoding), else 1.
    """

    def __init__(self, vae_scale: float, device: torch.device) -> None:
        self._scale = vae_scale
        self._device = device
        self._place: dict[int, tuple[Bucket, int]] = {}
        self._tensors: dict[Bucket, torch.Tensor] = {}

    def put(self, bucket: Bucket, sources: Sequence[int], moments: torch.Tensor) -> None:
        """All latents of one bucket; `moments` is (len(sources), flips, 2, 4, h, w)."""
        self._tensors[bucket] = moments
        for row, source in enumerate(sources):
            self._place[source] = (bucket, row)

    def latents(self, batch: Batch, noise: torch.Tensor) -> torch.Tensor:
        """(B, 4, h, w): mean + std * noise for every view, scaled for the UNet; `noise` is (B, 4, h, w)."""
        tensor = self._tensors[batch.bucket]
        rows = torch.tensor([self._place[view.source][1] for view in batch.views])
        flips = torch.tensor([int(view.flip) for view in batch.views])
        chosen = tensor[to_device(rows, self._device), to_device(flips, self._device)]
        return (chosen[:, 0] + chosen[:, 1] * noise) * self._scale

    def latent_shape(self, bucket: Bucket) -> tuple[int, int, int]:
        """(4, h, w) of the bucket's latents."""
        channels, height, width = self._tensors[bucket].shape[-3:]
        return channels, height, width


def build_latent_cache(
    vae: Any,
    paths: Sequence[Path],
    buckets: Sequence[Bucket],
    *,
    vae_scale: float,
    with_flips: bool,
    batch_size: int,
    device: torch.device,
    progress: Callable[[int, int], None],
    warn: Callable[[str], None],
) -> LatentCache:
    """Encode every picture (and its mirror image), in the same batches at every start.

    A picture that overflows a half-precision VAE is encoded again in float32 and named through `warn`.
    Raises DatasetError naming a picture whose latents are not finite even then.
    """
    cache = LatentCache(vae_scale, device)
    done = 0
    for bucket in sorted(set(buckets)):
        sources = [index for index, own in enumerate(buckets) if own == bucket]
        rows: list[torch.Tensor] = []
        for start in range(0, len(sources), batch_size):
            chosen = [paths[index] for index in sources[start : start + batch_size]]
            rows.append(_encode(vae, chosen, bucket, with_flips, device, warn))
            done += len(chosen)
            progress(done, len(paths))
        cache.put(bucket, sources, torch.cat(rows))
    return cache


@torch.no_grad()
def _encode(
    vae: Any,
    paths: Sequence[Path],
    bucket: Bucket,
    with_flips: bool,
    device: torch.device,
    warn: Callable[[str], None],
) -> torch.Tensor:
    """(B, flips, 2, 4, h, w) float32."""
    pixels = torch.stack([_pixels(path, bucket) for path in paths])
    sides = torch.stack([pixels, pixels.flip(-1)] if with_flips else [pixels], dim=1)
    dtype = next(vae.parameters()).dtype
    moments = _moments(vae, sides.to(device, dtype))
    bad = [row for row in range(len(paths)) if not bool(torch.isfinite(moments[row]).all())]
    if bad and dtype != torch.float32:
        vae.to(torch.float32)
        for row in bad:
            warn(f"{paths[row].name} overflows the VAE in half precision; it was encoded in float32.")
            moments[row] = _moments(vae, sides[row : row + 1].to(device))[0]
        vae.to(dtype)
        bad = [row for row in bad if not bool(torch.isfinite(moments[row]).all())]
    for row in bad:
        raise DatasetError(
            f"The VAE turns {paths[row].name} into numbers that are not finite, also in float32.",
            "Remove this picture, or use another VAE.",
        )
    return moments


def _moments(vae: Any, sides: torch.Tensor) -> torch.Tensor:
    """Pixels (B, flips, 3, H, W) -> mean and std (B, flips, 2, 4, h, w) in float32."""
    batch, flips = sides.shape[:2]
    distribution = vae.encode(sides.flatten(0, 1)).latent_dist
    moments = torch.stack([distribution.mean, distribution.std], dim=1).float()
    return moments.unflatten(0, (batch, flips))


def _pixels(path: Path, bucket: Bucket) -> torch.Tensor:
    """(3, H, W) in [-1, 1]."""
    fitted = fit_to_bucket(open_picture(path), bucket)
    return torch.from_numpy(fitted).permute(2, 0, 1).float() / 127.5 - 1.0
