"""Whether a captioner may use the graphics card, where something else may train at the same time."""

from __future__ import annotations

import logging
from typing import Literal

from lora_train.core.caption_settings import CaptionDevice

_ROOM = 2
"""Free memory that is asked for, in sizes of the weights: these and what the model computes with them."""


def choose_device(wanted: CaptionDevice, weights_bytes: int) -> Literal["cuda", "cpu"]:
    """`auto` takes the card where it has free memory for the weights twice over. Never fails for lack of a card."""
    if wanted == "cpu":
        return "cpu"
    import torch

    if not torch.cuda.is_available():
        if wanted == "cuda":
            logging.getLogger(__name__).warning("There is no CUDA device: captions are written on the processor.")
        return "cpu"
    free_bytes, _ = torch.cuda.mem_get_info()
    return "cuda" if wanted == "cuda" or free_bytes >= _ROOM * weights_bytes else "cpu"
