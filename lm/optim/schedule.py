"""Learning rate: linear warmup, then a cosine (LLaMA; Touvron et al. 2023, section 2.3)."""

import math


def get_lr_cosine_schedule(
    it: int, max_learning_rate: float, min_learning_rate: float, warmup_iters: int, cosine_cycle_iters: int
) -> float:
    """Learning rate of iteration `it`.

    Rises in proportion from 0 at it = 0 to the maximum at warmup_iters, falls along half a cosine to the minimum at
    cosine_cycle_iters and stays there. A warmup longer than the cycle is finished first.
    """
    if it < warmup_iters:
        return it / warmup_iters * max_learning_rate
    if it >= cosine_cycle_iters:
        return min_learning_rate
    progress = (it - warmup_iters) / (cosine_cycle_iters - warmup_iters)
    return min_learning_rate + (1 + math.cos(math.pi * progress)) / 2 * (max_learning_rate - min_learning_rate)
