"""Lion (Chen et al. 2023, program 1): steps by the sign of a momentum, so that only one number a weight is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch


class Lion(torch.optim.Optimizer):
    """The same numbers as lion-pytorch's; but a rate of 0 is legal, and a rate may be a tensor on the device."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | torch.Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """u = sign(b1 m + (1 - b1) g); w = w (1 - rate x decay) - rate x u; m = b2 m + (1 - b2) g."""
        assert closure is None, "the loss is computed before"
        for group in self.param_groups:
            rate, (beta1, beta2) = group["lr"], group["betas"]
            for weights in group["params"]:
                if weights.grad is None:
                    continue
                state = self.state[weights]
                if not state:
                    state["exp_avg"] = torch.zeros_like(weights)
                momentum = state["exp_avg"]
                direction = momentum.mul(beta1).add_(weights.grad, alpha=1 - beta1).sign_()
                weights.mul_(1 - rate * group["weight_decay"]).sub_(direction.mul_(rate))
                momentum.mul_(beta2).add_(weights.grad, alpha=1 - beta2)
