"""The cosine schedule at points worked out by hand."""

import math

import pytest

from lm.optim import get_lr_cosine_schedule


@pytest.mark.parametrize(
    ("it", "expected"),
    [
        (0, 0.0),
        (1, 0.1),
        (9, 0.9),
        (10, 1.0),
        (15, 0.1 + 0.45 * (1 + math.sqrt(0.5))),
        (20, 0.55),
        (25, 0.1 + 0.45 * (1 - math.sqrt(0.5))),
        (30, 0.1),
        (31, 0.1),
        (1000, 0.1),
    ],
)
def test_points(it: int, expected: float) -> None:
    assert get_lr_cosine_schedule(it, 1.0, 0.1, 10, 30) == pytest.approx(expected)


def test_without_warmup_starts_at_the_maximum() -> None:
    assert get_lr_cosine_schedule(0, 2.0, 0.5, 0, 8) == 2.0
    assert get_lr_cosine_schedule(4, 2.0, 0.5, 0, 8) == pytest.approx(1.25)


@pytest.mark.parametrize(("warmup", "cycle"), [(5, 5), (5, 3), (0, 0)])
def test_a_cycle_no_longer_than_the_warmup(warmup: int, cycle: int) -> None:
    rates = [get_lr_cosine_schedule(it, 1.0, 0.1, warmup, cycle) for it in range(8)]
    assert rates[:warmup] == [it / warmup for it in range(warmup)]
    assert rates[warmup:] == [0.1] * (8 - warmup)
