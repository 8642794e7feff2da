"""A training block arranged for speed: the same function as `lm.model.TransformerBlock`, held to it by tests.

Queries, keys and values come from one product, and so do SwiGLU's two openings; each packed matrix is put together from
the block's parameters as it is cast to the products' type, so checkpoints keep their keys. A sublayer's output is added
to the residual stream where the next norm reads it, in one pass.

On NVIDIA GPUs all but the products runs in kernels of ours (`lm.model.kernels`). Elsewhere the packed matrix has each
head's even rows before its odd ones, in queries and keys alike, which leaves their products as they are: the rotation
then turns two halves that lie in one piece each, instead of every other number.

Shape letters: B batch, T time, D d_model, H heads, K head width, F d_ff.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lm.model.attention import MultiHeadSelfAttention
from lm.model.block import Stream, TransformerBlock
from lm.model.functional import widen
from lm.model.kernels import has_triton
from lm.model.layers import RMSNorm, SiLUFeedForward, SwiGLU
from lm.model.products import product
from lm.model.rope import RotaryPositionEmbedding

KERNEL_TIMES = {16: 2048, 32: 2048, 64: 1024, 128: 512}  # tokens by width of a head; beyond, cuDNN's is faster


def fast_block(block: TransformerBlock, stream: Stream, packed: bool = True) -> Stream:
    """`block` of the residual stream, for tokens at positions 0 to T - 1 that attend to each other only.

    Args:
        block: the block.
        stream: (B, T, D) each.
        packed: multiply by packed matrices, which are kept for the backward pass, and take kernels where there are any;
            or else multiply by the parameters, in operations that torch.compile sees through.
    """
    if block.post_norm:
        x_BTD = stream[0]
        x_BTD = add_norm(block.ln1, (x_BTD, block.dropout(fast_attention(block.attn, x_BTD, packed))), packed)[1]
        return add_norm(block.ln2, (x_BTD, block.dropout(fast_feed_forward(block.ffn, x_BTD, packed))), packed)[1], None
    x_BTD, normed_BTD = add_norm(block.ln1, stream, packed)
    stream = x_BTD, block.dropout(fast_attention(block.attn, normed_BTD, packed))
    x_BTD, normed_BTD = add_norm(block.ln2, stream, packed)
    return x_BTD, block.dropout(fast_feed_forward(block.ffn, normed_BTD, packed))


def add_norm(norm: nn.Module, stream: Stream, by_kernel: bool = True) -> tuple[Tensor, Tensor]:
    """The stream's sum, and its norm; by a kernel where there is one, unless that is not wanted."""
    x_BTD, delta_BTD = stream
    if by_kernel and isinstance(norm, RMSNorm) and has_triton(x_BTD.device):
        from lm.model.kernels.norm import add_norm as kernel

        return kernel(x_BTD, delta_BTD, norm.weight, norm.eps)
    x_BTD = x_BTD if delta_BTD is None else x_BTD + delta_BTD
    return x_BTD, norm(x_BTD)


def fast_embedding(embedding: nn.Module, token_ids: Tensor) -> Tensor:
    """`embedding(token_ids)` in the type of the residual stream: under autocast the products'."""
    weight_VD, kind = embedding.weight, token_ids.device.type
    assert isinstance(weight_VD, Tensor)
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight_VD.dtype
    if has_triton(token_ids.device):
        from lm.model.kernels.embedding import embedding as kernel

        return kernel(token_ids, weight_VD, dtype)
    return embedding(token_ids).to(dtype)


def fast_attention(attn: MultiHeadSelfAttention, x_BTD: Tensor, packed: bool) -> Tensor:
    """`attn(x)`, (B, T, D) to (B, T, D)."""
    if packed and has_triton(x_BTD.device) and attn.attention == "fused":
        return product(attention_by_kernels(attn, x_BTD).flatten(-2), attn.output_proj.weight)
    by_halves = attn.rope is not None
    if packed:
        q, k, v = (x_BTD @ packed_projections(attn, by_halves).T).unflatten(-1, (3, attn.num_heads, -1)).unbind(2)
    else:
        projections = (attn.q_proj, attn.k_proj, attn.v_proj)
        q, k, v = (projection(x_BTD).unflatten(-1, (attn.num_heads, -1)) for projection in projections)
        if by_halves:
            q, k = (x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2) for x in (q, k))
    if attn.rope is not None:
        q, k = rotate_halves(attn.rope, q), rotate_halves(attn.rope, k)
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    heads_BHTK = attend_on_cpu(attn, q, k, v) if x_BTD.device.type == "cpu" else attn.attend(q, k, v)
    return attn.output_proj(heads_BHTK.transpose(1, 2).flatten(-2))


