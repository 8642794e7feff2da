"""The output projection up to its softmax computes loss and gradients as float64 does."""

import pytest
import torch
import torch.nn.functional as F


def check_exponentials(device: str) -> None:
    """On a Hopper GPU, or in Triton's interpreter on the CPU."""
    from lm.model.kernels import exponentials as kernels

    is_gpu = device == "cuda"
    if not is_gpu:
        kernels.multiprocessors = lambda device: 2
    dtype, spread = (torch.bfloat16, 2.0) if is_gpu else (torch.float16, 0.7)  # float16 holds no large exponentials
    # Whole tiles and ragged ones, fewer of them than programs and more; rows of weight beyond the vocabulary.
    shapes = [(128, 512, 512, 64), (200, 300, 304, 48), (129, 257, 264, 96)]
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


def check_extremes() -> None:
    """Targets nearly certain, and nearly impossible; on a Hopper GPU."""
    from lm.model.kernels.exponentials import exponentials

    x = torch.eye(64, device="cuda", dtype=torch.bfloat16).repeat(2, 1)
    weight = torch.zeros(256, 64, device="cuda", dtype=torch.bfloat16)
    weight[0] = torch.linspace(-120, 120, 64)
    targets = torch.zeros(128, device="cuda", dtype=torch.long)
    loss, gradient, factors = exponentials(x, weight, targets, 256, 1.0)
    assert loss.isfinite()
    wide = F.linear(x.double(), weight.double())
    softmax = wide.softmax(1)
    softmax[:, 0] = -softmax[:, 1:].sum(1)
    ours = gradient.double() * factors.double()[:, None]
    likely = wide[:, 0] > -50
    assert (ours - softmax)[likely].norm() < 2**-8 * softmax[likely].norm()
    assert ours.isfinite().all()
    torch.testing.assert_close(ours[0], softmax[0], rtol=0.02, atol=1e-6)


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9, reason="needs a Hopper GPU"
)
def test_exponentials():
    check_exponentials("cuda")
    check_extremes()


if __name__ == "__main__":
    check_exponentials("cuda" if torch.cuda.is_available() else "cpu")
