"""The preview panel of a version: grids of pictures of finished LoRAs, drawn by lists of values."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Drawer = Literal["worker", "host"]


class GridSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is drawn with each LoRA. A list with more than one value becomes an axis of the grid."""

    prompt: Annotated[
        str,
        Meta(title="Prompt", description="Empty: the trigger words of the LoRA, or else the project's name."),
    ] = ""
    negative_prompt: Annotated[str, Meta(title="Negative prompt", description="What the pictures should avoid.")] = (
        "worst quality, low quality, normal quality"
    )
    width_px: Annotated[
        int, Meta(title="Width", description="Pixels; 0 is the base model's own size.", ge=0, le=2048)
    ] = 0
    height_px: Annotated[
        int, Meta(title="Height", description="Pixels; 0 is the base model's own size.", ge=0, le=2048)
    ] = 0
    batch_count: Annotated[
        int, Meta(title="Batch count", description="Batches for every place of the grid.", ge=1, le=100)
    ] = 1
    batch_size: Annotated[
        int,
        Meta(title="Batch size", description="Pictures that are drawn together; more needs more memory.", ge=1, le=100),
    ] = 1
    samplers: Annotated[tuple[str, ...], Meta(title="Sampling method", description="One or several.", min_length=1)] = (
        "Euler a",
    )
    steps: Annotated[
        tuple[Annotated[int, Meta(ge=1, le=150)], ...],
        Meta(title="Sampling steps", description="Comma list.", min_length=1),
    ] = (28,)
    cfg_scales: Annotated[
        tuple[Annotated[float, Meta(ge=1, le=30)], ...],
        Meta(title="CFG Scale Combination", description="Comma list.", min_length=1),
    ] = (7.0,)
    seeds: Annotated[
        tuple[Annotated[int, Meta(ge=-1, le=2**32 - 1)], ...],
        Meta(
            title="Seed Combination",
            description="Comma list; -1 is a random one, the same for all LoRAs.",
            min_length=1,
        ),
    ] = (-1,)
    weights: Annotated[
        tuple[Annotated[float, Meta(ge=-10, le=10)], ...],
        Meta(title="Lora multiplier", description="Comma list of LoRA weights.", min_length=1),
    ] = (0.6, 0.7, 0.8, 1.0)
    include_sub_pictures: Annotated[
        bool, Meta(title="Include sub images", description="Shows every single picture below its grid, too.")
    ] = False
    delete_before: Annotated[
        bool,
        Meta(
            title="Delete preview images before generate",
            description="Earlier grids of the same LoRAs go to the trash.",
        ),
    ] = True
    drawn_by: Annotated[
        Drawer,
        Meta(title="Drawn by", description="worker: Train Tools itself; host: the WebUI, with all its samplers."),
    ] = "worker"
