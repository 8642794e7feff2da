"""Causal multi-head self-attention and the cache of its keys and values.

Shape letters: B batch, T time of the tokens given, S slots (time of everything attended to), D d_model, H heads,
K head width, L layers; `...` any leading dimensions.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lm.model.config import Attention, ModelConfig
from lm.model.functional import scaled_dot_product_attention
from lm.model.layers import Linear
from lm.model.rope import RotaryPositionEmbedding


class LayerCache(NamedTuple):
    """One layer's keys and values; the slot of a token is its position."""

    keys_BHSK: Tensor
    values_BHSK: Tensor

    def write(self, k_BHTK: Tensor, v_BHTK: Tensor, token_positions_BT: Tensor) -> None:
        """Put each row's new keys and values into the slots `token_positions_BT`; no gradient passes through."""
        slots = token_positions_BT[:, None, :, None].expand_as(k_BHTK)
        self.keys_BHSK.scatter_(2, slots, k_BHTK.detach().to(self.keys_BHSK.dtype))
        self.values_BHSK.scatter_(2, slots, v_BHTK.detach().to(self.values_BHSK.dtype))


class KVCache:
    """Keys and values of what a model has read, for generation one token at a time.

    Row b holds `lengths[b]` tokens. A forward pass writes its T tokens into the slots lengths[b] to
    lengths[b] + T - 1; the caller then adds to `lengths` what it wants to keep. So prompts of different lengths are
    padded on the right: the padding's slots are written again before anything attends to them.

    Args:
        config: the model's shape.
        batch_size: rows B.
        max_length: slots S for each row, at most the model's context length.
        device: where the cache lies.
        dtype: type of keys and values.

    Raises:
        ValueError: max_length exceeds the context.
    """

    def __init__(
        self, config: ModelConfig, batch_size: int, max_length: int, device: torch.device | str, dtype: torch.dtype
    ) -> None:
        if max_length > config.context_length:
            raise ValueError(
                f"a cache of {max_length} tokens exceeds the model's context_length {config.context_length}; "
                f"use at most {config.context_length}"
            )
        shape = (config.num_layers, batch_size, config.num_heads, max_length, config.head_width)
        self.keys_LBHSK = torch.zeros(shape, device=device, dtype=dtype)
        self.values_LBHSK = torch.zeros(shape, device=device, dtype=dtype)
        self.lengths = torch.zeros(batch_size, device=device, dtype=torch.long)
        # Known without asking the device: the first pass needs no mask, as every row starts at position 0.
        self.is_empty = True

    @property
    def batch_size(self) -> int:
        return self.keys_LBHSK.shape[1]

    @property
    def max_length(self) -> int:
        return self.keys_LBHSK.shape[3]

    def layer(self, index: int) -> LayerCache:
        """Views of one layer's keys and values."""
        return LayerCache(self.keys_LBHSK[index], self.values_LBHSK[index])


class MultiHeadSelfAttention(nn.Module):
    """Causal self-attention with heads of width d_model / num_heads (Vaswani et al. 2017, section 3.2.2).

    Args:
        d_model: width of input and output.
        num_heads: heads; divides d_model.
        rope: rotates queries and keys; without it attention knows no positions.
        attention: fused runs torch's kernel, manual `lm.model.scaled_dot_product_attention`.

    Raises:
        ValueError: d_model is not divisible by num_heads.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        rope: RotaryPositionEmbedding | None = None,
        attention: Attention = "fused",
    ) -> None:
        super().__init__()
        if d_model % num_heads:
            raise ValueError(f"d_model {d_model} is not divisible by num_heads {num_heads}; make it a multiple")
        self.num_heads = num_heads
        self.attention = attention
        self.q_proj = Linear(d_model, d_model)
        self.k_proj = Linear(d_model, d_model)
        self.v_proj = Linear(d_model, d_model)
        self.output_proj = Linear(d_model, d_model)
        self.rope = rope

    def forward(
        self,
        x: Tensor,
        token_positions: Tensor | None = None,
        cache: LayerCache | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Each token attends to itself and to what comes before it.

        Args:
            x: (..., T, D); with a cache (B, T, D).
            token_positions: (T,) or (..., T), by default 0 to T - 1; with a cache (B, T).
            cache: takes the new keys and values.
            mask: (B, 1, T, S), True where a token attends to a slot of the cache. Without it the tokens given are
                all there is: right for no cache and for an empty one.

        Returns:
            (..., T, D).
        """
        q, k, v = (
            proj(x).unflatten(-1, (self.num_heads, -1)).transpose(-2, -3)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.rope is not None:
            if token_positions is None:
                token_positions = torch.arange(x.shape[-2], device=x.device)
            positions_1T = token_positions.unsqueeze(-2)  # the same for every head
            q, k = self.rope(q, positions_1T), self.rope(k, positions_1T)
        if cache is not None:
            assert token_positions is not None
            cache.write(k, v, token_positions)
            if mask is not None:
                k, v = cache.keys_BHSK.to(q.dtype), cache.values_BHSK.to(q.dtype)
        heads = self.attend(q, k, v, mask)
        return self.output_proj(heads.transpose(-2, -3).flatten(-2))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """The heads' output, (..., H, T, K), of (..., H, T, K) queries and (..., H, S, K) keys and values."""
        if self.attention == "fused":
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        if mask is None:
            mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
        return scaled_dot_product_attention(q, k, v, mask)
