"""The trained tensors of a part of the model in one buffer, and their gradients in another.

One optimizer call, one clip, one reduce over processes and one cast a step, however many layers there are. Nothing of
this ever moves: CUDA graphs know addresses.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn


class FlatPart:
    """Parameters side by side in the order given. Legend: n numbers in all of them.

    weights          (n,) float32, a parameter of its own whose `.grad` is `gradients`; the optimizer's masters
    copy             (n,) the weights in the number format that is computed with, as of the last `refresh`;
                     the weights themselves where that is float32
    copy_gradients   (n,) what a backward pass adds its gradients to, in the same format
    gradients        (n,) float32, what the optimizer works with; each parameter's `.grad` is a view of it.
                     `copy_gradients` itself where that is float32. Else there from `gather` to `forget`, when nothing
                     is there of what a backward pass needs; or always, once `keep_sums` was called
    """

    gradients: torch.Tensor | None

    def __init__(self, parameters: Mapping[str, nn.Parameter], dtype: torch.dtype = torch.float32) -> None:
        """Each parameter (float32) becomes a view of `weights`, with the numbers it has. Names must be unique."""
        self.parameters = dict(parameters)
        own = [parameter.detach() for parameter in self.parameters.values()]
        self.sizes = [tensor.numel() for tensor in own]
        self.weights = nn.Parameter(torch.cat([tensor.flatten() for tensor in own]))
        self._is_float32 = dtype == torch.float32
        self.copy = self.weights.detach() if self._is_float32 else self.weights.detach().to(dtype)
        self.copy_gradients = torch.zeros_like(self.copy)
        self._keeps_sums = False
        weights = self.split(self.weights.detach())
        for name, parameter in self.parameters.items():
            parameter.data = weights[name]
        self.gradients = None
        if self._is_float32:
            self._hold(self.copy_gradients)

    def _hold(self, gradients: torch.Tensor) -> None:
        self.gradients = self.weights.grad = gradients
        views = self.split(gradients)
        for name, parameter in self.parameters.items():
            parameter.grad = views[name]

    def keep_sums(self) -> None:
        """From now on `gradients` stays: for steps of several backward passes, whose sums are too fine for `copy`'s
        format, and for what looks at the gradients of single parameters.
        """
        if not self._is_float32 and not self._keeps_sums:
            self._hold(torch.zeros_like(self.weights, requires_grad=False))
            self._keeps_sums = True  # not before: there may be no memory for it

    def split(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """Views of (n,) numbers by the names, and in the shapes, of the parameters."""
        pieces = zip(self.parameters.items(), flat.split(self.sizes), strict=True)
        return {name: piece.view(parameter.shape) for (name, parameter), piece in pieces}

    @torch.no_grad()
    def refresh(self) -> None:
        """Bring `copy` up to date: before the first forward pass after the weights changed."""
        if not self._is_float32:
            self.copy.copy_(self.weights)

    @torch.no_grad()
    def collect(self) -> None:
        """After each backward pass: add what it left in `copy_gradients` to `gradients`, where sums are kept."""
        if self._keeps_sums and self.gradients is not None:
            self.gradients.add_(self.copy_gradients)
            self.copy_gradients.zero_()

    @torch.no_grad()
    def gather(self) -> None:
        """After the last backward pass of a step: let `gradients` be there. What an update left that did not come to
        its end, such as one that could not be recorded, is made anew.
        """
        if not (self._is_float32 or self._keeps_sums):
            self.gradients = self.weights.grad = self.copy_gradients.float()

    def forget(self) -> None:
        """Set all gradients to zero, where they are."""
        self.copy_gradients.zero_()
        if self._keeps_sums and self.gradients is not None:
            self.gradients.zero_()
        elif not self._is_float32:
            self.gradients = self.weights.grad = None


def gradients(parts: Iterable[FlatPart]) -> list[torch.Tensor]:
    """The gradients of all parts, one tensor (n,) each: what processes add up, and what is clipped. To be there, they
    have been gathered or are kept.
    """
    return [part.gradients for part in parts if part.gradients is not None]


@torch.no_grad()
def clip(parts: Iterable[FlatPart], largest: float) -> torch.Tensor:
    """Shrink all gradients by one factor where their norm is over `largest`; returns the norm before, on the device.

    As torch's `clip_grad_norm_`, but for the order in which squares are added up. Nothing is read back.
    """
    every = gradients(parts)
    norms = [torch.linalg.vector_norm(gradient) for gradient in every]
    norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    shrink = (largest / (norm + 1e-6)).clamp(max=1.0)
    for gradient in every:
        gradient.mul_(shrink)
    return norm


def join_optimizer(
    tensors: Mapping[str, torch.Tensor], scalars: Mapping[str, int | float], parts: Sequence[FlatPart]
) -> tuple[dict[str, torch.Tensor], dict[str, int | float]]:
    """What an optimizer kept for each parameter (`<parameter index>.<what>`, as `state.flatten_optimizer` names it),
    as one that has the parts' `weights` keeps it: states of trainings begun before there were flat parts have that.

    A count of steps, which is the same for all, stays one number. A parameter that an optimizer knows nothing of, as
    it never had a gradient, has zeros.
    """
    joined: dict[str, torch.Tensor] = {}
    counts: dict[str, int | float] = {}
    first = 0
    for index, part in enumerate(parts):
        places = range(first, first + len(part.sizes))
        first = places.stop
        kinds = {key.partition(".")[2] for key in tensors if int(key.partition(".")[0]) in places}
        for what in sorted(kinds):
            kept = [tensors.get(f"{place}.{what}") for place in places]
            joined[f"{index}.{what}"] = _joined(kept, part.sizes)
        for key, value in scalars.items():
            place, _, what = key.partition(".")
            if int(place) in places:
                counts[f"{index}.{what}"] = value
    return joined, counts


def _joined(kept: Sequence[torch.Tensor | None], sizes: Sequence[int]) -> torch.Tensor:
    """Prodigy keeps a single 0 for a parameter that began as zeros: so a number stands for as many as there are."""
    known = [tensor for tensor in kept if tensor is not None]
    if all(tensor.ndim == 0 for tensor in known):
        return known[0]
    zero = torch.zeros((), dtype=known[0].dtype)
    return torch.cat(
        [(zero if own is None else own).flatten().expand(size) for own, size in zip(kept, sizes, strict=True)]
    )
