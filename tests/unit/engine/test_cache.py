"""Cached latents are the VAE's own, mirrored pictures are really encoded, and overflows are met."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lora_train.core.errors import DatasetError
from lora_train.data.epochs import Batch, Bucket, View
from lora_train.engine.cache import LatentCache, build_latent_cache
from lora_train.engine.disk_cache import DiskCache
from lora_train.engine.loading import BaseModel

pytestmark = pytest.mark.compat

WIDE, TALL = (96, 64), (64, 96)
LATENT = {WIDE: (8, 12), TALL: (12, 8)}
BUCKETS = [WIDE, TALL, WIDE, WIDE, TALL]


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Five pictures of noise that have their bucket's size already."""
    numbers = np.random.default_rng(1)
    paths = [tmp_path / f"{index}.png" for index in range(5)]
    for path, (width, height) in zip(paths, BUCKETS, strict=True):
        Image.fromarray(numbers.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return paths


def build(
    vae: Any,
    paths: Sequence[Path],
    buckets: Sequence[Bucket],
    *,
    with_flips: bool = False,
    batch_size: int = 2,
    warnings: list[str] | None = None,
    told: list[tuple[int, int]] | None = None,
    kept: DiskCache | None = None,
) -> LatentCache:
    return build_latent_cache(
        lambda: vae,
        paths,
        buckets,
        vae_scale=vae.config.scaling_factor if vae is not None else 0.18215,
        with_flips=with_flips,
        batch_size=batch_size,
        device=torch.device("cpu"),
        kept=kept or DiskCache(None, [], print),
        progress=lambda done, total: (told if told is not None else []).append((done, total)),
        warn=(warnings if warnings is not None else []).append,
    )


def batch(bucket: Bucket, *sources: int, flips: Sequence[bool] = ()) -> Batch:
    flips = flips or [False] * len(sources)
    views = tuple(
        View(source=source, epoch=0, position=index, flip=flip, caption="")
        for index, (source, flip) in enumerate(zip(sources, flips, strict=True))
    )
    return Batch(bucket, views)


@torch.no_grad()
def distribution(vae: Any, path: Path, *, mirrored: bool = False) -> Any:
    """What the VAE itself makes of one picture: -1 to 1, channels first."""
    with Image.open(path) as image:
        pixels = np.asarray(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else image)
    scaled = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
    return vae.encode(scaled).latent_dist


def test_latents_are_drawn_from_the_distribution_of_the_vae(small_model: BaseModel, pictures: list[Path]) -> None:
    told: list[tuple[int, int]] = []
    cache = build(small_model.vae, pictures, BUCKETS, told=told)
    assert told == [(2, 5), (4, 5), (5, 5)]
    noise = torch.randn(2, 4, *LATENT[WIDE], generator=torch.Generator().manual_seed(3))
    latents = cache.latents(batch(WIDE, 3, 0), noise)
    for row, source in enumerate((3, 0)):
        own = distribution(small_model.vae, pictures[source])
        wanted = (own.mean + own.std * noise[row]) * 0.18215
        torch.testing.assert_close(latents[row : row + 1], wanted, rtol=1e-4, atol=1e-5)
    assert cache.latent_shape(WIDE) == (4, 8, 12)
    assert cache.latent_shape(TALL) == (4, 12, 8)


def test_std_is_not_left_out(small_model: BaseModel, pictures: list[Path]) -> None:
    cache = build(small_model.vae, pictures, BUCKETS)
    own = distribution(small_model.vae, pictures[1])
    zero, one = (torch.full((1, 4, *LATENT[TALL]), value) for value in (0.0, 1.0))
    drawn = cache.latents(batch(TALL, 1), one) - cache.latents(batch(TALL, 1), zero)
    torch.testing.assert_close(drawn, own.std * 0.18215, rtol=1e-3, atol=1e-5)


def test_flips_are_encodings_of_mirrored_pictures(small_model: BaseModel, pictures: list[Path]) -> None:
    cache = build(small_model.vae, pictures, BUCKETS, with_flips=True)
    zero = torch.zeros(2, 4, *LATENT[WIDE])
    flipped, plain = cache.latents(batch(WIDE, 2, 2, flips=[True, False]), zero)
    mirrored = distribution(small_model.vae, pictures[2], mirrored=True).mean[0] * 0.18215
    torch.testing.assert_close(flipped, mirrored, rtol=1e-4, atol=1e-5)
    own = distribution(small_model.vae, pictures[2]).mean[0] * 0.18215
    torch.testing.assert_close(plain, own, rtol=1e-4, atol=1e-5)
    # Mirroring the latents would be something else: the two differ by far more than rounding.
    assert (plain.flip(-1) - flipped).abs().max() > 1e-3


def test_pictures_are_fitted_to_their_bucket(small_model: BaseModel, tmp_path: Path) -> None:
    """Red above, green in the middle, blue below: the centre of a tall picture is what a wide bucket keeps."""
    path = tmp_path / "tall.png"
    image = Image.new("RGB", (96, 192), (0, 255, 0))
    image.paste((255, 0, 0), (0, 0, 96, 60))
    image.paste((0, 0, 255), (0, 132, 96, 192))
    image.save(path)
    cache = build(small_model.vae, [path], [WIDE])
    image.crop((0, 64, 96, 128)).save(tmp_path / "centre.png")
    wanted = distribution(small_model.vae, tmp_path / "centre.png").mean * 0.18215
    found = cache.latents(batch(WIDE, 0), torch.zeros(1, 4, *LATENT[WIDE]))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


# --- overflow ---


class FakeVae(nn.Module):
    """Mean = mean of the pixels, std = 1; a bright picture overflows it, as asked for."""

    def __init__(self, *, overflows_in_float32: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=torch.float16))
        self.config = SimpleNamespace(scaling_factor=1.0)
        self.formats: list[torch.dtype] = []
        self._always = overflows_in_float32

    def encode(self, pixels: torch.Tensor) -> Any:
        assert pixels.dtype == self.weight.dtype
        self.formats.append(pixels.dtype)
        mean = pixels.mean((1, 2, 3), keepdim=True)
        if pixels.dtype == torch.float16 or self._always:
            mean = torch.where(mean > 0.5, torch.inf, mean)
        mean = mean.expand(-1, 4, 8, 8)
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=mean, std=torch.ones_like(mean)))


