"""Latents of all pictures, encoded once before the loop and kept as mean and std, so that each view draws its own."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lora_train.core.errors import DatasetError
from lora_train.core.heap import keeping_freed_memory
from lora_train.data.epochs import Batch, Bucket
from lora_train.data.images import fit_to_bucket, open_picture
from lora_train.engine.devices import to_device
from lora_train.engine.disk_cache import DiskCache, Tensors


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


class _Part(NamedTuple):
    """Pictures of one bucket that go through the VAE together."""

    bucket: Bucket
    sources: list[int]


def build_latent_cache(
    open_vae: Callable[[], Any],
    paths: Sequence[Path],
    buckets: Sequence[Bucket],
    *,
    vae_scale: float,
    with_flips: bool,
    batch_size: int,
    device: torch.device,
    kept: DiskCache,
    progress: Callable[[int, int], None],
    warn: Callable[[str], None],
) -> LatentCache:
    """Encode every picture (and its mirror image), in the same batches at every start; those in `kept` are not encoded
    again, and if all are, no VAE is opened.

    A picture that overflows a half-precision VAE is encoded again in float32 and named through `warn`.
    Raises DatasetError naming a picture whose latents are not finite even then, or that can't be read.
    """
    parts = _parts(buckets, batch_size)
    keys = [_key(kept, part, [paths[index] for index in part.sources], with_flips) for part in parts]
    found = [_finite(kept.find(key)) for key in keys]
    done = sum(len(part.sources) for part, tensors in zip(parts, found, strict=True) if tensors is not None)
    if done:
        progress(done, len(paths))
    missing = [index for index, tensors in enumerate(found) if tensors is None]
    chosen = [[paths[source] for source in parts[index].sources] for index in missing]
    pixels = _opened_ahead([(own, parts[index].bucket) for own, index in zip(chosen, missing, strict=True)])
    vae = open_vae() if missing else None
    with keeping_freed_memory() if device.type == "cpu" else nullcontext():
        for index, own, sides in zip(missing, chosen, pixels, strict=True):
            found[index] = made = _encode(vae, own, sides, with_flips, device)
            kept.keep(keys[index], made)
            done += len(own)
            progress(done, len(paths))
    cache, rows = LatentCache(vae_scale, device), dict[Bucket, list[tuple[list[int], torch.Tensor]]]()
    for part, tensors in zip(parts, found, strict=True):
        assert tensors is not None, "every part was found or encoded"
        for row in tensors[_AGAIN].tolist():
            name = paths[part.sources[row]].name
            warn(f"{name} overflows the VAE in half precision; it was encoded in float32.")
        rows.setdefault(part.bucket, []).append((part.sources, tensors[_MOMENTS].to(device)))
    for bucket, own in rows.items():
        cache.put(bucket, [source for sources, _ in own for source in sources], torch.cat([row for _, row in own]))
    return cache


_MOMENTS, _AGAIN = "moments", "again_in_float32"
"""What is kept of a part: (B, flips, 2, 4, h, w), and the rows that overflowed."""


def _parts(buckets: Sequence[Bucket], batch_size: int) -> list[_Part]:
    parts: list[_Part] = []
    for bucket in sorted(set(buckets)):
        sources = [index for index, own in enumerate(buckets) if own == bucket]
        parts += [_Part(bucket, sources[at : at + batch_size]) for at in range(0, len(sources), batch_size)]
    return parts


def _key(kept: DiskCache, part: _Part, paths: Sequence[Path], with_flips: bool) -> str:
    """Of all pictures that are encoded together: another one beside it may change a picture's last bits."""
    return kept.key(f"{part.bucket}", f"flips {with_flips}", *(_content_hash(path) for path in paths))


def _content_hash(path: Path) -> str:
    try:
        return hashlib.blake2b(path.read_bytes(), digest_size=20).hexdigest()
    except OSError as error:
        raise DatasetError(f"{path} can't be read: {error.strerror or error}.") from error


def _finite(tensors: Tensors | None) -> Tensors | None:
    return tensors if tensors is not None and bool(torch.isfinite(tensors[_MOMENTS]).all()) else None


def _opened_ahead(parts: Sequence[tuple[list[Path], Bucket]]) -> Generator[torch.Tensor, None, None]:
    """(B, 3, H, W) of every part in turn, opened by a thread while the one before is worked on."""

    def opened(paths: list[Path], bucket: Bucket) -> torch.Tensor:
        return torch.stack([_pixels(path, bucket) for path in paths])

    with ThreadPoolExecutor(1, thread_name_prefix="pictures") as thread:
        ahead = deque[Future[torch.Tensor]]()
        for part in parts:
            ahead.append(thread.submit(opened, *part))
            if len(ahead) > _AHEAD:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


_AHEAD = 1


@torch.no_grad()
def _encode(vae: Any, paths: Sequence[Path], pixels: torch.Tensor, with_flips: bool, device: torch.device) -> Tensors:
    """What is kept of a part, in float32."""
    sides = torch.stack([pixels, pixels.flip(-1)] if with_flips else [pixels], dim=1)
    dtype = next(vae.parameters()).dtype
    moments = _moments(vae, sides.to(device, dtype))
    again = [row for row in range(len(paths)) if not bool(torch.isfinite(moments[row]).all())]
    bad = again
    if again and dtype != torch.float32:
        vae.to(torch.float32)
        for row in again:
            moments[row] = _moments(vae, sides[row : row + 1].to(device))[0]
        vae.to(dtype)
        bad = [row for row in again if not bool(torch.isfinite(moments[row]).all())]
    for row in bad:
        raise DatasetError(
            f"The VAE turns {paths[row].name} into numbers that are not finite, also in float32.",
            "Remove this picture, or use another VAE.",
        )
    return {_MOMENTS: moments.contiguous(), _AGAIN: torch.tensor(again, dtype=torch.int64)}


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
