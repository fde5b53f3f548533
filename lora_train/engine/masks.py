"""What *Masked loss* learns of each picture, kept on the device beside its latents.

Legend: B batch; (h, w) the size of a bucket's latents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from lora_train.core.errors import DatasetError
from lora_train.data.dataset import Dataset
from lora_train.data.epochs import Batch, Bucket
from lora_train.data.images import fit_mask_to_bucket
from lora_train.data.masks import open_mask
from lora_train.engine.devices import to_device


class MaskCache:
    """Per bucket one tensor (pictures, 2, 1, h, w) on the device: the weight of every place, and of its mirror image.

    The weights of a picture have the mean 1, so that the loss is the mean over what its mask leaves: a small subject
    is learned as fast as a large one. They are 0 where the whole mask is black.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._place: dict[int, tuple[Bucket, int]] = {}
        self._tensors: dict[Bucket, torch.Tensor] = {}

    def put(self, bucket: Bucket, sources: Sequence[int], weights: torch.Tensor) -> None:
        """The weights of all pictures of one bucket; `weights` is (len(sources), 1, h, w)."""
        self._tensors[bucket] = torch.stack([weights, weights.flip(-1)], dim=1).to(self._device)
        for row, source in enumerate(sources):
            self._place[source] = (bucket, row)

    def weights(self, batch: Batch) -> torch.Tensor:
        """(B, 1, h, w) for every view, mirrored as it is."""
        rows = torch.tensor([self._place[view.source][1] for view in batch.views])
        flips = torch.tensor([int(view.flip) for view in batch.views])
        return self._tensors[batch.bucket][to_device(rows, self._device), to_device(flips, self._device)]


def build_mask_cache(
    dataset: Dataset,
    buckets: Sequence[Bucket],
    latent_size: Callable[[Bucket], tuple[int, int]],
    device: torch.device,
    warn: Callable[[str], None],
) -> MaskCache | None:
    """The masks of all pictures; regularisation pictures and those without a mask are learned as a whole.

    `latent_size` gives (h, w) of a bucket's latents. None where no picture has a mask, which is told. Raises
    DatasetError for a mask that can't be used, and where nothing at all would be learned.
    """
    cache = MaskCache(device)
    masked_count = black_count = 0
    for bucket in sorted(set(buckets)):
        sources = [index for index, own in enumerate(buckets) if own == bucket]
        weights: list[torch.Tensor] = []
        for source in sources:
            share = _learned_share(dataset, source, bucket, latent_size(bucket))
            masked_count += share is not None
            if share is not None and not bool(share.any()):
                black_count += 1
                path = dataset.pictures[source].path
                warn(f"The mask of {path} is black all over: nothing is learned from this picture.")
            weights.append(torch.ones(1, *latent_size(bucket)) if share is None else mask_weights(share))
        cache.put(bucket, sources, torch.stack(weights))
    if not masked_count:
        warn("Masked loss is on, but no picture has a mask or is transparent in places: everything is learned.")
        return None
    if black_count == sum(not picture.is_regularisation for picture in dataset.pictures):
        raise DatasetError(
            "The masks of all pictures are black all over, so nothing would be learned.",
            "White is what is learned; turn the masks round, or switch masked loss off.",
        )
    return cache


def mask_weights(share: torch.Tensor) -> torch.Tensor:
    """(1, h, w) weights of mean 1 from the share of every place that is learned, 0 to 1; all 0 where nothing is."""
    mean = share.mean()
    return share / mean if bool(mean > 0) else share


def _learned_share(dataset: Dataset, source: int, bucket: Bucket, size: tuple[int, int]) -> torch.Tensor | None:
    """(1, h, w) from 0 to 1: the mask, cut as the picture is and averaged over what one latent stands for."""
    picture = dataset.pictures[source]
    if picture.is_regularisation:
        return None
    mask = open_mask(dataset.root / picture.path, dataset.root / picture.mask if picture.mask else None)
    if mask is None:
        return None
    fitted = torch.from_numpy(fit_mask_to_bucket(mask, bucket)).float() / 255
    return F.adaptive_avg_pool2d(fitted[None], size)
