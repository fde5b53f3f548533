"""How alike pictures are, and whether they are still what they were, by their features.

Legend: N pictures, F features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import normalize


class Likeness:
    """Likeness to the pictures of a concept, from -1 to 1: the mean cosine between features.

    Features are counted from the middle, and in units of the spread, of what the base model draws of ordinary
    things, so 0 is "like any ordinary picture". A picture that is farther out than any of the concept's counts the less
    the farther it is: noise is far out in every direction.
    """

    def __init__(self, concept: torch.Tensor, ordinary: torch.Tensor) -> None:
        """Features (N, F) of the concept's pictures and of ordinary ones."""
        self._middle = ordinary.mean(0)
        self._spread = ordinary.std(0) + 1e-4
        self._longest = self._counted(concept).norm(dim=1).max()
        self._concept = self._directions(concept)

    def of(self, features: torch.Tensor) -> float:
        """Mean likeness of these pictures (N, F) to the concept's."""
        return (self._directions(features) @ self._concept.T).mean().item()

    def among_themselves(self) -> float:
        """Mean likeness of the concept's pictures to one another: as much as can be had."""
        count = len(self._concept)
        if count < 2:
            return 1.0
        cosines = self._concept @ self._concept.T
        return ((cosines.sum() - cosines.trace()) / (count * (count - 1))).item()

    def _directions(self, features: torch.Tensor) -> torch.Tensor:
        counted = self._counted(features)
        lengths = counted.norm(dim=1, keepdim=True).clamp(min=1e-6)
        return counted / lengths * (self._longest / lengths).clamp(max=1)

    def _counted(self, features: torch.Tensor) -> torch.Tensor:
        return (features - self._middle) / self._spread


def retention(features: torch.Tensor, base_features: torch.Tensor, prompt_of: Sequence[int]) -> float:
    """Share of ordinary pictures that are still what their prompt says.

    Row i of both (N, F) was drawn from prompt number `prompt_of[i]`. A picture is right when, of all that the base
    model draws, what is most alike was drawn from the same prompt.
    """
    middle, spread = base_features.mean(0), base_features.std(0) + 1e-4
    own = normalize((features - middle) / spread, dim=1)
    base = normalize((base_features - middle) / spread, dim=1)
    nearest = (own @ base.T).argmax(1).tolist()
    right = sum(prompt_of[found] == prompt for found, prompt in zip(nearest, prompt_of, strict=True))
    return right / len(prompt_of)
