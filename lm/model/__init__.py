"""The Transformer language model and every part of it, in plain torch."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lm.model.attention import KVCache as KVCache
    from lm.model.attention import MultiHeadSelfAttention as MultiHeadSelfAttention
    from lm.model.block import TransformerBlock as TransformerBlock
    from lm.model.config import ModelConfig as ModelConfig
    from lm.model.functional import cross_entropy_loss as cross_entropy_loss
    from lm.model.functional import scaled_dot_product_attention as scaled_dot_product_attention
    from lm.model.functional import silu as silu
    from lm.model.functional import softmax as softmax
    from lm.model.layers import Embedding as Embedding
    from lm.model.layers import Linear as Linear
    from lm.model.layers import RMSNorm as RMSNorm
    from lm.model.layers import SiLUFeedForward as SiLUFeedForward
    from lm.model.layers import SwiGLU as SwiGLU
    from lm.model.loss import linear_cross_entropy as linear_cross_entropy
    from lm.model.rope import RotaryPositionEmbedding as RotaryPositionEmbedding
    from lm.model.transformer import TransformerLM as TransformerLM

_HOMES = {
    "Embedding": "layers",
    "KVCache": "attention",
    "Linear": "layers",
    "ModelConfig": "config",
    "MultiHeadSelfAttention": "attention",
    "RMSNorm": "layers",
    "RotaryPositionEmbedding": "rope",
    "SiLUFeedForward": "layers",
    "SwiGLU": "layers",
    "TransformerBlock": "block",
    "TransformerLM": "transformer",
    "cross_entropy_loss": "functional",
    "linear_cross_entropy": "loss",
    "scaled_dot_product_attention": "functional",
    "silu": "functional",
    "softmax": "functional",
}


def __getattr__(name: str) -> Any:
    """Import on first use, so that `lm.model.config` does not import torch (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
