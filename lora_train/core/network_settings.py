"""The LoRA network of a training: a part of its settings (see `core.config`)."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from lora_train.core.noise_settings import NoiseSettings


class NetworkSettings(NoiseSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the LoRA works and with how much capacity, besides the net dim and alpha themselves."""

    conv_rank: Annotated[
        int,
        Meta(
            title="Convolution rank",
            description="Train the other convolutions too (textures, fine strokes), in all blocks with this one rank; "
            "0 leaves them out.",
            ge=0,
            le=1024,
        ),
    ] = 0
    conv_alpha: Annotated[
        float,
        Meta(title="Convolution alpha", description="Alpha of those convolutions.", gt=0, le=1024),
    ] = 1.0
    input_rank: Annotated[
        int,
        Meta(
            title="Input blocks rank",
            description="Rank in the UNet's input blocks (composition and shape); 0 is the net dim.",
            ge=0,
            le=1024,
        ),
    ] = 0
    input_alpha: Annotated[
        float,
        Meta(
            title="Input blocks alpha", description="Alpha there; 0 keeps the ratio of alpha to net dim.", ge=0, le=1024
        ),
    ] = 0.0
    middle_rank: Annotated[
        int,
        Meta(
            title="Middle block rank", description="Rank in the UNet's middle block; 0 is the net dim.", ge=0, le=1024
        ),
    ] = 0
    middle_alpha: Annotated[
        float,
        Meta(
            title="Middle block alpha", description="Alpha there; 0 keeps the ratio of alpha to net dim.", ge=0, le=1024
        ),
    ] = 0.0
    output_rank: Annotated[
        int,
        Meta(
            title="Output blocks rank",
            description="Rank in the UNet's output blocks (details and style); 0 is the net dim.",
            ge=0,
            le=1024,
        ),
    ] = 0
    output_alpha: Annotated[
        float,
        Meta(
            title="Output blocks alpha",
            description="Alpha there; 0 keeps the ratio of alpha to net dim.",
            ge=0,
            le=1024,
        ),
    ] = 0.0
    text_encoder_rank: Annotated[
        int,
        Meta(title="Text encoder rank", description="Rank in the text encoder; 0 is the net dim.", ge=0, le=1024),
    ] = 0
    text_encoder_alpha: Annotated[
        float,
        Meta(
            title="Text encoder alpha", description="Alpha there; 0 keeps the ratio of alpha to net dim.", ge=0, le=1024
        ),
    ] = 0.0
    network_dropout: Annotated[
        float,
        Meta(
            title="Network dropout",
            description="Share of the LoRA's inner values left out at each step, so that few pictures are not learned "
            "by heart; 0 is off.",
            ge=0,
            le=0.9,
        ),
    ] = 0.0
    rank_dropout: Annotated[
        float,
        Meta(
            title="Rank dropout",
            description="Share of the ranks left out at each step, so that none alone holds the subject; 0 is off.",
            ge=0,
            le=0.9,
        ),
    ] = 0.0
    module_dropout: Annotated[
        float,
        Meta(
            title="Module dropout",
            description="Share of the layers whose LoRA sits out a step, so that no layer is needed alone; 0 is off.",
            ge=0,
            le=0.9,
        ),
    ] = 0.0
    scale_weight_norms: Annotated[
        float,
        Meta(
            title="Scale weight norms",
            description="No layer's LoRA may grow larger than this, so that it goes together with others; 1 is usual, "
            "0 is off.",
            ge=0,
            le=1000,
        ),
    ] = 0.0
    continue_from: Annotated[
        str,
        Meta(
            title="Continue from LoRA",
            description="A LoRA file that is taught more, with the layers and ranks that it has; empty begins anew.",
        ),
    ] = ""
