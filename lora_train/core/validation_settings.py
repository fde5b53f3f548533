"""Pictures that are held out of a training to measure it: a part of its settings (see `core.config`)."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta


class ValidationSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How many pictures are held out, when the loss on them is measured, and when it ends the training."""

    hold_out: Annotated[
        float,
        Meta(
            title="Held-out pictures",
            description="Not trained, but measured: -1 is one of eight from 16 pictures on; 0 none; 0.1 a tenth; "
            "3 is three pictures. None below 10 pictures.",
            ge=-1,
            le=1000,
        ),
    ] = -1.0
    validate_every_steps: Annotated[
        int,
        Meta(
            title="Validate every n steps",
            description="Besides every save; 0 is at saves only.",
            ge=0,
            le=1_000_000,
        ),
    ] = 0
    early_stopping_patience: Annotated[
        int,
        Meta(
            title="Early stopping patience",
            description="Ends the training after so many validations without a better one; 0 never does.",
            ge=0,
            le=1000,
        ),
    ] = 0
