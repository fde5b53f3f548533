"""Captions and prompts to text embeddings, as the hosts do it: 75-token chunks, each between begin and end tokens.

Only prompts are read for attention, `(word:1.2)`; a caption's brackets are brackets.

Legend: B captions, C chunks, T = 77 C tokens, D text width, P pooled width.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch

from lora_train.core.conditioning import TextEncoderUse, conditioning_of
from lora_train.core.errors import ConfigError
from lora_train.core.events import Note
from lora_train.data.prompts import WeightedChunk, read_attention, weighted_chunks, without_tags
from lora_train.data.tokens import CHUNK_TOKENS, chunk_borders
from lora_train.engine.disk_cache import DiskCache, Tensors
from lora_train.engine.loading import BaseModel


def tokenize(tokenizer: Any, caption: str, max_tokens: int) -> tuple[list[list[int]], int]:
    """Chunks of at most 75 token ids (no begin, end or padding), and how many tokens had to be cut off.

    There is always at least one chunk, an empty caption's being empty.
    """
    ids: list[int] = tokenizer(caption, add_special_tokens=False, truncation=False).input_ids
    borders = chunk_borders(ids, tokenizer.convert_tokens_to_ids(",</w>"))
    chunks = [ids[start:end] for start, end in pairwise(borders)][: max_tokens // CHUNK_TOKENS]
    return chunks, len(ids) - borders[len(chunks)]


def pack(chunks: Sequence[Sequence[Sequence[int]]], begin: int, end: int, pad: int) -> torch.Tensor:
    """(B, C, 77) token ids: every caption gets as many chunks as the longest, every chunk its begin, end, padding.

    A missing chunk is an empty one, as in the hosts.
    """
    count = max(len(caption) for caption in chunks)
    rows = [
        [_wrap(caption[index] if index < len(caption) else (), begin, end, pad) for index in range(count)]
        for caption in chunks
    ]
    return torch.tensor(rows, dtype=torch.long)


def pack_weights(chunks: Sequence[WeightedChunk]) -> torch.Tensor:
    """(C, 77) of one prompt: the weight of every token, 1 for begin, end and padding."""
    return torch.tensor([[1.0, *chunk.weights, *[1.0] * (CHUNK_TOKENS + 1 - len(chunk.ids))] for chunk in chunks])


def emphasized(hidden: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Hidden states (1, 77 C, D) of a prompt times their weights (C, 77), each chunk then scaled to its old mean.

    The hosts' emphasis "Original", which is their default. The mean is that over all numbers of a chunk.
    """
    chunks = hidden.float().reshape(*weights.shape, -1)
    weighted = chunks * weights.to(chunks).unsqueeze(-1)
    scale = chunks.mean(dim=(1, 2), keepdim=True) / weighted.mean(dim=(1, 2), keepdim=True)
    return (weighted * scale).reshape(hidden.shape).to(hidden.dtype)


def _wrap(tokens: Sequence[int], begin: int, end: int, pad: int) -> list[int]:
    return [begin, *tokens, end, *[pad] * (CHUNK_TOKENS - len(tokens))]


def check_clip_skip(text_encoder: Any, clip_skip: int) -> None:
    """Raises ConfigError when the encoder has fewer layers than `clip_skip` asks for."""
    layers = text_encoder.config.num_hidden_layers
    if clip_skip > layers:
        raise ConfigError([f"clip_skip (Clip skip): {clip_skip} is more than the {layers} layers of this text encoder"])


