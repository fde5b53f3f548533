"""Lion (Chen et al. 2023, algorithm 2): the sign of a blend of momentum and gradient.

The same as lion-pytorch's, but for two things: a rate of 0 is legal, and the rate may be a tensor on the device, so
that a recorded step follows a schedule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch


class Lion(torch.optim.Optimizer):
    """`lr` is a number or a tensor of one; `weight_decay` is decoupled, as in AdamW."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | torch.Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        assert closure is None, "no loss is computed here"
        for group in self.param_groups:
            lr, (beta1, beta2) = group["lr"], group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "exp_avg" not in state:
                    state["exp_avg"] = torch.zeros_like(parameter)
                momentum = state["exp_avg"]
                parameter.mul_(1.0 - lr * group["weight_decay"])
                update = momentum.mul(beta1).add_(parameter.grad, alpha=1.0 - beta1).sign_()
                parameter.sub_(update.mul_(lr))
                momentum.mul_(beta2).add_(parameter.grad, alpha=1.0 - beta2)
