"""SGD with 1/sqrt(t+1) decay: by hand, and the write-up's study of learning rates."""

import math

import pytest
import torch
from torch import nn

from lm.optim import SGD


def test_three_steps_by_hand() -> None:
    parameter, untouched = nn.Parameter(torch.tensor(1.0, dtype=torch.float64)), nn.Parameter(torch.tensor(7.0))
    optimizer = SGD([parameter, untouched], lr=0.5)
    expected = 1.0
    for t, gradient in enumerate((1.0, -2.0, 4.0)):
        parameter.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
        expected -= 0.5 / math.sqrt(t + 1) * gradient
        assert parameter.item() == pytest.approx(expected)
    assert untouched.item() == 7.0


def test_a_restored_state_goes_on_decaying() -> None:
    parameter = nn.Parameter(torch.tensor(0.0))
    optimizer = SGD([parameter], lr=1.0)
    for _ in range(3):
        parameter.grad = torch.tensor(0.0)
        optimizer.step()
    resumed = SGD([parameter], lr=9.0)
    resumed.load_state_dict(optimizer.state_dict())
    parameter.grad = torch.tensor(1.0)
    resumed.step()
    assert parameter.item() == pytest.approx(-0.5)


def toy_losses(lr: float, iterations: int = 10) -> list[float]:
    weights = nn.Parameter(5 * torch.randn((10, 10), generator=torch.Generator().manual_seed(0)))
    optimizer = SGD([weights], lr=lr)
    losses = []
    for _ in range(iterations):
        optimizer.zero_grad()
        loss = (weights**2).mean()
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    return losses


def test_learning_rate_study_of_the_write_up() -> None:
    """Problem learning_rate_tuning: up to 100 a higher rate is faster, 1000 diverges."""
    one, ten, hundred, thousand = (toy_losses(lr) for lr in (1.0, 1e1, 1e2, 1e3))
    assert one[0] > one[-1] > ten[-1] > hundred[-1]
    assert hundred[-1] < 1e-9
    assert thousand[-1] > 1e6 * thousand[0]
    # Each step multiplies every weight by 1 - lr/sqrt(t+1) · 2/100.
    factor = math.prod(1 - 0.2 / math.sqrt(t + 1) for t in range(9))
    assert ten[-1] == pytest.approx(ten[0] * factor**2, rel=1e-4)


def test_refuses_a_negative_learning_rate() -> None:
    with pytest.raises(ValueError, match="lr is -0.1"):
        SGD([torch.zeros(1)], lr=-0.1)
