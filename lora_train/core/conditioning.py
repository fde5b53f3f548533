"""What a family's UNet is told besides the noisy picture: the one place where families differ in that.

As the hosts do it, so that a LoRA meets there what it was trained with.
"""

from __future__ import annotations

import msgspec

from lora_train.core.config import TrainSettings


class TextEncoderUse(msgspec.Struct, frozen=True):
    """How the embeddings are taken from one text encoder."""

    layer: int | None
    """Hidden state, counted from the end: -1 is the last layer's output. None: the clip skip chooses."""
    has_final_norm: bool
    gives_pooled: bool = False


class Conditioning(msgspec.Struct, frozen=True):
    """Of one family."""

    text_encoders: tuple[TextEncoderUse, ...]
    """Their embeddings are laid side by side."""
    tells_sizes: bool = False
    """Whether the UNet hears of each picture's original size, crop and target size."""
    vae_works_in_half: bool = True
    """Whether the VAE can encode in fp16. SDXL's own was not made for it: inside, it passes 65504 for nearly every
    picture, and each would be encoded twice."""

    @property
    def clip_skip_matters(self) -> bool:
        return any(use.layer is None for use in self.text_encoders)


_SD1 = Conditioning((TextEncoderUse(None, has_final_norm=True),))
_SD2 = Conditioning((TextEncoderUse(-1, has_final_norm=True),))
_SDXL = Conditioning(
    (
        TextEncoderUse(-2, has_final_norm=False),
        TextEncoderUse(-2, has_final_norm=False, gives_pooled=True),
    ),
    tells_sizes=True,
    vae_works_in_half=False,
)
_OF = {"sd1": _SD1, "sd2": _SD2, "sdxl": _SDXL}


def conditioning_of(family: str) -> Conditioning:
    """Of a family that is trained; an inpainting model's is that of its family."""
    return _OF[family.removesuffix("-inpaint")]


def trains_text_encoders(settings: TrainSettings, family: str) -> bool:
    """SDXL's two are large and keep well what they know, so they have a switch of their own, which is off."""
    has_two = len(conditioning_of(family).text_encoders) > 1
    return settings.train_sdxl_text_encoders if has_two else settings.train_text_encoder
