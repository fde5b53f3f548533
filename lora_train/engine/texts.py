"""Text embeddings for the loop: trained with gradients, or encoded ahead once for every caption of an epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from lora_train.data.epochs import Batch
from lora_train.engine.causal_mask import give_causal_mask
from lora_train.engine.devices import to_device
from lora_train.engine.text import Embeddings, Prompts

_ENCODE_AT_ONCE = 16
_ON_DEVICE_BYTES = 256_000_000
"""More than this is kept in main memory: copying a caption to the device takes well under a millisecond."""


class TokenIds(NamedTuple):
    """Captions that are still to be encoded: (E, B, C, 77), see `Prompts.ids`."""

    ids: torch.Tensor


class TrainedTexts:
    """Captions go through the text encoders in every step, with gradients for their LoRA."""

    def __init__(self, prompts: Prompts, device: torch.device) -> None:
        give_causal_mask()
        self._prompts = prompts
        self._device = device
        self._ids: dict[tuple[str, ...], torch.Tensor] = {}

    def prepare(self, batches: Sequence[Batch]) -> None:
        """Tokenize the epoch's batches ahead, so that the loop finds its ids on the device."""
        self._prompts.forget()
        captions = {_captions_beside(batch) for batch in batches}
        self._ids = {row: to_device(self._prompts.ids(row), self._device) for row in captions}

    def let_encoders_rest(self) -> None:
        """Nothing: every step needs them."""

    def length(self, caption: str) -> int:
        """Tokens of a caption."""
        return self._prompts.length(caption)

    def look_up(self, batch: Batch) -> TokenIds:
        """Of the batch's captions, ready to be encoded."""
        ids = self._ids[_captions_beside(batch)]
        return TokenIds(ids[:, batch.first : batch.first + len(batch.views)])

    def encoded(self, text: Any) -> Embeddings:
        """What `look_up` gave, with gradients."""
        return self._prompts.encode(text.ids)

    def embeddings(self, batch: Batch) -> Embeddings:
        """Of the batch's captions, with gradients."""
        return self.encoded(self.look_up(batch))


class CachedTexts:
    """Captions are encoded before the epoch; the loop only looks them up.

    The epoch's captions are known from the seed, also when shuffled or dropped. They are encoded in sorted batches,
    so that a resumed run gets the same numbers.
    """

    def __init__(self, prompts: Prompts) -> None:
        self._prompts: Prompts | None = prompts
        self._rows: dict[str, Embeddings] = {}
        self._known: list[str] = []
        with torch.no_grad():
            self._empty = prompts.encode_each([""])[0]
        self._device = prompts.device

    @property
    def size_bytes(self) -> int:
        """Memory that the encoded captions take."""
        return sum(row.size_bytes for row in self._rows.values())

    @property
    def count(self) -> int:
        """How many captions are encoded."""
        return len(self._rows)

    def prepare(self, batches: Sequence[Batch]) -> None:
        """Encode the captions of these batches, unless they are the ones that are there already."""
        captions = sorted({view.caption for batch in batches for view in batch.views})
        if captions == self._known:
            return
        if self._prompts is None:
            raise RuntimeError("the text encoder was let go, but other captions are needed")
        self._known, self._rows = [], {}
        self._prompts.forget()
        chunks = sum(self._prompts.length(caption) for caption in captions) // 77
        is_much = chunks * self._empty.size_bytes > _ON_DEVICE_BYTES
        place = torch.device("cpu") if is_much else self._device
        self._empty = self._empty.to(place)
        with torch.no_grad():
            for start in range(0, len(captions), _ENCODE_AT_ONCE):
                chosen = captions[start : start + _ENCODE_AT_ONCE]
                encoded = self._prompts.encode(to_device(self._prompts.ids(chosen), self._device))
                for caption, row in zip(chosen, encoded.split(), strict=True):  # without what longer ones added
                    own = row.hidden[:, : self._prompts.length(caption)].clone()
                    pooled = None if row.pooled is None else row.pooled.clone()
                    self._rows[caption] = Embeddings(own, pooled).to(place)
        self._known = captions
        self._prompts.rest()

    def let_encoders_rest(self) -> None:
        """From now on text encoders that are still needed wait in main memory between epochs."""
        if self._prompts is not None:
            self._prompts.may_rest = True
            self._prompts.rest()

    def length(self, caption: str) -> int:
        """Tokens of a caption that is encoded."""
        return self._rows[caption].hidden.shape[1]

    def let_go(self) -> None:
        """Drop the text encoders; from now on only captions that are encoded already may be asked for."""
        self._prompts = None

    def look_up(self, batch: Batch) -> Embeddings:
        """As `embeddings`: there is nothing left to encode."""
        return self.embeddings(batch)

    def encoded(self, text: Any) -> Embeddings:
        """What `look_up` gave."""
        return text

    def embeddings(self, batch: Batch) -> Embeddings:
        """Of the batch's captions, without gradients; shorter ones are filled up with empty chunks, as in the hosts."""
        rows = [self._rows[view.caption] for view in batch.views]
        length = max(self._rows[caption].hidden.shape[1] for caption in _captions_beside(batch))
        joined = Embeddings.join([self._filled(row, length) for row in rows])
        if joined.hidden.device == self._device:
            return joined
        pooled = None if joined.pooled is None else to_device(joined.pooled, self._device)
        return Embeddings(to_device(joined.hidden, self._device), pooled)

    def _filled(self, row: Embeddings, length: int) -> Embeddings:
        missing = (length - row.hidden.shape[1]) // 77
        if not missing:
            return row
        return Embeddings(torch.cat([row.hidden, *[self._empty.hidden] * missing], dim=1), row.pooled)


def _captions_beside(batch: Batch) -> tuple[str, ...]:
    """Of the whole batch, also for a part of it."""
    return tuple(view.caption for view in batch.whole or batch.views)
