"""The output projection up to its softmax computes loss and gradients as float64 does."""

import math

import pytest
import torch
import torch.nn.functional as F

from lm.model import loss as loss_module


def check_exponentials(device: str) -> None:
    """On a Hopper GPU, or in Triton's interpreter on the CPU."""
    from lm.model.kernels import exponentials as kernels

    is_gpu = device == "cuda"
    if not is_gpu:
        kernels.multiprocessors = lambda device: 2
    dtype, spread = (torch.bfloat16, 2.0) if is_gpu else (torch.float16, 0.7)  # float16 holds no large exponentials
    # Whole tiles and ragged ones, fewer of them than programs and more; rows of weight beyond the vocabulary.
    shapes = [(128, 512, 512, 64), (200, 300, 304, 48), (129, 257, 264, 96), (128, 200, 512, 64)]
    shapes += [(32_768, 10_000, 10_000, 512), (4096, 50_257, 50_264, 768), (2048, 1000, 1000, 2048)] * is_gpu
    for rows, vocab_size, padded, d_model in shapes:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(rows, d_model, generator=generator).to(device, dtype)
        weight = torch.randn(padded, d_model, generator=generator) * spread / d_model**0.5
        weight[vocab_size:] = 0
        weight = weight.to(device, dtype)
        targets = torch.randint(0, vocab_size, (rows,), generator=generator).to(device)
        loss, gradient, factors = kernels.exponentials(x, weight, targets, vocab_size, 0.5)
        wide = F.linear(x.double(), weight[:vocab_size].double()).requires_grad_()
        expected = F.cross_entropy(wide, targets, reduction="sum")
        (theirs,) = torch.autograd.grad(expected / 2, wide)
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-5, atol=1e-5)
        ours = gradient.double() * factors.double()[:, None]
        assert not ours[:, vocab_size:].any()
        assert (ours[:, :vocab_size] - theirs).norm() < torch.finfo(dtype).eps * theirs.norm()
        rows_of_x = kernels.scaled(x, factors)
        torch.testing.assert_close(rows_of_x.float(), x.float() * factors[:, None], rtol=2**-7, atol=1e-7)
        assert kernels.scaled(x, factors, x) is x
        assert torch.equal(x, rows_of_x)
        nothing = x.clone()
        nothing[3] = torch.nan
        assert kernels.exponentials(nothing, weight, targets, vocab_size, 0.5)[0].isnan()


def check_extremes(device: str) -> None:
    """Targets nearly certain, and nearly impossible, whose losses end at the cap."""
    from lm.model.kernels.exponentials import exponentials

    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    x = torch.eye(64, device=device, dtype=dtype).repeat(2, 1)
    weight = torch.zeros(256, 64, device=device, dtype=dtype)
    weight[0] = torch.linspace(-120, 120, 64)
    weight[1] = 3
    targets = torch.zeros(128, device=device, dtype=torch.long)
    loss, gradient, factors = exponentials(x, weight, targets, 256, 1.0)
    wide = F.linear(x.double(), weight.double())
    capped = (wide - wide[:, :1]).clamp(max=80 * math.log(2)).exp()
    torch.testing.assert_close(loss.double(), capped.sum(1).log().sum(), rtol=1e-5, atol=1e-4)
    softmax = capped / capped.sum(1, keepdim=True)
    softmax[:, 0] = -softmax[:, 1:].sum(1)
    ours = gradient.double() * factors.double()[:, None]
    # The logits of up to 120 are float32, so the target's own exponential is 1 to 1e-5.
    assert ((ours - softmax).norm(dim=1) < 2**-8 * softmax.norm(dim=1) + 1e-5).all()


def check_loss(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss by parts, of which the last is too small for these kernels; ids that are no multiple of 8."""
    from lm.model.kernels import exponentials, hopper

    rows, dtype, enough = (4095, torch.bfloat16, hopper.MIN_TOKENS) if device == "cuda" else (149, torch.float16, 50)
    if device == "cpu":
        monkeypatch.setattr(loss_module, "has_triton", lambda device: True)
        monkeypatch.setattr(hopper, "fits", lambda x, weight: len(x) >= enough)
        monkeypatch.setattr(exponentials, "multiprocessors", lambda device: 2)
    part = "GPU_PART" if device == "cuda" else "CPU_PART"
    monkeypatch.setattr(loss_module, part, 304 * 2 * enough)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 32, generator=generator).to(device, dtype).requires_grad_()
    weight = (torch.randn(301, 32, generator=generator) / 8).to(device).requires_grad_()
    targets = torch.randint(0, 301, (rows,), generator=generator).to(device)
    expected = F.cross_entropy(x.double() @ weight.double().T, targets)
    theirs = torch.autograd.grad(expected, (x, weight))
    for scale in (None, 64.0):
        loss = loss_module.linear_cross_entropy(x, weight, targets, gradient_scale=scale)
        torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-3, atol=0)
        for mine, gradient in zip(torch.autograd.grad(loss, (x, weight)), theirs, strict=True):
            assert mine.dtype == gradient.dtype
            error = mine.double() / (scale or 1) - gradient.double()
            assert error.norm() < 0.02 * gradient.double().norm(), scale


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9, reason="needs a Hopper GPU"
)
def test_exponentials(monkeypatch: pytest.MonkeyPatch):
    check_exponentials("cuda")
    check_extremes("cuda")
    check_loss("cuda", monkeypatch)


if __name__ == "__main__":
    place = "cuda" if torch.cuda.is_available() else "cpu"
    check_exponentials(place)
    check_extremes(place)
    with pytest.MonkeyPatch.context() as patch:
        check_loss(place, patch)
