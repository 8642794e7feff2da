"""One Transformer block."""

from collections.abc import Callable

from torch import Tensor, nn

from lm.model.attention import LayerCache, MultiHeadSelfAttention
from lm.model.config import ModelConfig
from lm.model.layers import RMSNorm, SiLUFeedForward, SwiGLU
from lm.model.rope import RotaryPositionEmbedding

Stream = tuple[Tensor, Tensor | None]  # the residual stream, and what has yet to be added to it


class TransformerBlock(nn.Module):
    """Attention and feed-forward, each with its norm, dropout and residual addition.

    Pre-norm (Xiong et al. 2020): x + sublayer(ln(x)). Post-norm (Vaswani et al. 2017): ln(x + sublayer(x)).

    Args:
        config: shape and switches.
        rope: rotates queries and keys; shared by all blocks of a model. None for no position.
    """

    def __init__(self, config: ModelConfig, rope: RotaryPositionEmbedding | None = None) -> None:
        super().__init__()
        has_norm = config.norm == "rmsnorm"
        feed_forward = SwiGLU if config.ffn == "swiglu" else SiLUFeedForward
        self.post_norm = config.norm_position == "post"
        self.ln1 = RMSNorm(config.d_model) if has_norm else nn.Identity()
        self.attn = MultiHeadSelfAttention(config.d_model, config.num_heads, rope, config.attention)
        self.ln2 = RMSNorm(config.d_model) if has_norm else nn.Identity()
        self.ffn = feed_forward(config.d_model, config.ff_width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        token_positions: Tensor | None = None,
        cache: LayerCache | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """(..., T, D) to (..., T, D); the other arguments are those of MultiHeadSelfAttention."""
        if self.post_norm:
            x = self.ln1(x + self.dropout(self.attn(x, token_positions, cache, mask)))
            return self.ln2(x + self.dropout(self.ffn(x)))
        x = x + self.dropout(self.attn(self.ln1(x), token_positions, cache, mask))
        return x + self.dropout(self.ffn(self.ln2(x)))

    def run(self, function: Callable[["TransformerBlock", Stream], Stream], stream: Stream) -> Stream:
        """`function(self, stream)`, for another arrangement of the block: FSDP2 gathers parameters around methods."""
        return function(self, stream)
