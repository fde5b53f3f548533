"""Text embeddings for the loop: trained with gradients, or encoded ahead once for every caption of an epoch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lora_train.data.epochs import Batch
from lora_train.engine.devices import to_device
from lora_train.engine.text import Prompts

_ENCODE_AT_ONCE = 16


class TrainedTexts:
    """Captions go through the text encoder in every step, with gradients for its LoRA."""

    def __init__(self, prompts: Prompts, device: torch.device) -> None:
        self._prompts = prompts
        self._device = device
        self._ids: dict[tuple[str, ...], torch.Tensor] = {}

    def prepare(self, batches: Sequence[Batch]) -> None:
        """Tokenize the epoch's batches ahead, so that the loop finds its ids on the device."""
        self._prompts.forget()
        captions = {_captions(batch) for batch in batches}
        self._ids = {row: to_device(self._prompts.ids(row), self._device) for row in captions}

    def embeddings(self, batch: Batch) -> torch.Tensor:
        """(B, T, D) with gradients."""
        return self._prompts.encode(self._ids[_captions(batch)])


class CachedTexts:
    """Captions are encoded before the epoch; the loop only looks them up.

    The epoch's captions are known from the seed, also when shuffled or dropped. They are encoded in sorted batches,
    so that a resumed run gets the same numbers.
    """

    def __init__(self, prompts: Prompts) -> None:
        self._prompts: Prompts | None = prompts
        self._rows: dict[str, torch.Tensor] = {}
        self._known: list[str] = []
        self._empty = prompts.encode(_on_device(prompts, [""]))[0].detach()

    def prepare(self, batches: Sequence[Batch]) -> None:
        """Encode the captions of these batches, unless they are the ones that are there already."""
        captions = sorted({view.caption for batch in batches for view in batch.views})
        if captions == self._known:
            return
        if self._prompts is None:
            raise RuntimeError("the text encoder was let go, but other captions are needed")
        self._known, self._rows = captions, {}
        self._prompts.forget()
        with torch.no_grad():
            for start in range(0, len(captions), _ENCODE_AT_ONCE):
                chosen = captions[start : start + _ENCODE_AT_ONCE]
                encoded = self._prompts.encode(_on_device(self._prompts, chosen))
                for caption, row in zip(chosen, encoded, strict=True):  # without what longer ones added
                    self._rows[caption] = row[: self._prompts.length(caption)].clone()

    def let_go(self) -> None:
        """Drop the text encoder; from now on only captions that are encoded already may be asked for."""
        self._prompts = None

    def embeddings(self, batch: Batch) -> torch.Tensor:
        """(B, T, D) without gradients; shorter captions are filled up with empty chunks, as in the hosts."""
        rows = [self._rows[view.caption] for view in batch.views]
        length = max(row.shape[0] for row in rows)
        filled = [
            torch.cat([row, self._empty.repeat((length - row.shape[0]) // 77, 1)]) if row.shape[0] < length else row
            for row in rows
        ]
        return torch.stack(filled)


def _captions(batch: Batch) -> tuple[str, ...]:
    return tuple(view.caption for view in batch.views)


def _on_device(prompts: Prompts, captions: Sequence[str]) -> torch.Tensor:
    weight = next(prompts.text_encoder.parameters())
    return to_device(prompts.ids(captions), weight.device)
