"""The text encoders' mask without a question to the device, for older transformers (4.30 of Automatic1111)."""

from __future__ import annotations

from typing import Any

import torch


def causal_mask(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """(B, 1, T, T) for captions (B, T): what a token may look at is 0, what comes after it the lowest number."""
    batch, length = shape
    mask = torch.full((length, length), torch.finfo(dtype).min, dtype=dtype, device=device).triu_(1)
    return mask.expand(batch, 1, length, length)


def give_causal_mask() -> None:
    """Let CLIP's text encoders use `causal_mask`, in the whole process.

    That of these releases takes the lowest number from a tensor on the device, so that each step would wait for it,
    and a CUDA graph can't. Later ones have no function of this name.
    """
    from transformers.models.clip import modeling_clip

    library: Any = modeling_clip
    if hasattr(library, "_make_causal_mask"):
        library._make_causal_mask = causal_mask
