"""Gradient clipping by global norm (Pascanu et al. 2013)."""

# torch's multi-tensor operations are its own optimizers' tools, but not declared public.
# pyright: reportPrivateImportUsage=false

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lm.optim.adamw import local_part, takes_kernels

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import Placement

_EPS = 1e-6
Layout = tuple[torch.device, torch.dtype, "DeviceMesh | None", "tuple[Placement, ...]"]


def gradient_clipping(parameters: Iterable[Tensor], max_l2_norm: float) -> Tensor:
    """Scale all gradients, in place, by one factor such that their joint l2 norm is at most `max_l2_norm`.

    Returns:
        The norm before clipping, as `clipping_factor` gives it.

    Raises:
        ValueError: max_l2_norm is not above 0.
    """
    clipped = list(parameters)
    norm, factor = clipping_factor(clipped, max_l2_norm)
    for (device, *_), gradients in _alike(clipped).items():
        torch._foreach_mul_(gradients, factor.to(device))
    return norm


def clipping_factor(parameters: Iterable[Tensor], max_l2_norm: float) -> tuple[Tensor, Tensor]:
    """The joint l2 norm of all gradients, and the factor, at most 1, that brings it down to `max_l2_norm`.

    The norm is accumulated in float32 at least, and nothing waits for the device. Of sharded gradients (torch's
    DTensor) it is the norm of the whole ones, which every process has to ask for.

    Returns:
        Two scalar tensors on the first gradient's device; 0 and 1 if there are no gradients.

    Raises:
        ValueError: max_l2_norm is not above 0.
    """
    if not max_l2_norm > 0:
        raise ValueError(f"max_l2_norm is {max_l2_norm}, it must be above 0")
    buckets = _alike(parameters)
    alike = _whole_ones(buckets)
    if alike is not None and takes_kernels(alike):
        from lm.optim.kernels import clipping_factor as kernel

        return kernel(alike, max_l2_norm, _EPS)
    norms: list[Tensor] = []
    for (_, dtype, mesh, placements), gradients in buckets.items():
        found = torch._foreach_norm(gradients, 2, dtype=torch.promote_types(dtype, torch.float32))
        norms.extend(found if mesh is None else [_over_processes(_joint(found), mesh, placements)])
    total = _joint(norms) if norms else torch.tensor(0.0)
    return total, torch.clamp(max_l2_norm / (total + _EPS), max=1.0)


def _alike(parameters: Iterable[Tensor]) -> dict[Layout, list[Tensor]]:
    """Gradients, or this process's parts of them, by what they have in common."""
    buckets: dict[Layout, list[Tensor]] = {}
    for parameter in parameters:
        if (gradient := parameter.grad) is not None:
            layout = getattr(gradient, "device_mesh", None), getattr(gradient, "placements", ())
            buckets.setdefault((gradient.device, gradient.dtype, *layout), []).append(local_part(gradient))
    return buckets


def _whole_ones(buckets: dict[Layout, list[Tensor]]) -> list[Tensor] | None:
    """All gradients, where they are alike and this process has them whole."""
    if len(buckets) != 1:
        return None
    (((_, _, mesh, _), gradients),) = buckets.items()
    return gradients if mesh is None else None


def _joint(norms: Sequence[Tensor]) -> Tensor:
    """The norm of everything that the norms are of."""
    return torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]))


def _over_processes(norm: Tensor, mesh: "DeviceMesh", placements: "tuple[Placement, ...]") -> Tensor:
    """The norm of whole tensors by that of each process's parts, in one exchange."""
    from torch.distributed.tensor import DTensor, Partial, Replicate

    summed = [Partial() if placement.is_shard() else Replicate() for placement in placements]
    return DTensor.from_local(norm.square(), mesh, summed, run_check=False).full_tensor().sqrt()
