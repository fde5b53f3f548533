"""Loss scaling for fp16, all of it on the device: what overflows is skipped without the host knowing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

_FIRST_SCALE = 2.0**12
_GROWTH = 2.0
_BACKOFF = 0.5
_GROWS_EVERY = 2000
"""As torch.amp.GradScaler has them, but for the first scale."""


class LossScaler:
    """Losses are scaled up so that their gradients don't vanish in fp16; a step whose gradients overflow changes
    nothing, and the scale is halved (Micikevicius et al. 2018, "Mixed Precision Training").

    torch's GradScaler asks the device at every step whether there was an overflow, and waits for the answer.
    """

    def __init__(self, device: torch.device, *, enabled: bool) -> None:
        self._enabled = enabled
        self._scale = torch.full((), _FIRST_SCALE, device=device)
        self._good_steps = torch.zeros((), dtype=torch.int32, device=device)
        self._overflows = torch.zeros((), device=device)

    def is_enabled(self) -> bool:
        return self._enabled

    def get_scale(self) -> float:
        """By what losses are multiplied now; waits for the device."""
        return self._scale.item()

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        return loss * self._scale if self._enabled else loss

    def unscale(self, gradients: Sequence[torch.Tensor]) -> None:
        """Divide the gradients by the scale, and note whether any is not finite."""
        if self._enabled and gradients:
            self._overflows.zero_()
            torch._amp_foreach_non_finite_check_and_unscale_(list(gradients), self._overflows, self._scale.reciprocal())

    def step(self, optimizer: torch.optim.Optimizer, *, masks: bool) -> None:
        """Let the optimizer take its step, unless gradients overflowed. Call after `unscale`.

        masks: weights and state are put back where they overflowed, so that the host need not know. For optimizers
        whose whole state are tensors on the device; their first step, which makes the state, waits for the answer.
        """
        if not self._enabled:
            optimizer.step()
            return
        if masks and self.asks_nothing(optimizer):
            self._masked_step(optimizer)
        elif not self._overflows.item():
            optimizer.step()
        torch._amp_update_scale_(self._scale, self._good_steps, self._overflows, _GROWTH, _BACKOFF, _GROWS_EVERY)

    def asks_nothing(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether a step with masks is taken without waiting for the device: not before the state is there."""
        if not self._enabled:
            return True
        has_state = any(optimizer.state.values())
        return has_state and all(tensor.device == self._scale.device for tensor in _changing(optimizer))

    @torch.no_grad()
    def _masked_step(self, optimizer: torch.optim.Optimizer) -> None:
        changing = _changing(optimizer)
        before = [tensor.detach().clone() for tensor in changing]
        optimizer.step()
        overflows = self._overflows.bool()
        for tensor, kept in zip(changing, before, strict=True):
            tensor.copy_(torch.where(overflows, kept, tensor))

    def state_dict(self) -> dict[str, Any]:
        """As GradScaler's; empty where it is not enabled."""
        if not self._enabled:
            return {}
        return {
            "scale": self.get_scale(),
            "growth_factor": _GROWTH,
            "backoff_factor": _BACKOFF,
            "growth_interval": _GROWS_EVERY,
            "_growth_tracker": int(self._good_steps.item()),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self._scale.fill_(saved["scale"])
        self._good_steps.fill_(saved["_growth_tracker"])


def _changing(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """The tensors that a step changes: weights and state."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    states = [value for state in optimizer.state.values() for value in state.values()]
    return [*weights, *(value for value in states if isinstance(value, torch.Tensor))]
