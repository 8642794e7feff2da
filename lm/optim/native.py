"""AdamW's step over any number of tensors on a CPU, compiled by numba: each number is read and written once.

Letters as in the paper: θ parameter, g gradient, m and v the two means.
"""

import math

import numpy as np
from numba import njit, prange
from torch import Tensor

from lm.threads import share_threads


@njit(cache=True, parallel=True, nogil=True, error_model="numpy")
def _step(
    parameters, gradients, means, squares, factor, one_minus_beta1, beta2, one_minus_beta2, decay, rate, eps, correction
):
    for i in prange(len(parameters)):
        g = gradients[i] * factor
        m = means[i] + one_minus_beta1 * (g - means[i])
        v = beta2 * squares[i] + one_minus_beta2 * g * g
        means[i] = m
        squares[i] = v
        parameters[i] = parameters[i] * decay - rate * m / (np.sqrt(v) / correction + eps)


def update(
    parameters: list[Tensor],
    gradients: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    gradient_factor: Tensor | None,
) -> None:
    """`lm.optim.adamw_update` for each row of float32 tensors, all on the CPU and each in one piece."""
    factor = 1.0 if gradient_factor is None else float(gradient_factor)
    share_threads()
    beta1, beta2 = betas
    rate, correction = lr / (1 - beta1**step), math.sqrt(1 - beta2**step)
    numbers = (factor, 1 - beta1, beta2, 1 - beta2, 1 - lr * weight_decay, rate, eps, correction)
    settings = [np.float32(number) for number in numbers]
    for row in zip(parameters, gradients, exp_avgs, exp_avg_sqs, strict=True):
        _step(*(tensor.detach().view(-1).numpy() for tensor in row), *settings)
