"""One step of a decoder on an NVIDIA GPU: five kernels a layer, in Triton. Each reads the weights or the cache once.

Shape letters: B batch, C columns and R rows of a matrix, S slots, K head width, D d_model, V vocabulary.
"""
# pyright: reportMissingImports=false, reportInvalidTypeForm=false, reportIndexIssue=false

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from lm.model import KVCache, RMSNorm

if TYPE_CHECKING:
    from lm.generation.decoder import Decoder


@triton.jit
def _multiply(x_BC, weights, mask_RC, sum_BR, IS_ONE: tl.constexpr):
    """sum + x @ weights.T. Three products in TF32 have float32's precision, and run on tensor cores."""
    weight_RC = tl.load(weights, mask=mask_RC, other=0)
    if IS_ONE:
        return sum_BR + tl.sum(weight_RC.to(tl.float32) * x_BC, 1)[None, :]
    return tl.dot(x_BC.to(weight_RC.dtype), tl.trans(weight_RC), sum_BR, input_precision="tf32x3")


@triton.jit
def _project(
    x_ptr,
    gains_ptr,
    weight_ptr,
    out_ptr,
    batch,
    columns,
    rows,
    eps,
    HAS_NORM: tl.constexpr,
    IS_HIDDEN: tl.constexpr,
    IS_GATED: tl.constexpr,
    ADD: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """out = weight @ rmsnorm(x), or out += it, or silu of it, times the rows that follow where those are gates.

    The norm divides by one number a row of x, so it is divided by at the end.
    """
    r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    b = tl.program_id(1) * BLOCK_B + tl.arange(0, BLOCK_B)
    squares_B = tl.zeros((BLOCK_B,), tl.float32)
    sum_BR = tl.zeros((BLOCK_B, BLOCK_R), tl.float32)
    gate_BR = tl.zeros((BLOCK_B, BLOCK_R), tl.float32)
    for start in range(0, columns, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        mask_BC = (b < batch)[:, None] & (c < columns)[None, :]
        x_BC = tl.load(x_ptr + b[:, None] * columns + c[None, :], mask=mask_BC, other=0).to(tl.float32)
        if HAS_NORM:
            squares_B += tl.sum(x_BC * x_BC, 1)
            x_BC *= tl.load(gains_ptr + c, mask=c < columns, other=0)[None, :]
        weights = weight_ptr + r[:, None] * columns + c[None, :]
        mask_RC = (r < rows)[:, None] & (c < columns)[None, :]
        sum_BR = _multiply(x_BC, weights, mask_RC, sum_BR, BLOCK_B == 1)
        if IS_GATED:
            gate_BR = _multiply(x_BC, weights + rows * columns, mask_RC, gate_BR, BLOCK_B == 1)
    if HAS_NORM:
        scale_B1 = tl.rsqrt(squares_B / columns + eps)[:, None]
        sum_BR *= scale_B1
        gate_BR *= scale_B1
    if IS_HIDDEN:
        sum_BR *= tl.sigmoid(sum_BR)
        if IS_GATED:
            sum_BR *= gate_BR
    outs = out_ptr + b[:, None] * rows + r[None, :]
    mask_BR = (b < batch)[:, None] & (r < rows)[None, :]
    if ADD:
        sum_BR += tl.load(outs, mask=mask_BR, other=0)
    tl.store(outs, sum_BR, mask=mask_BR)


@triton.jit
def _turned(x_ptr, cos_ptr, sin_ptr, position, WIDTH: tl.constexpr, HALF: tl.constexpr, HAS_ROPE: tl.constexpr):
    """A head's query or key (2 HALF,), each pair rotated; zeros beyond WIDTH."""
    if not HAS_ROPE:
        k = tl.arange(0, 2 * HALF)
        return tl.load(x_ptr + k, mask=k < WIDTH, other=0).to(tl.float32)
    i = tl.arange(0, HALF)
    there = i < WIDTH // 2
    even = tl.load(x_ptr + 2 * i, mask=there, other=0).to(tl.float32)
    odd = tl.load(x_ptr + 2 * i + 1, mask=there, other=0).to(tl.float32)
    cos = tl.load(cos_ptr + position * (WIDTH // 2) + i, mask=there, other=0)
    sin = tl.load(sin_ptr + position * (WIDTH // 2) + i, mask=there, other=0)
    return tl.interleave(even * cos - odd * sin, even * sin + odd * cos)


@triton.jit
def _attend(
    qkv_ptr,
    cos_ptr,
    sin_ptr,
    lengths_ptr,
    keys_ptr,
    values_ptr,
    out_ptr,
    slots,
    scale,
    WIDTH: tl.constexpr,
    HALF: tl.constexpr,
    HAS_ROPE: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """One head of one row: its key and value go into the cache, its query attends to them and to all before."""
    head, row, heads = tl.program_id(0), tl.program_id(1), tl.num_programs(0)
    d_model = heads * WIDTH
    position = tl.load(lengths_ptr + row)
    k = tl.arange(0, 2 * HALF)
    inside = k < WIDTH
    q_ptr = qkv_ptr + row * 3 * d_model + head * WIDTH
    q_K = _turned(q_ptr, cos_ptr, sin_ptr, position, WIDTH, HALF, HAS_ROPE) * scale
    key_K = _turned(q_ptr + d_model, cos_ptr, sin_ptr, position, WIDTH, HALF, HAS_ROPE)
    value_K = tl.load(q_ptr + 2 * d_model + k, mask=inside, other=0).to(tl.float32)
    start_of_row = (row * heads + head).to(tl.int64) * slots * WIDTH
    keys_ptr += start_of_row
    values_ptr += start_of_row
    tl.store(keys_ptr + position * WIDTH + k, key_K, mask=inside)
    tl.store(values_ptr + position * WIDTH + k, value_K, mask=inside)
    # The softmax's sums so far, relative to the largest score so far (Milakov and Gimelshein 2018).
    largest = tl.sum(q_K * key_K)
    total = tl.exp(largest - largest)
    out_K = value_K
    for start in range(0, position, BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)
        offsets = s[:, None] * WIDTH + k[None, :]
        there = (s < position)[:, None] & inside[None, :]
        keys_SK = tl.load(keys_ptr + offsets, mask=there, other=0).to(tl.float32)
        values_SK = tl.load(values_ptr + offsets, mask=there, other=0).to(tl.float32)
        scores_S = tl.where(s < position, tl.sum(q_K[None, :] * keys_SK, 1), float("-inf"))
        larger = tl.maximum(largest, tl.max(scores_S))
        shrink = tl.exp(largest - larger)
        weights_S = tl.exp(scores_S - larger)
        total = total * shrink + tl.sum(weights_S)
        out_K = out_K * shrink + tl.sum(weights_S[:, None] * values_SK, 0)
        largest = larger
    tl.store(out_ptr + row * d_model + head * WIDTH + k, out_K / total, mask=inside)


class Step:
    """The step with a decoder's weights, for models whose norms stand before the sublayers."""

    def __init__(self, decoder: "Decoder") -> None:
        self.decoder = decoder

    def __call__(self, tokens_B: Tensor, cache: KVCache) -> Tensor:
        """Logits (B, V) in float32 after one token a row, whose keys and values go to slots `cache.lengths`."""
        decoder = self.decoder
        x_BD = F.embedding(tokens_B, decoder.embeddings_VD)
        is_gated = decoder.config.ffn == "swiglu"
        for index, (ln1, ln2) in enumerate(decoder.norms):
            qkv_BP = _projected(x_BD, ln1, decoder.qkv_LPD[index])
            heads_BD = self._attended(qkv_BP, cache, index)
            _projected(heads_BD, None, decoder.output_LDD[index], out=x_BD)
            hidden_BF = _projected(x_BD, ln2, decoder.opening_LFD[index], is_hidden=True, is_gated=is_gated)
            _projected(hidden_BF, None, decoder.w2_LDF[index], out=x_BD)
        return _projected(x_BD, decoder.ln_final, decoder.head_VD, dtype=torch.float32)

    def _attended(self, qkv_BP: Tensor, cache: KVCache, index: int) -> Tensor:
        config, rope = self.decoder.config, self.decoder.rope
        width = config.head_width
        heads_BD = qkv_BP.new_empty(len(qkv_BP), config.d_model)
        tables = (qkv_BP, qkv_BP) if rope is None else (rope.cos, rope.sin)
        layer = cache.layer(index)
        _attend[(config.num_heads, len(qkv_BP))](
            qkv_BP,
            *tables,
            cache.lengths,
            *layer,
            heads_BD,
            cache.max_length,
            width**-0.5,
            WIDTH=width,
            HALF=triton.next_power_of_2(-(-width // 2)),
            HAS_ROPE=rope is not None,
            BLOCK_S=64,
        )
        return heads_BD


def _projected(
    x_BC: Tensor,
    norm: RMSNorm | None,
    weight_RC: Tensor,
    out: Tensor | None = None,
    is_hidden: bool = False,
    is_gated: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """See `_project`; the result is added to `out`, if that is given."""
    (batch, columns), rows = x_BC.shape, len(weight_RC) // (1 + is_gated)
    out_BR = x_BC.new_empty(batch, rows, dtype=dtype or weight_RC.dtype) if out is None else out
    blocks = _blocks(batch, rows)
    grid = (triton.cdiv(rows, blocks["BLOCK_R"]), triton.cdiv(batch, blocks["BLOCK_B"]))
    _project[grid](
        x_BC,
        weight_RC if norm is None else norm.weight,
        weight_RC,
        out_BR,
        batch,
        columns,
        rows,
        0.0 if norm is None else norm.eps,
        HAS_NORM=norm is not None,
        IS_HIDDEN=is_hidden,
        IS_GATED=is_gated,
        ADD=out is not None,
        **blocks,
    )
    return out_BR


def _blocks(batch: int, rows: int) -> dict[str, int]:
    """What a program of `_project` computes, and by how many warps: the fastest of those tried on an H100."""
    if batch == 1:
        return {"BLOCK_B": 1, "BLOCK_R": 4, "BLOCK_C": 512}
    if rows >= 4096:
        return {"BLOCK_B": 64 if batch > 16 else 16, "BLOCK_R": 64, "BLOCK_C": 64, "num_warps": 4 if batch > 16 else 2}
    if batch > 16 and triton.cdiv(batch, 16) * triton.cdiv(rows, 32) <= 128:
        # So few that each has a processor for itself, and needs more warps to be busy.
        return {"BLOCK_B": 16, "BLOCK_R": 32, "BLOCK_C": 128}
    return {"BLOCK_B": 16, "BLOCK_R": 32 if batch > 16 else 16, "BLOCK_C": 64, "num_warps": 2}
