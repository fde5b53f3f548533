"""Weights of masks: mean 1, averaged over what a latent stands for, mirrored as the view is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lora_train.core.errors import DatasetError
from lora_train.data.dataset import Dataset, scan_dataset
from lora_train.data.epochs import Batch, View
from lora_train.engine.masks import MaskCache, build_mask_cache, mask_weights

SQUARE, WIDE = (16, 16), (32, 16)


@pytest.fixture
def dataset(tmp_path: Path) -> Callable[..., Dataset]:
    """Square and wide pictures, and masks of 0-255 for some of them, by name."""

    def make(**masks: np.ndarray | None) -> Dataset:
        for number, (name, mask) in enumerate(masks.items()):
            folder = tmp_path / "reg" if name.startswith("reg") else tmp_path
            (folder / "mask").mkdir(parents=True, exist_ok=True)
            size = WIDE if name.endswith("wide") else SQUARE
            Image.new("RGB", size, (number, 0, 0)).save(folder / f"{name}.png")
            if mask is not None:
                Image.fromarray(mask.astype(np.uint8)).save(folder / "mask" / f"{name}.png")
        return scan_dataset(tmp_path)

    return make


def build(dataset: Dataset, told: list[str] | None = None) -> MaskCache | None:
    buckets = [(picture.width_px, picture.height_px) for picture in dataset.pictures]
    warn = (told if told is not None else []).append
    return build_mask_cache(dataset, buckets, lambda size: (size[1] // 8, size[0] // 8), torch.device("cpu"), warn)


def are_weights(cache: MaskCache | None, views: list[tuple[int, bool]], wanted: list[list[list[float]]]) -> bool:
    """Whether views (source, mirrored) have these weights; the size of a latent's rows tells the bucket."""
    assert cache is not None
    bucket = WIDE if len(wanted[0][0]) == 4 else SQUARE
    batch = Batch(bucket, tuple(View(source, 0, place, flip, "") for place, (source, flip) in enumerate(views)))
    return torch.allclose(cache.weights(batch), torch.tensor(wanted, dtype=torch.float32)[:, None], rtol=1e-6)


def test_by_hand(dataset: Callable[..., Dataset]) -> None:
    mask = np.zeros((16, 16))
    mask[:8, 8:] = 255  # one of four latents
    mask[8:, 8:12] = 255  # and half of another
    wide = np.full((16, 32), 51)  # a fifth everywhere: all places count alike
    wide[:, 16:] = 153  # and three fifths: thrice as much
    cache = build(dataset(a=mask, b=None, c_wide=wide))
    # The mean of 1, 1/2, 0 and 0 is 3/8.
    plain, mirrored = [[0, 8 / 3], [0, 4 / 3]], [[8 / 3, 0], [4 / 3, 0]]
    assert are_weights(cache, [(1, False), (0, True), (0, False)], [[[1, 1], [1, 1]], mirrored, plain])
    assert are_weights(cache, [(2, False)], [[[0.5, 0.5, 1.5, 1.5]] * 2])


def test_mean_is_one() -> None:
    share = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert mask_weights(share).mean().item() == pytest.approx(1)
    tiny = torch.zeros(1, 8, 8)
    tiny[0, 3, 3] = 1 / 255
    assert mask_weights(tiny)[0, 3, 3].item() == pytest.approx(64)
    assert torch.equal(mask_weights(torch.zeros(1, 8, 8)), torch.zeros(1, 8, 8))


def test_a_black_mask_is_told_and_nothing_is_learned_there(dataset: Callable[..., Dataset]) -> None:
    told: list[str] = []
    cache = build(dataset(a=np.zeros((16, 16)), b=None), told)
    assert told == ["The mask of a.png is black all over: nothing is learned from this picture."]
    assert are_weights(cache, [(0, False)], [[[0, 0], [0, 0]]])


def test_black_masks_alone_are_refused(dataset: Callable[..., Dataset]) -> None:
    with pytest.raises(DatasetError, match="nothing would be learned"):
        build(dataset(a=np.zeros((16, 16)), b=np.zeros((16, 16)), reg_a=None))


def test_no_mask_at_all_is_told(dataset: Callable[..., Dataset]) -> None:
    told: list[str] = []
    assert build(dataset(a=None, reg_b=np.zeros((16, 16))), told) is None
    assert told == ["Masked loss is on, but no picture has a mask or is transparent in places: everything is learned."]


def test_regularisation_pictures_are_learned_as_a_whole(dataset: Callable[..., Dataset]) -> None:
    half = np.zeros((16, 16))
    half[:, 8:] = 255
    cache = build(dataset(a=half, reg_b=half))
    assert are_weights(cache, [(0, False), (1, False)], [[[0, 2], [0, 2]], [[1, 1], [1, 1]]])
