"""Loss and gradient of rows of logits, in Triton.

Shape letters: R rows, V vocabulary.
"""
# pyright: reportMissingImports=false, reportInvalidTypeForm=false, reportIndexIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _loss_into_gradient(logits_ptr, targets_ptr, losses_ptr, vocab_size, row_length, scale, BLOCK: tl.constexpr):
    """One row, read three times (the second and third time from a cache): maximum, sum, softmax minus one-hot."""
    row = tl.program_id(0).to(tl.int64)
    logits = logits_ptr + row * row_length
    target = tl.load(targets_ptr + row)
    chosen = tl.load(logits + target).to(tl.float32)
    v = tl.arange(0, BLOCK)
    highest_BLOCK = tl.full((BLOCK,), -float("inf"), tl.float32)
    for start in range(0, vocab_size, BLOCK):
        x = tl.load(logits + start + v, mask=start + v < vocab_size, other=-float("inf")).to(tl.float32)
        highest_BLOCK = tl.maximum(highest_BLOCK, x, propagate_nan=tl.PropagateNan.ALL)
    highest = tl.max(highest_BLOCK, 0)
    sum_BLOCK = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, vocab_size, BLOCK):
        x = tl.load(logits + start + v, mask=start + v < vocab_size, other=-float("inf")).to(tl.float32)
        sum_BLOCK += tl.exp(x - highest)
    log_sum = highest + tl.log(tl.sum(sum_BLOCK, 0))
    tl.store(losses_ptr + row, log_sum - chosen)
    tl.debug_barrier()  # all of the row is read before its gradient takes its place
    for start in range(0, row_length, BLOCK):
        x = tl.load(logits + start + v, mask=start + v < vocab_size, other=-float("inf")).to(tl.float32)
        gradient = tl.exp(x - log_sum) - tl.where(start + v == target, 1.0, 0.0)
        # What is written is not read again before it has left the cache; what other programs read is to stay there.
        tl.store(logits + start + v, gradient * scale, mask=start + v < row_length, eviction_policy="evict_first")


def loss_into_gradient(logits_RV: Tensor, targets_R: Tensor, vocab_size: int, scale: float) -> Tensor:
    """As `lm.model.loss.loss_into_gradient`; rows in one piece."""
    rows, row_length = logits_RV.shape
    losses_R = torch.empty(rows, device=logits_RV.device, dtype=torch.float32)
    block, warps = (4096, 8) if row_length <= 16_384 else (8192, 32)
    _loss_into_gradient[(rows,)](
        logits_RV, targets_R, losses_R, vocab_size, row_length, scale, BLOCK=block, num_warps=warps
    )
    return losses_R.sum()
