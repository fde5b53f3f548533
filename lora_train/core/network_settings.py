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
            description="Trains the other convolutions too (LoCon), for textures and fine strokes; 0 leaves them out.",
            ge=0,
            le=1024,
        ),
    ] = 0
    conv_alpha: Annotated[
        float,
        Meta(
            title="Convolution alpha",
            description="The same as Alpha, for those convolutions; half of their rank is usual.",
            gt=0,
            le=1024,
        ),
    ] = 1.0
    input_rank: Annotated[
        int,
        Meta(
            title="Input blocks rank",
            description="More learns composition and shape more closely, in the UNet's input blocks; 0 takes the net "
            "dim.",
            ge=0,
            le=1024,
        ),
    ] = 0
    input_alpha: Annotated[
        float,
        Meta(
            title="Input blocks alpha",
            description="Alpha of this part; 0 keeps it as strong as the others.",
            ge=0,
            le=1024,
        ),
    ] = 0.0
    middle_rank: Annotated[
        int,
        Meta(
            title="Middle block rank",
            description="More learns the subject as a whole more closely, in the UNet's middle block; 0 takes the net "
            "dim.",
            ge=0,
            le=1024,
        ),
    ] = 0
    middle_alpha: Annotated[
        float,
        Meta(
            title="Middle block alpha",
            description="Alpha of this part; 0 keeps it as strong as the others.",
            ge=0,
            le=1024,
        ),
    ] = 0.0
    output_rank: Annotated[
        int,
        Meta(
            title="Output blocks rank",
            description="More learns details and style more closely, in the UNet's output blocks; 0 takes the net dim.",
            ge=0,
            le=1024,
        ),
    ] = 0
    output_alpha: Annotated[
        float,
        Meta(
            title="Output blocks alpha",
            description="Alpha of this part; 0 keeps it as strong as the others.",
            ge=0,
            le=1024,
        ),
    ] = 0.0
    text_encoder_rank: Annotated[
        int,
        Meta(
            title="Text encoder rank",
            description="More learns the meaning of words more closely; 0 takes the net dim.",
            ge=0,
            le=1024,
        ),
    ] = 0
    text_encoder_alpha: Annotated[
        float,
        Meta(
            title="Text encoder alpha",
            description="Alpha of this part; 0 keeps it as strong as the others.",
            ge=0,
            le=1024,
        ),
    ] = 0.0
    network_dropout: Annotated[
        float,
        Meta(
            title="Network dropout",
            description="Leaves this share of the LoRA out at each step, so that few pictures are not learned by "
            "heart; 0 is off.",
            ge=0,
            le=0.9,
        ),
    ] = 0.0
    rank_dropout: Annotated[
        float,
        Meta(
            title="Rank dropout",
            description="Leaves this share of the ranks out at each step, so that none alone holds the subject; 0 is "
            "off.",
            ge=0,
            le=0.9,
        ),
    ] = 0.0
    module_dropout: Annotated[
        float,
        Meta(
            title="Module dropout",
            description="Leaves this share of the layers out at each step, so that none alone holds the subject; 0 is "
            "off.",
            ge=0,
            le=0.9,
        ),
    ] = 0.0
    scale_weight_norms: Annotated[
        float,
        Meta(
            title="Scale weight norms",
            description="Limits how strong each layer gets, so that the LoRA goes together with others; 1 is usual, 0 "
            "is off.",
            ge=0,
            le=1000,
        ),
    ] = 0.0
    continue_from: Annotated[
        str,
        Meta(
            title="Continue from LoRA",
            description="A finished LoRA that is taught more, with its own layers and ranks; empty begins anew.",
        ),
    ] = ""
