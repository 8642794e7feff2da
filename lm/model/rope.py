"""Rotary position embedding."""

import torch
from torch import Tensor, nn


class RotaryPositionEmbedding(nn.Module):
    """Rotates each pair (x[2i], x[2i+1]) by position * theta^(-2i / d_k) (Su et al. 2021, section 3.2.2).

    The products of rotated queries and keys depend on their positions' difference only.

    Args:
        theta: base of the wavelengths.
        d_k: width of what is rotated, even.
        max_seq_len: positions 0 to max_seq_len - 1 are precomputed.

    Raises:
        ValueError: d_k is odd.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, theta: float, d_k: int, max_seq_len: int) -> None:
        super().__init__()
        if d_k % 2:
            raise ValueError(f"d_k is {d_k}; rotary embedding turns pairs, so it must be even")
        frequencies = float(theta) ** (-torch.arange(0, d_k, 2, dtype=torch.float64) / d_k)
        angles = torch.outer(torch.arange(max_seq_len, dtype=torch.float64), frequencies)
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)

    def forward(self, x: Tensor, token_positions: Tensor) -> Tensor:
        """Rotate x; the arithmetic is float32, the result has the type of x.

        Args:
            x: (..., T, d_k).
            token_positions: (..., T), broadcastable to x without its last dimension; in [0, max_seq_len).

        Returns:
            (..., T, d_k).
        """
        # In float32, so that the products below are, whatever x is.
        cos, sin = self.cos[token_positions], self.sin[token_positions]
        even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1)
        return turned.flatten(-2).to(x.dtype)
