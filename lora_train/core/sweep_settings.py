"""The sweep of a version: lists of values whose combinations are trained one after the other."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from lora_train.core.config import Optimizer


class SweepSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An empty list stands for the version's own value."""

    learning_rates: Annotated[
        tuple[Annotated[float, Meta(ge=0, le=10)], ...], Meta(title="Learning rates", description="Comma list.")
    ] = ()
    optimizers: Annotated[tuple[Optimizer, ...], Meta(title="Optimizers", description="One or several.")] = ()
    ranks: Annotated[
        tuple[Annotated[int, Meta(ge=1, le=1024)], ...], Meta(title="Ranks", description="Comma list.")
    ] = ()
    alphas: Annotated[
        tuple[Annotated[float, Meta(ge=0, le=1024)], ...], Meta(title="Alphas", description="Comma list.")
    ] = ()
    batch_sizes: Annotated[
        tuple[Annotated[int, Meta(ge=1, le=256)], ...], Meta(title="Batch sizes", description="Comma list.")
    ] = ()
    clip_skips: Annotated[
        tuple[Annotated[int, Meta(ge=1, le=12)], ...], Meta(title="Clip skips", description="Comma list.")
    ] = ()
    presets: Annotated[tuple[str, ...], Meta(title="Presets", description="One or several, by name.")] = ()
    base_models: Annotated[tuple[str, ...], Meta(title="Base models", description="One or several.")] = ()
    judge: Annotated[
        bool,
        Meta(
            title="Judge the runs",
            description="The judge measures every run: at each rung before the weaker half is dropped, or else at its "
            "end. That takes time.",
        ),
    ] = False
    finish_by: Annotated[
        str,
        Meta(
            title="Finish by",
            description="HH:MM: runs start short, the weaker half is dropped, the rest go on. "
            "Empty: all run to their end.",
        ),
    ] = ""
