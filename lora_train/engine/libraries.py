"""The import of torch, diffusers and transformers, which is most of the time to a worker's first step."""

from __future__ import annotations

import gc
from contextlib import suppress


def import_libraries() -> None:
    """Import what every job with a base model needs, at once.

    Half a million objects come into being that all stay. Looking for garbage among them again and again is a third of
    the time, in vain, and would go on later: they are taken out of it for good. What can't be imported is told where it
    is needed.
    """
    gc.disable()
    try:
        with suppress(Exception):  # a broken package that these two look at may raise anything
            from diffusers import AutoencoderKL, UNet2DConditionModel  # noqa: F401
            from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401
    finally:
        gc.freeze()
        gc.enable()
