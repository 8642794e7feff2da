"""Muon: momentum made orthogonal, for matrices (Jordan et al. 2024), beside AdamW for everything else."""

# torch's multi-tensor operations are its own optimizers' tools, but not declared public.
# pyright: reportPrivateImportUsage=false

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from lm.optim.adamw import AdamW, parameter_groups

# Jordan's quintic a x + b x³ + c x⁵: five rounds bring any singular value above 0.01 or so between 0.68 and 1.13.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_ROUNDS = 5
# Root mean square of AdamW's usual updates, which Muon's take on (Liu et al. 2025, section 2.2).
_UPDATE_RMS = 0.2
_EPS = 1e-7
_TOKEN_MATRICES = ("token_embeddings", "lm_head")


def orthogonalize(matrices: Tensor) -> Tensor:
    """About U Vᵀ of each matrix U S Vᵀ: every singular value near 1, by Newton and Schulz's iteration.

    Args:
        matrices: (N, R, C), of any scale.

    Returns:
        (N, R, C), in bfloat16 on CUDA, elsewhere in the type given.
    """
    x = matrices.to(torch.bfloat16) if matrices.is_cuda else matrices
    is_tall = x.shape[-2] > x.shape[-1]
    if is_tall:
        x = x.mT
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + _EPS)  # no singular value above 1
    for _ in range(_ROUNDS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=_B, alpha=_C), x, beta=_A)
    return x.mT if is_tall else x


class Muon(AdamW):
    """Parameter groups with `orthogonal` True take Muon's step, others AdamW's.

    Muon's step: M ← μ M + (1 - μ) G, then W ← (1 - αλ) W - α 0.2 sqrt(max(R, C)) O(μ M + (1 - μ) G) for a matrix of R
    rows and C columns, where O is `orthogonalize`. The factor gives every update the root mean square of AdamW's, so
    that one learning rate and one weight decay serve both.

    Args:
        params: tensors or parameter groups, as for AdamW; see `muon_groups`.
        lr, betas, eps, weight_decay: as for AdamW; Muon's step uses α = lr and λ = weight_decay.
        momentum: μ, in [0, 1).

    Raises:
        ValueError: a hyperparameter lies outside its range, or an orthogonal group holds what is no matrix.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        momentum: float = 0.95,
    ) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"Muon's momentum is {momentum}, it must be at least 0 and below 1")
        self.momentum = momentum
        super().__init__(params, lr, betas, eps, weight_decay)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters; ValueError if a setting lies outside its range or an orthogonal parameter is no matrix."""
        super().add_param_group({"orthogonal": False, **param_group})
        group = self.param_groups[-1]
        if group["orthogonal"] and any(parameter.ndim != 2 for parameter in group["params"]):
            raise ValueError("Muon's step is for matrices; put parameters of other shapes into a group of their own")

    def _step_group(self, group: dict[str, Any]) -> None:
        if not group["orthogonal"]:
            super()._step_group(group)
            return
        alike: dict[Any, list[Tensor]] = {}  # matrices that fit into one tensor
        for parameter in group["params"]:
            if parameter.grad is not None:
                alike.setdefault((parameter.shape, parameter.device, parameter.dtype), []).append(parameter)
        for parameters in alike.values():
            self._step_alike(parameters, group["lr"], group["weight_decay"])

    def _step_alike(self, parameters: list[Tensor], lr: float, weight_decay: float) -> None:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self.gradient_factor is not None:
            gradients = list(torch._foreach_mul(gradients, self.gradient_factor.to(gradients[0].device)))
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        momenta = [self.state[parameter]["momentum"] for parameter in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - self.momentum)
        updates = orthogonalize(torch.stack(torch._foreach_lerp(gradients, momenta, self.momentum)))
        torch._foreach_mul_(parameters, 1 - lr * weight_decay)
        scale = _UPDATE_RMS * math.sqrt(max(parameters[0].shape))
        torch._foreach_add_(parameters, list(updates.to(parameters[0].dtype)), alpha=-lr * scale)


def muon_groups(named_parameters: Iterable[tuple[str, Tensor]], weight_decay: float) -> list[dict[str, Any]]:
    """Groups for `Muon`: the blocks' matrices are orthogonal; embeddings and output projection, whose rows are
    tokens, take AdamW's step, and so do vectors, which do not decay. Frozen parameters are left out.
    """
    named = list(named_parameters)
    inner = [(n, p) for n, p in named if p.requires_grad and p.ndim == 2 and n.split(".")[-2] not in _TOKEN_MATRICES]
    matrices = {id(parameter) for _, parameter in inner}
    groups = [{**group, "orthogonal": True} for group in parameter_groups(inner, weight_decay)]
    return groups + parameter_groups([(n, p) for n, p in named if id(p) not in matrices], weight_decay)