@pytest.fixture
def grey_and_white(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "grey.png", tmp_path / "白い.png", tmp_path / "black.png"]
    for path, value in zip(paths, (128, 255, 0), strict=True):
        Image.new("RGB", (64, 64), (value,) * 3).save(path)
    return paths


@pytest.mark.parametrize("with_flips", [False, True])
def test_overflow_in_half_precision_is_done_again_in_float32(grey_and_white: list[Path], with_flips: bool) -> None:
    vae = FakeVae(overflows_in_float32=False)
    warnings: list[str] = []
    cache = build(vae, grey_and_white, [(64, 64)] * 3, batch_size=3, with_flips=with_flips, warnings=warnings)
    assert len(warnings) == 1
    assert "白い.png" in warnings[0]
    assert "float32" in warnings[0]
    found = cache.latents(batch((64, 64), 0, 1, 2), torch.zeros(3, 4, 8, 8))[:, 0, 0, 0]
    # 128 / 127.5 - 1 in half precision, then 1 and -1
    assert found.tolist() == pytest.approx([0.0039, 1.0, -1.0], abs=1e-4)
    assert vae.formats == [torch.float16, torch.float32]
    assert vae.weight.dtype == torch.float16, "the VAE is put back"


def test_overflow_in_float32_too_names_the_picture(grey_and_white: list[Path]) -> None:
    with pytest.raises(DatasetError, match=r"白い\.png.*not finite"):
        build(FakeVae(overflows_in_float32=True), grey_and_white, [(64, 64)] * 3)
    vae = FakeVae(overflows_in_float32=True).float()
    with pytest.raises(DatasetError, match=r"白い\.png.*not finite"):
        build(vae, grey_and_white, [(64, 64)] * 3)


