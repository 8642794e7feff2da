"""Embedding of token ids straight into a narrower type, and its gradient as wide as the table, in Triton.

The gradient of a row of the table is the sum over the tokens with its id. Tokens are sorted by id, and summed in chunks
of C: within a chunk a product with the matrix that says which tokens have equal ids adds them all up. An id's tokens
may begin in one chunk and end in a later one; such sums over parts go to `edges`, and are added in order afterwards. So
the result is the same each time, which atomic additions would not give. The sorting is done beside the forward pass.

Shape letters: N tokens, D d_model, V vocabulary, C tokens of a chunk, W columns at a time.
"""
# pyright: reportMissingImports=false, reportInvalidTypeForm=false, reportIndexIssue=false

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lm.model.kernels.beside import beside, meet

CHUNK, COLUMNS, PARTS = 32, 128, 8  # tokens of a chunk; columns of a program; chunks that are added at a time


@triton.jit
def _rows(ids_ptr, table_ptr, out_ptr, width, W: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    row = tl.load(ids_ptr + token).to(tl.int64)
    for start in range(0, width, W):
        columns = start + tl.arange(0, W)
        x_W = tl.load(table_ptr + row * width + columns, mask=columns < width)
        tl.store(out_ptr + token * width + columns, x_W, mask=columns < width)


@triton.jit
def _within_chunks(
    ids_ptr, order_ptr, gradient_ptr, out_ptr, edges_ptr, tokens, width, C: tl.constexpr, W: tl.constexpr
):
    """Sums of a chunk's ids: of those that lie in it whole into the table's gradient, of the others to `edges`."""
    chunk = tl.program_id(0)
    places = chunk * C + tl.arange(0, C)
    columns = tl.program_id(1) * W + tl.arange(0, W)
    ids_C = tl.load(ids_ptr + places, mask=places < tokens, other=-1)
    others_C = tl.load(ids_ptr + chunk * C + tl.arange(0, C), mask=places < tokens, other=-2)
    tokens_C = tl.load(order_ptr + places, mask=places < tokens, other=0)
    there = (places[:, None] < tokens) & (columns[None, :] < width)
    gradient_CW = tl.load(gradient_ptr + tokens_C[:, None] * width + columns[None, :], mask=there, other=0.0)
    equal_CC = (ids_C[:, None] == others_C[None, :]).to(gradient_CW.dtype)
    sums_CW = tl.dot(equal_CC, gradient_CW, input_precision="ieee")
    before_C = tl.load(ids_ptr + places - 1, mask=(places > 0) & (places < tokens), other=-1)
    leads_C = (ids_C != before_C) | (tl.arange(0, C) == 0)
    before = tl.load(ids_ptr + chunk * C - 1, mask=chunk > 0, other=-1)
    after = tl.load(ids_ptr + (chunk + 1) * C, mask=(chunk + 1) * C < tokens, other=-1)
    goes_on_C, continues_C = ids_C == after, ids_C == before
    stored = leads_C[:, None] & there
    whole = (~goes_on_C & ~continues_C)[:, None]
    tl.store(out_ptr + ids_C[:, None].to(tl.int64) * width + columns[None, :], sums_CW, mask=stored & whole)
    edges_C = 2 * chunk + tl.where(continues_C, 0, 1)
    tl.store(edges_ptr + edges_C[:, None].to(tl.int64) * width + columns[None, :], sums_CW, mask=stored & ~whole)


@triton.jit
def _over_chunks(bounds_ptr, edges_ptr, out_ptr, width, C: tl.constexpr, PARTS: tl.constexpr, W: tl.constexpr):
    """One id: the sum of its parts where it lies in several chunks, zeros where no token has it."""
    row = tl.program_id(0)
    first, end = tl.load(bounds_ptr + row), tl.load(bounds_ptr + row + 1)
    first_chunk, last_chunk = first // C, (end - 1) // C
    if (end == first) | (first_chunk < last_chunk):
        for start in range(0, width, W):
            columns = start + tl.arange(0, W)
            total_W = tl.zeros((W,), tl.float32)
            if end > first:
                for chunk in range(first_chunk, last_chunk + 1, PARTS):
                    chunks = chunk + tl.arange(0, PARTS)
                    edges = 2 * chunks + tl.where(chunks == first_chunk, 1, 0)
                    at = edges[:, None].to(tl.int64) * width + columns[None, :]
                    there = (chunks <= last_chunk)[:, None] & (columns < width)[None, :]
                    total_W += tl.sum(tl.load(edges_ptr + at, mask=there, other=0.0), 0)
            tl.store(out_ptr + row.to(tl.int64) * width + columns, total_W, mask=columns < width)


def by_rows(width: int) -> dict[str, int]:
    """Settings of a kernel whose programs take one row of this width each, W columns at a time."""
    columns = min(1024, triton.next_power_of_2(width))
    return {"width": width, "W": columns, "num_warps": 1 if columns <= 512 else 4}


def by_id(ids_N: Tensor, vocab_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ids in order, (N,); where each of them came from, (N,); and where each id begins, (V + 1,)."""
    narrow = torch.int16 if vocab_size <= 2**15 else torch.int32
    sorted_N, order_N = ids_N.to(narrow).sort()
    sorted_N = sorted_N.int()
    ids = torch.arange(vocab_size + 1, device=ids_N.device, dtype=torch.int32)
    return sorted_N, order_N, torch.searchsorted(sorted_N, ids)


def table_gradient(sorted_N: Tensor, order_N: Tensor, bounds: Tensor, gradient_ND: Tensor) -> Tensor:
    """(V, D) sums of the gradients of each id's tokens, float32; the first three are those of `by_id`."""
    tokens, width = gradient_ND.shape
    vocab_size = len(bounds) - 1
    out_VD = gradient_ND.new_empty(vocab_size, width, dtype=torch.float32)
    chunks = triton.cdiv(tokens, CHUNK)
    edges = gradient_ND.new_empty(2 * chunks, width, dtype=torch.float32)
    grid = chunks, triton.cdiv(width, COLUMNS)
    _within_chunks[grid](sorted_N, order_N, gradient_ND, out_VD, edges, tokens, width, C=CHUNK, W=COLUMNS)
    columns = min(1024, triton.next_power_of_2(width))
    _over_chunks[(vocab_size,)](bounds, edges, out_VD, width, C=CHUNK, PARTS=PARTS, W=columns)
    return out_VD


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids_N: Tensor, table_VD: Tensor, dtype: torch.dtype) -> Tensor:
        width = table_VD.shape[1]
        out_ND = table_VD.new_empty(len(ids_N), width, dtype=dtype)
        _rows[(len(ids_N),)](ids_N, table_VD, out_ND, **by_rows(width))
        if ctx.needs_input_grad[1]:
            with beside(ids_N.device):
                in_order = by_id(ids_N, len(table_VD))
            ctx.save_for_backward(ids_N, *in_order)  # the ids, as they are still being read
            ctx.dtype = table_VD.dtype
        return out_ND

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, None]:
        gradient_ND = gradients[0].contiguous()
        _, sorted_N, order_N, bounds = ctx.saved_tensors
        meet(gradient_ND.device)
        return None, table_gradient(sorted_N, order_N, bounds, gradient_ND).to(ctx.dtype), None


def embedding(token_ids: Tensor, table_VD: Tensor, dtype: torch.dtype) -> Tensor:
    """(...) ids in [0, V) to (..., D) rows of the table in another type."""
    if not torch.is_grad_enabled():
        table_VD = table_VD.detach()  # the ids would be sorted for a parameter's gradient that nobody wants
    rows_ND: Tensor = _Embedding.apply(token_ids.reshape(-1), table_VD, dtype)  # pyright: ignore
    return rows_ND.view(*token_ids.shape, -1)
