"""The sampling distribution by hand, and drawn frequencies against it."""

import math
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from lm.generation import SamplingConfig, next_token_probabilities, sample_next
from lm.generation.sampling import pick

PROBS = [0.4, 0.25, 0.2, 0.1, 0.05]


def distribution(probs: list[float], **options: Any) -> list[float]:
    logits = torch.tensor([probs], dtype=torch.float64).log() + 3
    return next_token_probabilities(logits, SamplingConfig(**options))[0].tolist()


def normalized(*weights: float) -> list[float]:
    return [w / sum(weights) for w in weights]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, PROBS),
        ({"temperature": 0.5}, normalized(*(p**2 for p in PROBS))),
        ({"temperature": 2.0}, normalized(*(p**0.5 for p in PROBS))),
        ({"temperature": 0}, [1, 0, 0, 0, 0]),
        ({"temperature": 1e-300}, [1, 0, 0, 0, 0]),
        ({"top_k": 1}, [1, 0, 0, 0, 0]),
        ({"top_k": 2}, normalized(0.4, 0.25, 0, 0, 0)),
        ({"top_k": 99}, PROBS),
        ({"top_p": 0.01}, [1, 0, 0, 0, 0]),
        ({"top_p": 0.39}, [1, 0, 0, 0, 0]),
        ({"top_p": 0.41}, normalized(0.4, 0.25, 0, 0, 0)),
        ({"top_p": 0.84}, normalized(0.4, 0.25, 0.2, 0, 0)),
        ({"top_p": 1.0}, PROBS),
        # top-p counts what top-k left: 0.4 of 0.65 reaches 0.6 alone.
        ({"top_k": 2, "top_p": 0.6}, [1, 0, 0, 0, 0]),
        # Temperature comes before top-p: squared, 0.4 alone has 0.56.
        ({"temperature": 0.5, "top_p": 0.5}, [1, 0, 0, 0, 0]),
        ({"temperature": 1.0, "top_p": 0.5}, normalized(0.4, 0.25, 0, 0, 0)),
    ],
)
def test_distribution(options: dict[str, Any], expected: list[float]):
    assert distribution(PROBS, **options) == pytest.approx(expected, abs=1e-12)


def test_order_of_the_ids_does_not_matter():
    order = [3, 0, 4, 2, 1]
    shuffled = [PROBS[i] for i in order]
    for options in ({"top_k": 3}, {"top_p": 0.7}, {"temperature": 0.7, "top_k": 4, "top_p": 0.8}):
        expected = distribution(PROBS, **options)
        assert distribution(shuffled, **options) == pytest.approx([expected[i] for i in order])


def test_ties_go_to_the_lower_ids():
    even = [0.25] * 4
    assert distribution(even, temperature=0) == [1, 0, 0, 0]
    assert distribution(even, top_k=2) == [0.5, 0.5, 0, 0]
    assert distribution(even, top_p=0.6) == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])
    assert distribution([0.1, 0.3, 0.3, 0.3], top_k=2) == [0, 0.5, 0.5, 0]


def test_rows_are_apart():
    logits = torch.tensor([[0.0, 1.0, 2.0], [5.0, 1.0, 1.0]])
    sampling = SamplingConfig(top_p=0.8)
    both = next_token_probabilities(logits, sampling)
    for row in (0, 1):
        assert_close(both[row], next_token_probabilities(logits[row : row + 1], sampling)[0])


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.7}, {"top_k": 3}, {"top_p": 0.8}, {"temperature": 1.5, "top_k": 4, "top_p": 0.9}],
)
def test_frequencies(options: dict[str, Any]):
    sampling = SamplingConfig(**options)
    draws = 20_000
    logits = torch.tensor(PROBS).log().expand(draws, -1).bfloat16()
    generator = torch.Generator().manual_seed(1)
    counts = sample_next(logits, sampling, [generator] * draws).bincount(minlength=5).tolist()
    expected = [p * draws for p in next_token_probabilities(logits[:1], sampling)[0].tolist()]
    possible = [(n, e) for n, e in zip(counts, expected, strict=True) if e > 0]
    assert sum(n for n, _ in possible) == draws  # never one with probability 0
    chi_square = sum((n - e) ** 2 / e for n, e in possible)
    freedom = len(possible) - 1
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom)  # mean plus 4 standard deviations


def test_pick_at_the_edges():
    probs = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]], dtype=torch.float64).expand(4, -1)
    below_one = math.nextafter(1, 0)
    uniforms = torch.tensor([0.0, 0.2499, 0.25, below_one], dtype=torch.float64)
    assert pick(probs, uniforms).tolist() == [1, 1, 3, 3]


def test_each_row_draws_from_its_own_generator():
    logits = torch.zeros(3, 1000)

    def draw(*seeds: int) -> list[int]:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return sample_next(logits[: len(seeds)], SamplingConfig(), generators).tolist()

    assert draw(1, 2, 3) == [*draw(1), *draw(2), *draw(3)]
    assert len(set(draw(1, 2, 3))) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
    ],
)
def test_refusals(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message) as caught:
        SamplingConfig(**options)
    assert "\n" not in str(caught.value)