# --- from the disk ---


class Counting(nn.Module):
    """A VAE that counts what it encodes."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae, self.config, self.encoded = vae, vae.config, 0

    def encode(self, pixels: torch.Tensor) -> Any:
        self.encoded += len(pixels)
        return self.vae.encode(pixels)


def all_latents(cache: LatentCache, flips: Sequence[bool]) -> list[torch.Tensor]:
    """Of every picture and side, with some noise, so that mean and std both count."""
    return [
        cache.latents(batch(bucket, source, flips=[flip]), torch.full((1, 4, *LATENT[bucket]), 0.7))
        for source, bucket in enumerate(BUCKETS)
        for flip in flips
    ]


@pytest.mark.parametrize("with_flips", [False, True])
def test_latents_from_the_disk_are_the_same_bytes_and_need_no_vae(
    small_model: BaseModel, pictures: list[Path], tmp_path: Path, with_flips: bool
) -> None:
    def keeping() -> DiskCache:
        return DiskCache(tmp_path / "kept", ["vae"], print)

    flips = (False, True) if with_flips else (False,)
    plain = all_latents(build(small_model.vae, pictures, BUCKETS, with_flips=with_flips), flips)
    vae = Counting(small_model.vae)
    first = all_latents(build(vae, pictures, BUCKETS, with_flips=with_flips, kept=keeping()), flips)
    assert vae.encoded == 5 * len(flips)
    told: list[tuple[int, int]] = []
    second = all_latents(build(None, pictures, BUCKETS, with_flips=with_flips, kept=keeping(), told=told), flips)
    for own, written, read in zip(plain, first, second, strict=True):
        assert torch.equal(own, written)
        assert torch.equal(own, read)
    assert told == [(5, 5)]


def test_only_batches_with_another_picture_are_encoded_again(
    small_model: BaseModel, pictures: list[Path], tmp_path: Path
) -> None:
    """What is encoded beside a picture may change its last bits, so it belongs to the key."""
    kept = DiskCache(tmp_path / "kept", ["vae"], print)
    build(small_model.vae, pictures, BUCKETS, kept=kept)
    Image.new("RGB", WIDE, (9, 9, 9)).save(pictures[0])
    vae = Counting(small_model.vae)
    again = all_latents(build(vae, pictures, BUCKETS, kept=kept), (False,))
    assert vae.encoded == 2, "pictures 0 and 2 go through the VAE together"
    for own, read in zip(all_latents(build(small_model.vae, pictures, BUCKETS), (False,)), again, strict=True):
        assert torch.equal(own, read)
    renamed = [path.rename(path.with_name(f"another {path.name}")) for path in pictures]
    build(None, renamed, BUCKETS, kept=kept)  # names are no part of it
    vae = Counting(small_model.vae)
    build(vae, renamed, BUCKETS, kept=kept, with_flips=True)
    build(vae, renamed, BUCKETS, kept=DiskCache(tmp_path / "kept", ["another vae"], print))
    assert vae.encoded == 15


def test_an_overflow_is_told_of_at_every_start(grey_and_white: list[Path], tmp_path: Path) -> None:
    kept = DiskCache(tmp_path / "kept", ["vae"], print)
    warnings: list[list[str]] = [[], []]
    for vae, told in zip((FakeVae(overflows_in_float32=False), None), warnings, strict=True):
        build(vae, grey_and_white, [(64, 64)] * 3, batch_size=3, warnings=told, kept=kept)
    assert len(warnings[0]) == 1
    assert warnings[0] == warnings[1]


def test_a_missing_picture_is_named(small_model: BaseModel, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"gone\.png"):
        build(small_model.vae, [tmp_path / "gone.png"], [WIDE])
