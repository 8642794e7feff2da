"""From logits to the next token: repetition penalty, temperature, top-k, top-p, min-p, then one draw.

Nothing here waits for the device. Shape letters: B batch, V vocabulary.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is drawn; the cuts come in the order given here.

    Args:
        temperature: divides the logits; below 1 likely tokens become likelier, and 0 always takes the likeliest.
        top_k: draw from the k likeliest tokens only.
        top_p: draw from the fewest likeliest tokens that together have at least this probability.
        min_p: draw from tokens with at least this share of the likeliest one's probability (Nguyen et al. 2024).
        repetition_penalty: positive logits of tokens that were read or written before are divided by it, negative
            ones multiplied (CTRL, Keskar et al. 2019, section 4.1); 1 changes nothing. It comes before all else.

    Raises:
        ValueError: a value is out of its range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature is {self.temperature}; it must be 0 (greedy) or a finite number above 0")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}; it must be at least 1, or left out")
        for name in ("top_p", "min_p"):
            share = getattr(self, name)
            if share is not None and not 0 < share <= 1:
                raise ValueError(f"{name} is {share}; it must be above 0 and at most 1, or left out")
        if not 0 < self.repetition_penalty < math.inf:
            raise ValueError(f"repetition_penalty is {self.repetition_penalty}; it must be a finite number above 0")


def penalize_repetition(logits_BV: Tensor, seen_BV: Tensor, penalty: float) -> Tensor:
    """Logits with those of tokens that were seen made smaller; see SamplingConfig."""
    return torch.where(seen_BV, torch.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty), logits_BV)


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


def keep_min_p(logits_BV: Tensor, p: float) -> Tensor:
    """Logits with -inf where the probability is below p times the likeliest token's."""
    return logits_BV.masked_fill(logits_BV < logits_BV.amax(-1, keepdim=True) + math.log(p), -torch.inf)


def next_token_probabilities(logits_BV: Tensor, sampling: SamplingConfig, seen_BV: Tensor | None = None) -> Tensor:
    """The distribution the next token is drawn from.

    Args:
        logits_BV: (B, V), any floating type.
        sampling: temperature 0 puts all probability on the largest logit (the lowest id among equals).
        seen_BV: (B, V), True for tokens that the repetition penalty concerns.

    Returns:
        (B, V) in float64 (float32 on Apple GPUs, which have no wider type); tokens left out have exactly 0.
    """
    logits_BV = logits_BV.to(torch.float32 if logits_BV.device.type == "mps" else torch.float64)
    if seen_BV is not None:
        logits_BV = penalize_repetition(logits_BV, seen_BV, sampling.repetition_penalty)
    if sampling.temperature == 0:
        return torch.zeros_like(logits_BV).scatter(-1, logits_BV.argmax(-1, keepdim=True), 1.0)
    # The largest logit becomes 0, so that no temperature, however small, overflows.
    logits_BV = (logits_BV - logits_BV.amax(-1, keepdim=True)) / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits_BV.shape[-1]:
        logits_BV = keep_top_k(logits_BV, sampling.top_k)
    if sampling.top_p is not None and sampling.top_p < 1:
        logits_BV = keep_top_p(logits_BV, sampling.top_p)
    if sampling.min_p is not None:
        logits_BV = keep_min_p(logits_BV, sampling.min_p)
    return logits_BV.softmax(-1)


def pick(probs_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """Ids (B,) by inversion: the first whose cumulative probability exceeds a number in [0, 1)."""
    cumulative_BV = probs_BV.cumsum(-1)
    below_1_B = uniform_B.to(probs_BV.dtype).clamp(max=1 - torch.finfo(probs_BV.dtype).eps)
    target_B1 = below_1_B[:, None] * cumulative_BV[:, -1:]
    return torch.searchsorted(cumulative_BV, target_B1, right=True).squeeze(-1)


def draw(logits_BV: Tensor, sampling: SamplingConfig, uniform_B: Tensor, seen_BV: Tensor | None = None) -> Tensor:
    """Ids (B,), one for each row, from its distribution and its number in [0, 1)."""
    if sampling.temperature > 0:
        return pick(next_token_probabilities(logits_BV, sampling, seen_BV), uniform_B)
    if seen_BV is not None:
        logits_BV = penalize_repetition(logits_BV, seen_BV, sampling.repetition_penalty)
    return logits_BV.argmax(-1)


class Uniforms:
    """Each row's own random numbers, drawn on the CPU, so that they depend on its seed alone.

    Args:
        seeds: one for each row, 0 or above.
    """

    def __init__(self, seeds: list[int]) -> None:
        streams = [int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> np.uint64(1)) for seed in seeds]
        self.generators = [torch.Generator().manual_seed(stream) for stream in streams]

    def next(self, steps: int) -> Tensor:
        """Numbers (steps, B) in [0, 1), float64."""
        rows = [torch.rand(steps, generator=generator, dtype=torch.float64) for generator in self.generators]
        return torch.stack(rows, 1)
