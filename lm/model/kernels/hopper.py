"""What products in Triton for Hopper (H100, H200) have in common: tiles, and when they are worth while.

Blocks of matrices come and go by the Tensor Memory Accelerator (TMA); what lies beyond a matrix's edge reads as zero
and is not written. Shape letters: N tokens, D d_model; BN, BD those of a block.
"""
# pyright: reportMissingImports=false, reportInvalidTypeForm=false, reportIndexIssue=false

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

HOPPER = 9  # major compute capability
MIN_TOKENS = 2048  # fewer leave multiprocessors without work
BN, BD, STAGES = 128, 64, 3  # STAGES blocks of a product's factors are under way at a time
ALIGNED = 8  # numbers of 16 bits; TMA wants rows, and so halves of one, to begin at multiples of 16 bytes


@triton.jit
def place(tile, rows, columns, GROUP: tl.constexpr = 8):
    """Row and column of a tile; those of GROUP rows come together, as the blocks that they share are then cached."""
    group = tile // (GROUP * columns)
    height = min(rows - group * GROUP, GROUP)
    inside = tile % (GROUP * columns)
    return group * GROUP + inside % height, inside // height


@triton.jit
def tile_product(
    x, w, row, column, D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BD: tl.constexpr
):  # fmt: skip
    """A tile of x @ w.T by its row and column among the tiles: (ROWS, COLUMNS) in float32."""
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for d in range(0, D, BD):
        sums = tl.dot(x.load([row * ROWS, d]), w.load([column * COLUMNS, d]).T, sums)
    return sums


@triton.jit
def halves(sums, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Left and right half of a block's columns."""
    return sums.reshape(ROWS, 2, COLUMNS // 2).permute(0, 2, 1).split()


def blocks(matrix: Tensor, *shape: int) -> TensorDescriptor:
    """The matrix as TMA takes it: a kernel's argument, held on the host, for blocks of this shape."""
    return TensorDescriptor.from_tensor(matrix, list(shape))


@cache
def multiprocessors(device: torch.device) -> int:
    """How many the device has."""
    return torch.cuda.get_device_properties(device).multi_processor_count


@cache
def _is_hopper(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device)[0] == HOPPER


def fits(x: Tensor, *weights: Tensor) -> bool:
    """Whether products of x (..., D) with these matrices may be taken by such kernels, and are worth while."""
    return (
        x.is_cuda
        and _is_hopper(x.device)
        and x.dtype == torch.bfloat16
        and x.numel() >= MIN_TOKENS * x.shape[-1]
        and all(weight.dtype in (torch.float32, x.dtype) for weight in weights)
        and all(size % ALIGNED == 0 for weight in weights for size in weight.shape)
    )
