"""Gradient clipping against torch's own."""

import pytest
import torch
from torch import nn

from lm.optim import clipping_factor, gradient_clipping


def parameters(scale: float, dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    made = [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in [(3, 4), (5,), (2,)]]
    for parameter in made[:2]:  # the last one has no gradient
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(dtype)
    return made


@pytest.mark.parametrize("scale", [1e-3, 0.3, 1.0, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_torch(scale: float, dtype: torch.dtype) -> None:
    ours, theirs = parameters(scale, dtype), parameters(scale, dtype)
    norm = gradient_clipping(iter(ours), 1.0)
    expected = nn.utils.clip_grad_norm_(theirs, 1.0)
    torch.testing.assert_close(norm, expected)
    torch.testing.assert_close([p.grad for p in ours[:2]], [p.grad for p in theirs[:2]])
    assert ours[2].grad is None


def test_small_gradients_stay_as_they_are() -> None:
    made = parameters(1e-3)
    before = [p.grad.clone() for p in made if p.grad is not None]
    gradient_clipping(made, 1.0)
    for parameter, gradient in zip(made[:2], before, strict=True):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, gradient)


def test_half_precision_is_accumulated_in_float32() -> None:
    parameter = nn.Parameter(torch.zeros(100_000, dtype=torch.bfloat16))
    parameter.grad = torch.full_like(parameter, 0.1)
    norm = gradient_clipping([parameter], 1e9)
    assert norm.dtype == torch.float32
    torch.testing.assert_close(norm, parameter.grad.float().norm(), rtol=1e-6, atol=0.0)


def test_types_may_be_mixed() -> None:
    made = [nn.Parameter(torch.zeros(2, dtype=dtype)) for dtype in (torch.bfloat16, torch.float32, torch.float64)]
    for parameter in made:
        parameter.grad = torch.full_like(parameter, 2.0)
    assert gradient_clipping(made, 1.0).item() == pytest.approx(24**0.5)
    for parameter in made:
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad.double(), torch.full((2,), 6**-0.5).double(), rtol=4e-3, atol=0)


def test_never_waits_for_the_device() -> None:
    # Meta tensors have no values, so whatever would read one on the host raises.
    parameter = nn.Parameter(torch.zeros(3, device="meta"))
    parameter.grad = torch.ones_like(parameter)
    assert gradient_clipping([parameter], 1.0).shape == ()


def test_without_gradients_the_norm_is_zero() -> None:
    assert gradient_clipping([nn.Parameter(torch.zeros(2))], 1.0).item() == 0.0


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan")])
def test_refuses_a_limit_that_is_not_positive(limit: float) -> None:
    with pytest.raises(ValueError, match="max_l2_norm is"):
        gradient_clipping([], limit)


def check_kernels(device: str) -> None:
    """Triton's kernels against torch; runs on a GPU, or in Triton's interpreter on the CPU."""
    from lm.optim.kernels import clipping_factor as kernels

    generator = torch.Generator().manual_seed(0)
    for scale in (1e-3, 1.0, float("nan")):
        gradients = [
            scale * torch.randn(shape, generator=generator).to(device) for shape in ((70, 90), (5,), (), (4096,))
        ]
        norm = torch.cat([gradient.flatten() for gradient in gradients]).double().norm()
        ours = kernels(gradients, 1.0, 1e-6)
        expected = norm.float(), torch.clamp(1 / (norm + 1e-6), max=1.0).float()
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=0, equal_nan=True)
        parameters = [nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        torch.testing.assert_close(clipping_factor(parameters, 1.0), expected, rtol=1e-5, atol=0, equal_nan=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernels need an NVIDIA GPU")
def test_kernels() -> None:
    check_kernels("cuda")


if __name__ == "__main__":
    check_kernels("cuda" if torch.cuda.is_available() else "cpu")
