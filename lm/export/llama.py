"""What a Llama of Hugging Face transformers is in our terms: names of weights, and the order of rotated rows.

Ours rotates neighbouring rows of a head as pairs (Su et al. 2021), transformers' Llama row i with row i + K/2. The
same rows in another order give the same products of queries and keys, so the model stays the same.

Shape letters: D d_model, K head width.
"""

import re

from torch import Tensor

_MODEL = {
    "token_embeddings.weight": "model.embed_tokens.weight",
    "ln_final.weight": "model.norm.weight",
    "lm_head.weight": "lm_head.weight",
}
_LAYER = {
    "attn.q_proj": "self_attn.q_proj",
    "attn.k_proj": "self_attn.k_proj",
    "attn.v_proj": "self_attn.v_proj",
    "attn.output_proj": "self_attn.o_proj",
    "ln1": "input_layernorm",
    "ln2": "post_attention_layernorm",
    "ffn.w1": "mlp.gate_proj",
    "ffn.w2": "mlp.down_proj",
    "ffn.w3": "mlp.up_proj",
}
ROTATED = re.compile(r"layers\.\d+\.attn\.[qk]_proj\.weight")


def llama_name(name: str) -> str:
    """The name in transformers' Llama of our weight `name`."""
    if name in _MODEL:
        return _MODEL[name]
    layers, index, part = name.removesuffix(".weight").split(".", 2)
    return f"model.{layers}.{index}.{_LAYER[part]}.weight"


def halves_from_pairs(weight_DD: Tensor, num_heads: int) -> Tensor:
    """Our rows of a query or key projection, (heads * K, D), in transformers' order."""
    return weight_DD.unflatten(0, (num_heads, -1, 2)).transpose(1, 2).reshape(weight_DD.shape)


def pairs_from_halves(weight_DD: Tensor, num_heads: int) -> Tensor:
    """The inverse of `halves_from_pairs`."""
    return weight_DD.unflatten(0, (num_heads, 2, -1)).transpose(1, 2).reshape(weight_DD.shape)
