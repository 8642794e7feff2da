"""From logits to the next token: temperature, then top-k, then top-p, then one draw.

Nothing here waits for the device. Shape letters: B batch, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is drawn.

    Args:
        temperature: divides the logits; below 1 likely tokens become likelier, and 0 always takes the likeliest.
        top_k: draw from the k likeliest tokens only.
        top_p: draw from the fewest likeliest tokens that together have at least this probability.

    Raises:
        ValueError: a value is out of its range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}; it must be 0 (greedy) or a finite number above 0")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}; it must be at least 1, or left out")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be above 0 and at most 1, or left out")


def keep_top_k(logits_BV: Tensor, k: int) -> Tensor:
    """Logits with all but each row's k largest at -inf; among equals the lower id stays."""
    order_BV = logits_BV.argsort(dim=-1, descending=True, stable=True)
    return logits_BV.scatter(-1, order_BV[..., k:], -torch.inf)


def keep_top_p(logits_BV: Tensor, p: float) -> Tensor:
    """Logits with -inf outside the smallest set of likeliest tokens whose probability reaches p.

    The likeliest token always stays, and among equals the lower id (nucleus sampling, Holtzman et al. 2020).
    """
    sorted_BV, order_BV = logits_BV.sort(dim=-1, descending=True, stable=True)
    probs_BV = sorted_BV.softmax(-1)
    mass_before_BV = probs_BV.cumsum(-1) - probs_BV
    kept_BV = mass_before_BV < p
    kept_BV[..., 0] = True
    return torch.empty_like(sorted_BV).scatter(-1, order_BV, sorted_BV.masked_fill(~kept_BV, -torch.inf))


def next_token_probabilities(logits_BV: Tensor, sampling: SamplingConfig) -> Tensor:
    """The distribution the next token is drawn from.

    Args:
        logits_BV: (B, V), any floating type.
        sampling: temperature 0 puts all probability on the largest logit (the lowest id among equals).

    Returns:
        (B, V) in float64 (float32 on Apple GPUs, which have no wider type); tokens left out have exactly 0.
    """
    logits_BV = logits_BV.to(torch.float32 if logits_BV.device.type == "mps" else torch.float64)
    if sampling.temperature == 0:
        return torch.zeros_like(logits_BV).scatter(-1, logits_BV.argmax(-1, keepdim=True), 1.0)
    # The largest logit becomes 0, so that no temperature, however small, overflows.
    logits_BV = (logits_BV - logits_BV.amax(-1, keepdim=True)) / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits_BV.shape[-1]:
        logits_BV = keep_top_k(logits_BV, sampling.top_k)
    if sampling.top_p is not None and sampling.top_p < 1:
        logits_BV = keep_top_p(logits_BV, sampling.top_p)
    return logits_BV.softmax(-1)


def pick(probs_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """Ids (B,) by inversion: the first whose cumulative probability exceeds a number in [0, 1) of the same type."""
    cumulative_BV = probs_BV.cumsum(-1)
    target_B1 = uniform_B[:, None] * cumulative_BV[:, -1:]
    return torch.searchsorted(cumulative_BV, target_B1, right=True).squeeze(-1)


def sample_next(logits_BV: Tensor, sampling: SamplingConfig, generators: Sequence[torch.Generator]) -> Tensor:
    """Draw one id for each row.

    Args:
        logits_BV: (B, V).
        sampling: the distribution.
        generators: one on the CPU for each row, so that a row's draws depend neither on its neighbours nor on the
            device; each gives one number, also when greedy.

    Returns:
        (B,) ids.
    """
    probs_BV = next_token_probabilities(logits_BV, sampling)
    uniforms = [torch.rand((), generator=generator, dtype=probs_BV.dtype) for generator in generators]
    return pick(probs_BV, torch.stack(uniforms).to(probs_BV.device))
