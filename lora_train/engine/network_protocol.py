"""What a run needs of a network: the loop, the state, the saving and the previews know nothing else of it.

A network of another kind (LoHa, LoKr, DoRA ...) is a class with these methods; see `network.LoraNetwork`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from lora_train.engine.flat import FlatPart
    from lora_train.engine.network import Target

Draw = Callable[[str, int], torch.Tensor]
"""(purpose, n) -> (B, n) uniform numbers of [0, 1) on the CPU, each view's from its own seed."""


PARTS = ("unet", "text_encoder", "text_encoder_2")
"""Of a model, each with a learning rate of its own; not every model has all."""


class Network(Protocol):
    """A change of a frozen model that is trained. `multiplier` is the weight a host would give: 0 is the base model."""

    multiplier: float

    def attach(self) -> None:
        """Let the model's outputs include the network. Raises RuntimeError where one is attached already."""
        ...

    def detach(self) -> None:
        """Give the model back as it was, bit for bit."""
        ...

    def flatten(self, parts: Iterable[str], dtype: torch.dtype) -> dict[str, FlatPart]:
        """Lay what is trained of each part of the model side by side, in a fixed order; a part is what a `Target` has.

        dtype: the format that the model computes in. Parts that have nothing are left out. From now on the network
        computes with the flat parts' copies: who changes weights calls `FlatPart.refresh`.
        """
        ...

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors themselves (not copies) that a resumable state must hold, by unique names."""
        ...

    def file_parts(self) -> Iterable[tuple[Target, Mapping[str, torch.Tensor]]]:
        """For every layer the tensors of its file by what follows the layer's name, e.g. "lora_down.weight"."""
        ...

    def before_batch(self, draw: Draw, places: int) -> None:
        """Called before each batch goes through the model: what is random is drawn here, outside any graph.

        places: no layer sees more pixels or tokens of one view than so many.
        """
        ...

    def after_step(self) -> None:
        """Called after each optimizer step: what `before_batch` drew is over; weights may be bounded."""
        ...
