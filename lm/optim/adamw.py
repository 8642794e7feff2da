"""AdamW: Adam with bias correction and decoupled weight decay (Loshchilov & Hutter 2019, Algorithm 2)."""

# torch's multi-tensor operations are its own optimizers' tools, but not declared public.
# pyright: reportPrivateImportUsage=false

import math
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

AMPERE = 8  # major compute capability; kernels in Triton want it
_HAS_TRITON = torch.version.hip is None and find_spec("triton") is not None


class AdamW(Optimizer):
    """AdamW over many tensors at once, with the defaults and the arithmetic of `torch.optim.AdamW`.

    Parameters without a gradient are skipped and keep their own count of steps. That count is a Python int, so a step
    never waits for the device and a checkpoint holds primitives and tensors only.

    Attributes:
        gradient_factor: what the next step multiplies gradients by, a scalar tensor: clipping without a pass over
            memory of its own. None, as after each step, for 1.

    Args:
        params: tensors or parameter groups; each group may set its own lr, betas, eps and weight_decay.
        lr: learning rate α, at least 0.
        betas: decay of the running means of the gradient and of its square, each in [0, 1).
        eps: added to the root of the second mean, at least 0.
        weight_decay: λ; each step shrinks the parameter by the factor 1 - αλ.

    Raises:
        ValueError: a hyperparameter lies outside its range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.gradient_factor: Tensor | None = None

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with settings of their own; ValueError if one lies outside its range."""
        settings = {**self.defaults, **param_group}
        for name in ("lr", "eps", "weight_decay"):
            if not settings[name] >= 0:
                raise ValueError(f"AdamW's {name} is {settings[name]}, it must be at least 0")
        for beta in settings["betas"]:
            if not 0 <= beta < 1:
                raise ValueError(f"AdamW's betas are {tuple(settings['betas'])}, each must be at least 0 and below 1")
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; returns the closure's value, if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step_group(group)
        self.gradient_factor = None
        return loss

    def _step_group(self, group: dict[str, Any]) -> None:
        for step, *tensors in self._buckets(group["params"]):
            _updater(tensors)(
                *tensors,
                step=step,
                lr=group["lr"],
                betas=group["betas"],
                eps=group["eps"],
                weight_decay=group["weight_decay"],
                gradient_factor=self.gradient_factor,
            )

    def _buckets(
        self, parameters: list[Tensor]
    ) -> Iterable[tuple[int, list[Tensor], list[Tensor], list[Tensor], list[Tensor]]]:
        """Count this step; yields it with parameters, gradients and moments that one multi-tensor call can take."""
        buckets: dict[Any, tuple[int, list[Tensor], list[Tensor], list[Tensor], list[Tensor]]] = {}
        for parameter in parameters:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                state["step"] = 0
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
            state["step"] += 1
            key = (parameter.device, parameter.dtype, state["step"])
            bucket = buckets.setdefault(key, (state["step"], [], [], [], []))
            row = (parameter, parameter.grad, state["exp_avg"], state["exp_avg_sq"])
            for column, tensor in zip(bucket[1:], row, strict=True):
                column.append(local_part(tensor))
        return buckets.values()


def local_part(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor (torch's DTensor, which is slow to import), or the tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor  # pyright: ignore


def _are_plain(tensors: Iterable[Tensor]) -> bool:
    return all(tensor.dtype == torch.float32 and tensor.is_contiguous() for tensor in tensors)


def takes_kernels(tensors: list[Tensor]) -> bool:
    """Whether `lm.optim.kernels` takes these tensors, which are all on one device."""
    device = tensors[0].device
    if device.type != "cuda" or not _HAS_TRITON or torch.cuda.get_device_properties(device).major < AMPERE:
        return False
    return _are_plain(tensors)


def _updater(tensors: list[list[Tensor]]) -> Callable[..., None]:
    """The fastest way to update tensors of one device and type."""
    first = tensors[0][0]
    if first.device.type == "cpu" and all(map(_are_plain, tensors)):
        from lm.optim.native import update

        return update
    if all(map(takes_kernels, tensors)):
        from lm.optim.kernels import update

        return update
    return _update_together


def _update_together(
    parameters: list[Tensor],
    gradients: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    gradient_factor: Tensor | None,
) -> None:
    """`adamw_update` for many tensors of one device, type and step: one kernel an operation instead of one a tensor."""
    beta1, beta2 = betas
    if gradient_factor is not None:
        gradients = list(torch._foreach_mul(gradients, gradient_factor.to(gradients[0].device)))
    torch._foreach_lerp_(exp_avgs, gradients, 1 - beta1)
    torch._foreach_mul_(exp_avg_sqs, beta2)
    torch._foreach_addcmul_(exp_avg_sqs, gradients, gradients, 1 - beta2)
    denominators = torch._foreach_sqrt(exp_avg_sqs)
    torch._foreach_div_(denominators, math.sqrt(1 - beta2**step))
    torch._foreach_add_(denominators, eps)
    torch._foreach_mul_(parameters, 1 - lr * weight_decay)
    torch._foreach_addcdiv_(parameters, exp_avgs, denominators, -lr / (1 - beta1**step))


def adamw_update(
    parameter: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """One step of one tensor, in place, as the paper writes it; the reference for `AdamW`. Needs `torch.no_grad`.

    Args:
        parameter, gradient, exp_avg, exp_avg_sq: θ, g, m, v, all of one shape.
        step: number of this step, from 1.
        lr, betas, eps, weight_decay: as in `AdamW`.
    """
    beta1, beta2 = betas
    exp_avg.copy_(beta1 * exp_avg + (1 - beta1) * gradient)
    exp_avg_sq.copy_(beta2 * exp_avg_sq + (1 - beta2) * gradient**2)
    mean = exp_avg / (1 - beta1**step)
    variance = exp_avg_sq / (1 - beta2**step)
    parameter.sub_(lr * (mean / (variance.sqrt() + eps) + weight_decay * parameter))


def parameter_groups(named_parameters: Iterable[tuple[str, Tensor]], weight_decay: float) -> list[dict[str, Any]]:
    """Groups for `AdamW`: matrices and embeddings decay, vectors (the norms' gains) do not.

    Frozen parameters are left out; so is a group without parameters.
    """
    trained = [parameter for _, parameter in named_parameters if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
