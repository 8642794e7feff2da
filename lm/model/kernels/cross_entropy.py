"""Loss and gradient of rows of logits, in Triton.

Shape letters: R rows, V vocabulary.
"""
# pyright: reportMissingImports=false, reportInvalidTypeForm=false, reportIndexIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

LONGEST_BLOCK = 16_384  # numbers of a row that a program's registers hold


@triton.jit
def _loss_into_gradient(
    logits_ptr, targets_ptr, losses_ptr, vocab_size, row_length, IS_WHOLE: tl.constexpr, BLOCK: tl.constexpr
):
    """One row: its loss, then softmax minus one-hot; a row that fits into a block is read once.

    A longer one is read twice, the first time for its running maximum and sum (Milakov and Gimelshein 2018).
    """
    row = tl.program_id(0).to(tl.int64)
    logits = logits_ptr + row * row_length
    target = tl.load(targets_ptr + row)
    chosen = tl.load(logits + target).to(tl.float32)
    v = tl.arange(0, BLOCK)
    if IS_WHOLE:
        x = tl.load(logits + v, mask=v < vocab_size, other=-float("inf")).to(tl.float32)
        highest = tl.max(x, 0)
        exps = tl.exp(x - highest)
        total = tl.sum(exps, 0)
        tl.debug_barrier()  # all of the row is read before its gradient takes its place
        gradient = exps / total - tl.where(v == target, 1.0, 0.0)
        tl.store(logits + v, gradient, mask=v < row_length)
    else:
        highest = -float("inf")
        total = 0.0
        for start in range(0, vocab_size, BLOCK):
            x = tl.load(logits + start + v, mask=start + v < vocab_size, other=-float("inf")).to(tl.float32)
            new = tl.maximum(highest, tl.max(x, 0))
            total = total * tl.exp(highest - new) + tl.sum(tl.exp(x - new), 0)
            highest = new
        tl.debug_barrier()
        for start in range(0, row_length, BLOCK):
            x = tl.load(logits + start + v, mask=start + v < vocab_size, other=-float("inf")).to(tl.float32)
            gradient = tl.exp(x - highest) / total - tl.where(start + v == target, 1.0, 0.0)
            tl.store(logits + start + v, gradient, mask=start + v < row_length)
    tl.store(losses_ptr + row, highest + tl.log(total) - chosen)


def loss_into_gradient(logits_RV: Tensor, targets_R: Tensor, vocab_size: int) -> Tensor:
    """As `lm.model.loss.loss_into_gradient`; rows in one piece."""
    rows, row_length = logits_RV.shape
    losses_R = torch.empty(rows, device=logits_RV.device, dtype=torch.float32)
    block = min(triton.next_power_of_2(row_length), LONGEST_BLOCK)
    _loss_into_gradient[(rows,)](
        logits_RV,
        targets_R,
        losses_R,
        vocab_size,
        row_length,
        IS_WHOLE=block >= row_length,
        BLOCK=block,
        num_warps=max(4, min(16, block // 1024)),
    )
    return losses_R.sum()
