"""The sampling distribution by hand, and drawn frequencies against it."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from lm.generation import SamplingConfig, draw, next_token_probabilities
from lm.generation.sampling import Uniforms, pick

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
        ({"min_p": 1.0}, [1, 0, 0, 0, 0]),
        ({"min_p": 0.49}, normalized(0.4, 0.25, 0.2, 0, 0)),
        ({"min_p": 0.51}, normalized(0.4, 0.25, 0, 0, 0)),
        # Temperature comes before min-p: squared, 0.2 has a quarter of what 0.4 has.
        ({"temperature": 0.5, "min_p": 0.3}, normalized(0.16, 0.0625, 0, 0, 0)),
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


@pytest.mark.parametrize("penalty", [1.3, 0.8])
def test_repetition_penalty(penalty: float):
    logits = torch.tensor([[2.0, -1.0, 0.5, -3.0]], dtype=torch.float64)
    seen = torch.tensor([[True, True, False, False]])
    got = next_token_probabilities(logits, SamplingConfig(repetition_penalty=penalty), seen)
    changed = torch.tensor([[2.0 / penalty, -1.0 * penalty, 0.5, -3.0]], dtype=torch.float64)
    assert_close(got, changed.softmax(-1))
    greedy = SamplingConfig(temperature=0, repetition_penalty=5.0)
    assert draw(logits, greedy, torch.zeros(1), seen).tolist() == [2]


def by_definition(probs: list[float], options: dict[str, Any]) -> list[float]:
    """The distribution from the papers' definitions, in plain Python."""
    powers = normalized(*(p ** (1 / options.get("temperature", 1.0)) for p in probs))
    order = sorted(range(len(probs)), key=lambda i: (-powers[i], i))[: options.get("top_k", len(probs))]
    kept, mass, total = [], 0.0, sum(powers[i] for i in order)
    for i in order:
        if mass >= options.get("top_p", 1.1):
            break
        kept.append(i)
        mass += powers[i] / total
    kept = [i for i in kept if powers[i] >= options.get("min_p", 0) * powers[order[0]]]
    return normalized(*(powers[i] if i in kept else 0.0 for i in range(len(probs))))


SETTINGS = {"temperature": 0.7, "top_k": 12, "top_p": 0.8, "min_p": 0.12}


@pytest.mark.parametrize("names", [c for n in range(5) for c in itertools.combinations(SETTINGS, n)], ids="+".join)
def test_frequencies_of_100_000_draws(names: tuple[str, ...]):
    options = {name: SETTINGS[name] for name in names}
    probs = normalized(*(0.8**i * (1 + 0.1 * (i % 3)) for i in range(20)))
    draws, rows = 100_000, 1000
    logits = torch.tensor(probs).log().expand(rows, -1)
    generator = torch.Generator().manual_seed(len(names))
    counts = torch.zeros(len(probs), dtype=torch.long)
    for _ in range(draws // rows):
        uniform = torch.rand(rows, generator=generator, dtype=torch.float64)
        counts += draw(logits, SamplingConfig(**options), uniform).bincount(minlength=len(probs))
    expected = [p * draws for p in by_definition(probs, options)]
    possible = [(n, e) for n, e in zip(counts.tolist(), expected, strict=True) if e > 0]
    assert sum(n for n, _ in possible) == draws  # never one with probability 0
    chi_square = sum((n - e) ** 2 / e for n, e in possible)
    freedom = len(possible) - 1
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom)  # mean plus 4 standard deviations


def test_pick_at_the_edges():
    probs = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]], dtype=torch.float64).expand(4, -1)
    below_one = math.nextafter(1, 0)
    uniforms = torch.tensor([0.0, 0.2499, 0.25, below_one], dtype=torch.float64)
    assert pick(probs, uniforms).tolist() == [1, 1, 3, 3]


def test_each_row_has_its_own_random_numbers():
    together = Uniforms([1, 2, 3]).next(5)
    alone = Uniforms([2])
    assert torch.equal(torch.cat([alone.next(2), alone.next(3)])[:, 0], together[:, 1])
    assert len(set(together.flatten().tolist())) == 15


def test_frequencies_over_the_rows_of_a_generation():
    probs = torch.tensor(PROBS, dtype=torch.float64)
    uniforms = Uniforms(list(range(1000))).next(100)
    ids = pick(probs.expand(100_000, -1), uniforms.flatten())
    expected = probs * len(ids)
    chi_square = float(((ids.bincount(minlength=5) - expected) ** 2 / expected).sum())
    assert chi_square < 4 + 4 * math.sqrt(8)
    # Neighbouring seeds and neighbouring steps are independent.
    for ours, next_one in ((uniforms[:, :-1], uniforms[:, 1:]), (uniforms[:-1], uniforms[1:])):
        correlation = torch.corrcoef(torch.stack([ours.flatten(), next_one.flatten()]))[0, 1]
        assert abs(correlation) < 4 / math.sqrt(ours.numel())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"min_p": 0.0}, "min_p is 0.0"),
        ({"min_p": 1.1}, "min_p is 1.1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty is nan"),
    ],
)
def test_refusals(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message) as caught:
        SamplingConfig(**options)
    assert "\n" not in str(caught.value)