class Embeddings(NamedTuple):
    """Captions as the UNet hears of them."""

    hidden: torch.Tensor
    """(B, T, D)"""
    pooled: torch.Tensor | None = None
    """(B, P), where the family has it."""

    @staticmethod
    def join(rows: Sequence[Embeddings]) -> Embeddings:
        """One after the other; all equally long."""
        pooled = [row.pooled for row in rows if row.pooled is not None]
        return Embeddings(torch.cat([row.hidden for row in rows]), torch.cat(pooled) if pooled else None)

    def split(self) -> list[Embeddings]:
        """Each caption by itself, B = 1."""
        pooled = [None] * len(self.hidden) if self.pooled is None else self.pooled.split(1)
        return [Embeddings(*row) for row in zip(self.hidden.split(1), pooled, strict=True)]

    def expand(self, count: int) -> Embeddings:
        """A single caption for `count` pictures."""
        pooled = None if self.pooled is None else self.pooled.expand(count, -1)
        return Embeddings(self.hidden.expand(count, -1, -1), pooled)

    def detach(self) -> Embeddings:
        return Embeddings(self.hidden.detach(), None if self.pooled is None else self.pooled.detach())

    def to(self, where: torch.device | torch.dtype) -> Embeddings:
        """As `torch.Tensor.to` does it."""
        return Embeddings(self.hidden.to(where), None if self.pooled is None else self.pooled.to(where))

    @property
    def size_bytes(self) -> int:
        return sum(part.numel() * part.element_size() for part in self if part is not None)


def encode(text_encoder: Any, ids: torch.Tensor, use: TextEncoderUse, clip_skip: int) -> Embeddings:
    """Token ids (B, C, 77) -> hidden (B, 77 C, D) of one encoder, and pooled (B, P) of the first chunk if it gives it.

    That the final norm follows a clip skip is what A1111, Forge and kohya do for Stable Diffusion 1.
    """
    batch, chunks, length = ids.shape
    layer = -clip_skip if use.layer is None else use.layer
    output = text_encoder(ids.reshape(batch * chunks, length), output_hidden_states=True)
    if use.has_final_norm and layer == -1:
        hidden = output.last_hidden_state
    else:
        hidden = output.hidden_states[layer]
        if use.has_final_norm:
            hidden = getattr(text_encoder, "text_model", text_encoder).final_layer_norm(hidden)
    pooled = output.text_embeds.reshape(batch, chunks, -1)[:, 0] if use.gives_pooled else None
    return Embeddings(hidden.reshape(batch, chunks * length, -1), pooled)


_CUT_OFF = "A caption or prompt has more tokens than are read: its end was cut off."


