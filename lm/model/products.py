"""Products with narrow copies of wide matrices, whose gradients come out as wide as the matrices.

Under autocast autograd would round a matrix's gradient to the products' type and widen it again.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lm.model.kernels import has_triton


def wide_product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """a @ b in `dtype`; on CUDA the product itself writes it so, and sums in float32."""
    with torch.autocast(a.device.type, enabled=False):
        if a.is_cuda and a.dtype != dtype:
            return torch.mm(a, b, out_dtype=dtype)
        return (a @ b).to(dtype)


def stacked(weights: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Up to three matrices of one shape, one below the other, in `dtype`; of one that has this type no copy."""
    if len(weights) == 1:
        return weights[0].to(dtype)
    if has_triton(weights[0].device):
        from lm.model.kernels.stacking import stacked as kernel

        return kernel(weights, dtype)
    return torch.cat([weight.to(dtype) for weight in weights])


def kept(weights: Sequence[Tensor], dtype: torch.dtype) -> Sequence[Tensor]:
    """What a backward pass keeps for `stacked`: a narrow copy, or the matrices where they are as narrow already."""
    return weights if weights[0].dtype == dtype else [stacked(weights, dtype)]


def remember(ctx: Any, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Keep what `product_gradients` needs; gives the matrices as one, (F, D), in the type of x."""
    matrices = kept(weights, x.dtype)
    ctx.save_for_backward(x, *matrices)
    ctx.sizes, ctx.wide = [len(weight) for weight in weights], weights[0].dtype
    return stacked(matrices, x.dtype)


def product_gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
    """Those of x and of each matrix, from that of their product."""
    x, *matrices = ctx.saved_tensors
    narrow = stacked(matrices, x.dtype)
    gradient_NF = gradient.reshape(-1, len(narrow))
    of_weights = wide_product(gradient_NF.T, x.reshape(-1, x.shape[-1]), ctx.wide)
    return (gradient_NF @ narrow).view(x.shape), *of_weights.split(ctx.sizes)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor) -> Tensor:
        return wide_product(x, remember(ctx, x, weights).T, x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return product_gradients(ctx, gradients[0])


def product(x: Tensor, *weights: Tensor) -> Tensor:
    """x @ W.T, (..., D) to (..., F), where W are (F, D) matrices one below the other, rounded to the type of x."""
    return _Product.apply(x, *weights)  # pyright: ignore
