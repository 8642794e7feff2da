"""Linear, Embedding, RMSNorm and the two feed-forwards.

Shape letters: D d_model, F d_ff, V vocabulary; `...` any leading dimensions.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lm.model.functional import silu, widen

PIECE = 2**22  # numbers that are compared at a time, which bounds the memory that it takes


def truncated_normal(rows: int, columns: int, std: float) -> nn.Parameter:
    """A (rows, columns) parameter from N(0, std^2), redrawn beyond 3 std.

    torch 2.13's own draws the whole matrix anew each time, which takes five times as long.
    """
    weight = torch.empty(rows, columns).normal_(0.0, std)
    for numbers in weight.view(-1).split(PIECE) if not weight.is_meta else ():
        outside = (numbers.abs() > 3 * std).nonzero().squeeze(1)
        while len(outside):
            numbers[outside] = redrawn = weight.new_empty(len(outside)).normal_(0.0, std)
            outside = outside[redrawn.abs() > 3 * std]
    return nn.Parameter(weight)


def linear_std(d_in: int, d_out: int) -> float:
    """Initial standard deviation of a projection's weights (Glorot and Bengio 2010)."""
    return math.sqrt(2 / (d_in + d_out))


class Linear(nn.Module):
    """y = W x without a bias; `weight` is (d_out, d_in)."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.weight = truncated_normal(d_out, d_in, linear_std(d_in, d_out))

    def forward(self, x: Tensor) -> Tensor:
        """(..., d_in) to (..., d_out)."""
        return x @ self.weight.T


class Embedding(nn.Module):
    """One row of `weight` (V, D) for each token id."""

    def __init__(self, vocab_size: int, d_model: int) -> None:
        super().__init__()
        self.weight = truncated_normal(vocab_size, d_model, 1.0)

    def forward(self, token_ids: Tensor) -> Tensor:
        """(...) ids in [0, V) to (..., D)."""
        # Plain indexing would take -1 for the last row, and its backward pass is slower.
        return F.embedding(token_ids, self.weight)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, computed in float32 (Zhang and Sennrich 2019)."""

    def __init__(self, d_model: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D), in the type of x."""
        wide = widen(x)
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * scale * self.weight).to(x.dtype)


class SwiGLU(nn.Module):
    """w2(silu(w1 x) * w3 x) (Shazeer 2020); 3 D F parameters."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.w1 = Linear(d_model, d_ff)
        self.w2 = Linear(d_ff, d_model)
        self.w3 = Linear(d_model, d_ff)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        return self.w2(silu(self.w1(x)) * self.w3(x))


class SiLUFeedForward(nn.Module):
    """w2(silu(w1 x)), without a gate; 2 D F parameters."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.w1 = Linear(d_model, d_ff)
        self.w2 = Linear(d_ff, d_model)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        return self.w2(silu(self.w1(x)))
