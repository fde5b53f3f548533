"""Captions to text embeddings, as the hosts do it: 75-token chunks, each between a begin and an end token.

Legend: B captions, C chunks, T = 77 C tokens, D text width.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch

from lora_train.core.errors import ConfigError
from lora_train.data.tokens import CHUNK_TOKENS, chunk_borders
from lora_train.engine.loading import BaseModel


def tokenize(tokenizer: Any, caption: str, max_tokens: int) -> tuple[list[list[int]], int]:
    """Chunks of at most 75 token ids (no begin, end or padding), and how many tokens had to be cut off.

    There is always at least one chunk, an empty caption's being empty.
    """
    ids: list[int] = tokenizer(caption, add_special_tokens=False, truncation=False).input_ids
    borders = chunk_borders(ids, tokenizer.convert_tokens_to_ids(",</w>"))
    chunks = [ids[start:end] for start, end in pairwise(borders)][: max_tokens // CHUNK_TOKENS]
    return chunks, len(ids) - borders[len(chunks)]


def pack(chunks: Sequence[Sequence[Sequence[int]]], begin: int, end: int) -> torch.Tensor:
    """(B, C, 77) token ids: every caption gets as many chunks as the longest, every chunk its begin, end, padding.

    CLIP-L pads with the end token; a missing chunk is an empty one, as in the hosts.
    """
    count = max(len(caption) for caption in chunks)
    rows = [
        [_wrap(caption[index] if index < len(caption) else (), begin, end) for index in range(count)]
        for caption in chunks
    ]
    return torch.tensor(rows, dtype=torch.long)


def _wrap(tokens: Sequence[int], begin: int, end: int) -> list[int]:
    return [begin, *tokens, *[end] * (CHUNK_TOKENS + 1 - len(tokens))]


def check_clip_skip(text_encoder: Any, clip_skip: int) -> None:
    """Raises ConfigError when the encoder has fewer layers than `clip_skip` asks for."""
    layers = text_encoder.config.num_hidden_layers
    if clip_skip > layers:
        raise ConfigError([f"clip_skip (Clip skip): {clip_skip} is more than the {layers} layers of this text encoder"])


def encode(text_encoder: Any, ids: torch.Tensor, clip_skip: int) -> torch.Tensor:
    """Token ids (B, C, 77) -> embeddings (B, 77 C, D): hidden state -clip_skip, then the final layer norm.

    That the norm follows is what A1111, Forge and kohya do for Stable Diffusion 1.
    """
    batch, chunks, length = ids.shape
    output = text_encoder(ids.reshape(batch * chunks, length), output_hidden_states=True)
    if clip_skip == 1:
        hidden = output.last_hidden_state
    else:
        core = getattr(text_encoder, "text_model", text_encoder)
        hidden = core.final_layer_norm(output.hidden_states[-clip_skip])
    return hidden.reshape(batch, chunks * length, -1)


class Prompts:
    """Tokenizers and text encoders of one run, with its clip skip and token limit."""

    def __init__(self, model: BaseModel, *, clip_skip: int, max_tokens: int) -> None:
        self.text_encoder = model.text_encoders[0]
        check_clip_skip(self.text_encoder, clip_skip)
        self.clip_skip = clip_skip
        self.max_tokens = max_tokens
        self.cut_captions: dict[str, int] = {}
        self._tokenizer = model.tokenizers[0]
        self._chunks: dict[str, list[list[int]]] = {}

    def ids(self, captions: Sequence[str]) -> torch.Tensor:
        """(B, C, 77) on the CPU. Captions that are cut are remembered in `cut_captions`."""
        return pack(
            [self._tokenized(caption) for caption in captions],
            self._tokenizer.bos_token_id,
            self._tokenizer.eos_token_id,
        )

    def length(self, caption: str) -> int:
        """Tokens of this caption's embedding, begin, end and padding included: 77 for each chunk."""
        return (CHUNK_TOKENS + 2) * len(self._tokenized(caption))

    def encode(self, ids: torch.Tensor) -> torch.Tensor:
        """(B, 77 C, D) on the text encoder's device."""
        return encode(self.text_encoder, ids, self.clip_skip)

    def forget(self) -> None:
        """Drop what was tokenized: shuffled captions are new in every epoch."""
        self._chunks.clear()

    def encode_each(self, captions: Sequence[str]) -> list[torch.Tensor]:
        """(77 C, D) of each caption by itself: none is filled up because of a longer one."""
        device = next(self.text_encoder.parameters()).device
        return [self.encode(self.ids([caption]).to(device))[0] for caption in captions]

    def _tokenized(self, caption: str) -> list[list[int]]:
        if caption not in self._chunks:
            self._chunks[caption], cut = tokenize(self._tokenizer, caption, self.max_tokens)
            if cut:
                self.cut_captions[caption] = cut
        return self._chunks[caption]