def attention_by_kernels(attn: MultiHeadSelfAttention, x_BTD: Tensor) -> Tensor:
    """The heads' output, (B, T, H, K): by our kernel where texts are short, by torch's for longer ones."""
    from lm.model.kernels.projection import projection

    weights = attn.q_proj.weight, attn.k_proj.weight, attn.v_proj.weight
    tables = (None, None) if attn.rope is None else (attn.rope.cos, attn.rope.sin)
    qkv_BT3HK = projection(x_BTD, weights, attn.num_heads, *tables)
    if takes_kernel(attn, x_BTD):
        from lm.model.kernels.attention import causal_attention

        return causal_attention(qkv_BT3HK, *tables)
    from lm.model.kernels.rope import long_attention

    return long_attention(qkv_BT3HK, *tables)


def takes_kernel(attn: MultiHeadSelfAttention, x_BTD: Tensor) -> bool:
    """Whether attention of this input is our kernel's, on a GPU that has it."""
    _, time, d_model = x_BTD.shape
    return time <= KERNEL_TIMES.get(d_model // attn.num_heads, 0) and x_BTD.dtype.itemsize == 2


def attend_on_cpu(attn: MultiHeadSelfAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`attn.attend(q, k, v)` in float32, which is faster there than bfloat16; by our kernel where the shape fits it."""
    wide_q, wide_k, wide_v = (widen(x).contiguous() for x in (q, k, v))
    if attn.attention == "fused" and wide_q.dtype == torch.float32 and not (q.shape[-2] % 32 or q.shape[-1] % 32):
        from lm.model.native import causal_attention

        return causal_attention(wide_q, wide_k, wide_v).to(q.dtype)
    with torch.autocast("cpu", enabled=False):
        return attn.attend(wide_q, wide_k, wide_v).to(q.dtype)


def packed_projections(attn: MultiHeadSelfAttention, by_halves: bool) -> Tensor:
    """(3D, D): q_proj, k_proj and v_proj; in the first two by choice the heads' even rows before their odd ones."""
    q_DD, k_DD, v_DD = attn.q_proj.weight, attn.k_proj.weight, attn.v_proj.weight
    if by_halves:
        q_DD, k_DD = (
            weight.unflatten(0, (attn.num_heads, -1, 2)).transpose(1, 2).flatten(0, 2) for weight in (q_DD, k_DD)
        )
    return torch.cat((q_DD, k_DD, v_DD))


def rotate_halves(rope: RotaryPositionEmbedding, x_BTHK: Tensor) -> Tensor:
    """`rope(x)` at positions 0 to T - 1, where number i and number i + K/2 of a head are a pair."""
    time = x_BTHK.shape[1]
    cos, sin = rope.cos[:time, None], rope.sin[:time, None]
    first, second = x_BTHK.chunk(2, -1)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), -1).to(x_BTHK.dtype)


def fast_feed_forward(ffn: SwiGLU | SiLUFeedForward, x_BTD: Tensor, packed: bool) -> Tensor:
    """`ffn(x)`, (B, T, D) to (B, T, D)."""
    by_kernels = packed and has_triton(x_BTD.device)
    if by_kernels and type(ffn) is SiLUFeedForward:  # a subclass has an activation of its own
        return product(F.silu(product(x_BTD, ffn.w1.weight)), ffn.w2.weight)
    if by_kernels and isinstance(ffn, SwiGLU):
        from lm.model.kernels.feed_forward import feed_forward
        from lm.model.kernels.hopper import fits

        weights = ffn.w1.weight, ffn.w3.weight, ffn.w2.weight
        if fits(x_BTD, *weights):
            return feed_forward(x_BTD, *weights)
        from lm.model.kernels.swiglu import swiglu

        gate_value_BT2F = product(x_BTD, ffn.w1.weight, ffn.w3.weight)
        return product(swiglu(gate_value_BT2F.flatten(0, 1)).unflatten(0, x_BTD.shape[:2]), ffn.w2.weight)
    if not packed or not isinstance(ffn, SwiGLU):
        return ffn(x_BTD)
    gate_BTF, value_BTF = (x_BTD @ torch.cat((ffn.w1.weight, ffn.w3.weight)).T).chunk(2, -1)
    return ffn.w2(F.silu(gate_BTF) * value_BTF)
