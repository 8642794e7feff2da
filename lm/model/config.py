"""The model's shape and switches. Imports no torch, so that counting parameters and `--help` stay fast."""

from dataclasses import dataclass
from typing import Literal, get_args

Norm = Literal["rmsnorm", "none"]
NormPosition = Literal["pre", "post"]
Position = Literal["rope", "none"]
FeedForward = Literal["swiglu", "silu"]
Attention = Literal["fused", "manual"]


@dataclass(frozen=True)
class ModelConfig:
    """Shape and switches of a TransformerLM.

    Args:
        vocab_size: token ids the model knows.
        context_length: most tokens the model sees at once.
        d_model: width of the residual stream.
        num_layers: Transformer blocks.
        num_heads: attention heads per block; divides d_model.
        d_ff: width inside the feed-forward; by default 8/3 d_model rounded up to a multiple of 64 for swiglu, and
            4 d_model for silu, which has the same number of parameters before the rounding.
        rope_theta: base of the rotary wavelengths.
        norm: rmsnorm, or none to leave out every normalisation.
        norm_position: pre normalises the input of each sublayer, post its sum with the residual.
        position: rope rotates queries and keys, none gives no position (NoPE).
        ffn: swiglu (gated, three matrices) or silu (two matrices).
        tie_embeddings: one matrix for the token embeddings and the output projection.
        dropout: share of the embeddings' and of each sublayer's output set to zero in training.
        attention: fused runs torch's kernel, manual our own readable function; both give the same.

    Raises:
        ValueError: a size is below 1, sizes do not fit each other, or a switch has an unknown value.
    """

    vocab_size: int = 10_000
    context_length: int = 256
    d_model: int = 512
    num_layers: int = 4
    num_heads: int = 16
    d_ff: int | None = None
    rope_theta: float = 10_000.0
    norm: Norm = "rmsnorm"
    norm_position: NormPosition = "pre"
    position: Position = "rope"
    ffn: FeedForward = "swiglu"
    tie_embeddings: bool = False
    dropout: float = 0.0
    attention: Attention = "fused"

    def __post_init__(self) -> None:
        for name in ("vocab_size", "context_length", "d_model", "num_layers", "num_heads", "d_ff", "rope_theta"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}; it must be above 0")
        switches = {
            "norm": Norm,
            "norm_position": NormPosition,
            "position": Position,
            "ffn": FeedForward,
            "attention": Attention,
        }
        for name, choices in switches.items():
            if getattr(self, name) not in get_args(choices):
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose from {', '.join(get_args(choices))}")
        if self.d_model % self.num_heads:
            raise ValueError(
                f"d_model {self.d_model} is not divisible by num_heads {self.num_heads}; "
                f"change one so that it is a multiple"
            )
        if self.position == "rope" and self.head_width % 2:
            raise ValueError(
                f"the head width d_model / num_heads is {self.head_width}, but rope needs an even one; "
                f"change num_heads, or set position to none"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be at least 0 and below 1")

    @property
    def head_width(self) -> int:
        """Width K of one head."""
        return self.d_model // self.num_heads

    @property
    def ff_width(self) -> int:
        """Width F inside the feed-forward: `d_ff`, or its default."""
        if self.d_ff is not None:
            return self.d_ff
        if self.ffn == "silu":
            return 4 * self.d_model
        return 64 * -(-8 * self.d_model // (3 * 64))
