"""Gradient clipping by global norm (Pascanu et al. 2013)."""

# torch's multi-tensor operations are its own optimizers' tools, but not declared public.
# pyright: reportPrivateImportUsage=false

from collections.abc import Iterable

import torch
from torch import Tensor

_EPS = 1e-6


def gradient_clipping(parameters: Iterable[Tensor], max_l2_norm: float) -> Tensor:
    """Scale all gradients, in place, by one factor such that their joint l2 norm is at most `max_l2_norm`.

    The norm is accumulated in float32 at least, and nothing waits for the device.

    Returns:
        The norm before clipping, a scalar tensor on the first gradient's device; 0 if there are no gradients.

    Raises:
        ValueError: max_l2_norm is not above 0.
    """
    if not max_l2_norm > 0:
        raise ValueError(f"max_l2_norm is {max_l2_norm}, it must be above 0")
    buckets: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            buckets.setdefault((parameter.grad.device, parameter.grad.dtype), []).append(parameter.grad)
    if not buckets:
        return torch.tensor(0.0)
    norms: list[Tensor] = []
    for (_, dtype), gradients in buckets.items():
        norms.extend(torch._foreach_norm(gradients, 2, dtype=torch.promote_types(dtype, torch.float32)))
    total = torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]))
    scale = torch.clamp(max_l2_norm / (total + _EPS), max=1.0)
    for (device, _), gradients in buckets.items():
        torch._foreach_mul_(gradients, scale.to(device))
    return total
