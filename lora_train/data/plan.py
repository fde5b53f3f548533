"""From a dataset and the settings to buckets, the plan of all epochs, and the number of steps.

The page's sum and the loop use the same functions, so what is promised is what is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from lora_train.core.config import TrainSettings
from lora_train.data.buckets import choose_bucket, make_buckets
from lora_train.data.dataset import Dataset
from lora_train.data.epochs import Bucket, CaptionRules, EpochPlanner, Source
from lora_train.data.pruning import trained_captions


def place_in_buckets(dataset: Dataset, settings: TrainSettings, *, resolution_px: int, step_px: int) -> list[Bucket]:
    """The (width, height) that each picture is trained at, in the dataset's order.

    `resolution_px` and `step_px` are the base model's own, where the settings leave them open (0).
    """
    resolution_px = settings.resolution or resolution_px
    step_px = settings.bucket_step_px or step_px
    make_buckets(resolution_px, step_px, resolution_px // 2, resolution_px * 2)  # also for no pictures: it may raise
    return [
        _bucket_of(picture.width_px, picture.height_px, resolution_px, step_px, settings.upscale_limit)
        for picture in dataset.pictures
    ]


@lru_cache(maxsize=20_000)  # the page asks every second, and fractions take their time
def _bucket_of(width_px: int, height_px: int, resolution_px: int, step_px: int, upscale_limit: float) -> Bucket:
    buckets = make_buckets(resolution_px, step_px, resolution_px // 2, resolution_px * 2)
    return choose_bucket(width_px, height_px, buckets, step_px=step_px, upscale_limit=upscale_limit)


def make_planner(dataset: Dataset, buckets: Sequence[Bucket], settings: TrainSettings, concept: str) -> EpochPlanner:
    """The plan of all epochs. Tags that nearly all captions have are left out where the settings say so.

    A picture without a caption is called by its folder's concept, or else by `concept`, the project's name; a
    regularisation picture by its folder's class or not at all.
    """
    captions = captions_of(dataset, settings)
    sources = [
        Source(
            bucket=bucket,
            repeats=picture.repeats,
            caption=caption if picture.caption else picture.concept or ("" if picture.is_regularisation else concept),
            is_regularisation=picture.is_regularisation,
        )
        for picture, bucket, caption in zip(dataset.pictures, buckets, captions, strict=True)
    ]
    rules = CaptionRules(
        trigger_word=settings.trigger_word,
        shuffle=settings.shuffle_captions,
        keep_tags=settings.keep_tags,
        dropout=settings.caption_dropout,
    )
    return EpochPlanner(sources, batch_size=settings.batch_size, seed=settings.seed, rules=rules, flip=settings.flip)


def captions_of(dataset: Dataset, settings: TrainSettings) -> list[str]:
    """Each picture's caption as it is trained, before trigger word and shuffle; "" where it has none."""
    return trained_captions(
        dataset.pictures,
        prune_percent=settings.prune_common_tags,
        trigger_word=settings.trigger_word,
        keep_tags=settings.keep_tags,
    )
