"""The model's functions without weights: silu, softmax, attention, cross-entropy.

Sums of exponentials run in float32 (float64 for float64 inputs) whatever the input's type, and results come back in
that type, except for the loss.

Shape letters: T queries, S keys, K head width, V vocabulary; `...` any leading dimensions.
"""

import math

import torch
from torch import Tensor


def widen(x: Tensor) -> Tensor:
    """`x` in float32, or as it is where it is more precise already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x), elementwise (Hendrycks and Gimpel 2016)."""
    return x * torch.sigmoid(x)


def softmax(x: Tensor, dim: int) -> Tensor:
    """exp(x) over its sum along `dim`; the maximum is subtracted first, so large inputs do not overflow.

    Args:
        x: any shape.
        dim: the dimension whose entries sum to 1.
    """
    wide = widen(x)
    exps = torch.exp(wide - wide.amax(dim, keepdim=True).detach())
    return (exps / exps.sum(dim, keepdim=True)).to(x.dtype)


def scaled_dot_product_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(K)) v (Vaswani et al. 2017, equation 1).

    Args:
        q: (..., T, K).
        k: (..., S, K).
        v: (..., S, any width).
        mask: boolean, broadcastable to (..., T, S), True where the query attends to the key. A query that attends
            to nothing gets zeros.

    Returns:
        (..., T, width of v).
    """
    scores_TS = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if mask is None:
        return softmax(scores_TS, -1) @ v
    # The lowest finite number instead of -inf keeps a row without any True free of NaN, in the gradient too.
    weights_TS = softmax(scores_TS.masked_fill(~mask, torch.finfo(scores_TS.dtype).min), -1)
    return weights_TS.masked_fill(~mask, 0) @ v


def cross_entropy_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean of -ln softmax(logits)[target] over all leading dimensions, in nats, float32 or wider.

    Args:
        logits: (..., V), unnormalised.
        targets: (...), ids in [0, V).

    Raises:
        ValueError: the leading dimensions differ.
    """
    if logits.shape[:-1] != targets.shape:
        raise ValueError(
            f"targets have shape {tuple(targets.shape)}; logits of shape {tuple(logits.shape)} "
            f"need {tuple(logits.shape[:-1])}"
        )
    wide = widen(logits)
    shifted = wide - wide.amax(-1, keepdim=True).detach()
    chosen = shifted.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return (shifted.exp().sum(-1).log() - chosen).mean()
