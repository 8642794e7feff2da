"""Matrices of one size, one below the other and in a narrower type, in Triton: one launch for two or three of them."""
# pyright: reportMissingImports=false, reportInvalidTypeForm=false, reportIndexIssue=false

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048


@triton.jit
def _copy(first_ptr, second_ptr, third_ptr, out_ptr, size, BLOCK: tl.constexpr):
    matrix = tl.program_id(1)
    start_ptr = out_ptr + tl.program_id(1).to(tl.int64) * size
    source_ptr = first_ptr if matrix == 0 else second_ptr if matrix == 1 else third_ptr
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(start_ptr + i, tl.load(source_ptr + i, mask=i < size), mask=i < size)


def stacked(weights: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Two or three (F, D) matrices, each in one piece, as one (2F or 3F, D) in `dtype`."""
    out = weights[0].new_empty(len(weights) * len(weights[0]), weights[0].shape[1], dtype=dtype)
    size = weights[0].numel()
    _copy[(triton.cdiv(size, BLOCK), len(weights))](weights[0], weights[1], weights[-1], out, size, BLOCK=BLOCK)
    return out