class Prompts:
    """Tokenizers and text encoders of one run, with its clip skip and token limit. Legend: E encoders."""

    def __init__(self, model: BaseModel, *, clip_skip: int, max_tokens: int, kept: DiskCache | None = None) -> None:
        """With `kept`, what is in there is not encoded again (gradients apart), and text encoders are loaded only for
        what is not. Raises ConfigError for a clip skip that they can't do, at the latest when they are loaded.
        """
        conditioning = conditioning_of(model.family)
        self._model = model
        self._kept = kept
        self._uses = conditioning.text_encoders
        self._tells_sizes = conditioning.tells_sizes
        self.clip_skip = clip_skip
        self.max_tokens = max_tokens
        self.cut_captions: dict[str, int] = {}
        self._tokenizer = model.tokenizers[0]
        self._pads = [tokenizer.pad_token_id for tokenizer in model.tokenizers]
        """CLIP-L's is its end token, OpenCLIP's 0; nothing else differs between tokenizers."""
        self._chunks: dict[str, list[list[int]]] = {}
        self._encoders: tuple[Any, ...] = ()
        self._are_away = False
        self.may_rest = False
        """Whether the text encoders wait in main memory while there is nothing to encode."""
        self.device = model.device if kept is not None else next(self.text_encoders[0].parameters()).device

    @property
    def text_encoders(self) -> tuple[Any, ...]:
        if not self._encoders:
            loaded = self._model.text_encoders
            for encoder, use in zip(loaded, self._uses, strict=True):
                if use.layer is None:
                    check_clip_skip(encoder, self.clip_skip)
            self._encoders = loaded
        if self._are_away:
            for encoder in self._encoders:
                encoder.to(self.device)
            self._are_away = False
        return self._encoders

    def rest(self) -> None:
        """There is nothing to encode for a while. The text encoders come back by themselves."""
        if self.may_rest:
            for encoder in self._encoders:
                encoder.to("cpu")
            self._are_away = True

    def ids(self, captions: Sequence[str]) -> torch.Tensor:
        """(E, B, C, 77) on the CPU. Captions that are cut are remembered in `cut_captions`."""
        return self._packed([self._tokenized(caption) for caption in captions])

    def length(self, caption: str) -> int:
        """Tokens of this caption's embedding, begin, end and padding included: 77 for each chunk."""
        return (CHUNK_TOKENS + 2) * len(self._tokenized(caption))

    def encode(self, ids: torch.Tensor, weights: torch.Tensor | None = None) -> Embeddings:
        """Token ids (E, B, C, 77) on the text encoders' device -> the family's embeddings, T = 77 C.

        `weights` (C, 77) are those of a single prompt's tokens (see `emphasized`); the pooled ones know none.
        """
        if self._kept is None or torch.is_grad_enabled():
            return self._encode(ids, weights)

        def make() -> Tensors:
            made = self._encode(ids, weights)
            return {"hidden": made.hidden} if made.pooled is None else {"hidden": made.hidden, "pooled": made.pooled}

        asked = [f"{tuple(ids.shape)} {ids.tolist()}", "" if weights is None else f"{weights.tolist()}"]
        found = self._kept.get(make, f"clip skip {self.clip_skip}", *asked)
        pooled = found.get("pooled")
        return Embeddings(found["hidden"].to(self.device), None if pooled is None else pooled.to(self.device))

    def _encode(self, ids: torch.Tensor, weights: torch.Tensor | None) -> Embeddings:
        parts = [
            encode(encoder, own, use, self.clip_skip)
            for encoder, own, use in zip(self.text_encoders, ids, self._uses, strict=True)
        ]
        pooled = next((part.pooled for part in parts if part.pooled is not None), None)
        hidden = [part.hidden if weights is None else emphasized(part.hidden, weights) for part in parts]
        return Embeddings(torch.cat(hidden, dim=-1), pooled)

    def encode_prompt(self, prompt: str, *, is_negative: bool = False) -> Embeddings:
        """A prompt as the hosts understand it, B = 1, of as many chunks as it needs (see `data.prompts`).

        As there, an empty negative prompt is all zeros for SDXL.
        """
        prompt = without_tags(prompt)
        chunks = self._prompt_chunks(prompt)
        weights = pack_weights(chunks)
        text = self.encode(self._packed([[chunk.ids for chunk in chunks]]).to(self.device), weights)
        if is_negative and not prompt and self._tells_sizes:
            assert text.pooled is not None, "families that tell sizes have pooled embeddings"
            return Embeddings(torch.zeros_like(text.hidden), torch.zeros_like(text.pooled))
        return text

    def _prompt_chunks(self, prompt: str) -> list[WeightedChunk]:
        parts = read_attention(prompt)
        ids = [self._tokenizer(part.text, add_special_tokens=False, truncation=False).input_ids for part in parts]
        return weighted_chunks(parts, ids, self._tokenizer.convert_tokens_to_ids(",</w>"))

    def _packed(self, chunks: Sequence[Sequence[Sequence[int]]]) -> torch.Tensor:
        """(E, B, C, 77)"""
        begin, end = self._tokenizer.bos_token_id, self._tokenizer.eos_token_id
        return torch.stack([pack(chunks, begin, end, pad) for pad in self._pads])

    def forget(self) -> None:
        """Drop what was tokenized: shuffled captions are new in every epoch."""
        self._chunks.clear()

    def encode_each(self, captions: Sequence[str]) -> list[Embeddings]:
        """Each caption by itself, B = 1: none is filled up because of a longer one."""
        return [self.encode(self.ids([caption]).to(self.device)) for caption in captions]

    def cut_notes(self) -> list[Note]:
        """One for each of `cut_captions`: `80 / 75` are its tokens, and those that are read."""
        cut = self.cut_captions.items()
        return [
            Note("warning", f"{_CUT_OFF}\n{self.max_tokens + more} / {self.max_tokens}: {caption[:80]}")
            for caption, more in cut
        ]

    def _tokenized(self, caption: str) -> list[list[int]]:
        if caption not in self._chunks:
            self._chunks[caption], cut = tokenize(self._tokenizer, caption, self.max_tokens)
            if cut:
                self.cut_captions[caption] = cut
        return self._chunks[caption]
