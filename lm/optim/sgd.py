"""Stochastic gradient descent whose learning rate decays with the root of the step (CS336, assignment 1)."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT


class SGD(Optimizer):
    """θ ← θ - lr / sqrt(t + 1) · gradient, with t = 0 at a parameter's first step.

    Args:
        params: tensors or parameter groups.
        lr: learning rate of the first step, at least 0.

    Raises:
        ValueError: lr is negative.
    """

    def __init__(self, params: ParamsT, lr: float = 1e-3) -> None:
        super().__init__(params, {"lr": lr})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with a learning rate of their own; ValueError if it is negative."""
        lr = param_group.get("lr", self.defaults["lr"])
        if not lr >= 0:
            raise ValueError(f"SGD's lr is {lr}, it must be at least 0")
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; returns the closure's value, if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                t = state.get("t", 0)
                parameter.add_(parameter.grad, alpha=-group["lr"] / math.sqrt(t + 1))
                state["t"] = t + 1
        return loss
