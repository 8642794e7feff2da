"""Queries, keys and values by one product and rotated compute what the readable modules do, and their gradients."""

import pytest
import torch
from torch import Tensor

from lm.model.rope import RotaryPositionEmbedding


def exact(x: Tensor, weights: list[Tensor], heads: int, rope: RotaryPositionEmbedding | None) -> Tensor:
    """By the readable modules, in float64, (B, T, 3, H, K)."""
    parts = [(x @ weight.T).unflatten(-1, (heads, -1)).transpose(1, 2) for weight in weights]
    if rope is not None:
        parts[:2] = (rope(part, torch.arange(x.shape[1], device=x.device)) for part in parts[:2])
    return torch.stack([part.transpose(1, 2) for part in parts], 2)


def check_projection(device: str) -> None:
    """On a Hopper GPU, or in Triton's interpreter on the CPU."""
    from lm.model.kernels import projection as kernels

    is_gpu = device == "cuda"
    if not is_gpu:
        kernels.multiprocessors = lambda device: 2
    # Whole tiles and ragged ones, fewer of them than programs and more; queries and keys end within a tile; heads that
    # no tile is made of.
    shapes = [(2, 128, 64, 2, True), (3, 90, 48, 3, True), (1, 129, 128, 1, True), (1, 129, 120, 5, True)]
    shapes += [(2, 64, 96, 2, False)]
    shapes += [(64, 256, 512, 16, True), (8, 1024, 768, 12, True)] * is_gpu
    for batch_size, time, d_model, heads, has_rope in shapes:
        torch.manual_seed(0)
        dtype = torch.bfloat16 if is_gpu else torch.float16
        x, *weights = torch.randn(batch_size, time, d_model), *torch.randn(3, d_model, d_model) / d_model**0.5
        x, *weights = (t.to(device, t.dtype) for t in (x, *weights))
        x, weights = x.to(dtype), [weight.to(dtype).float() for weight in weights]
        rope = RotaryPositionEmbedding(10_000, d_model // heads, 2 * time).to(device) if has_rope else None
        cos, sin = (rope.cos, rope.sin) if rope else (None, None)
        inputs = [t.requires_grad_() for t in (x, *weights)]
        doubles = [t.detach().double().requires_grad_() for t in inputs]
        expected = exact(doubles[0], doubles[1:], heads, rope)
        outs = [kernels.projection(x, weights, heads, cos, sin)]
        assert kernels.has_whole_heads(d_model // heads) == (d_model // heads in (16, 32, 64, 128))
        if cos is not None and sin is not None and kernels.has_whole_heads(d_model // heads):
            narrow = torch.cat(weights).to(dtype)
            outs.append(kernels.rotated_product(x, narrow, heads, cos, sin).view(expected.shape))
        for out in outs:
            assert out.dtype == dtype
            assert (out - expected).norm() < torch.finfo(dtype).eps * expected.norm()
        # What comes back is from before the rotation.
        gradient = torch.randn(expected.shape, device=device, dtype=dtype)
        mine = torch.autograd.grad(outs[0], inputs, gradient)
        plain = exact(doubles[0], doubles[1:], heads, None)
        theirs = torch.autograd.grad(plain, doubles, gradient.double())
        for ours, double, like in zip(mine, theirs, inputs, strict=True):
            assert ours.dtype == like.dtype
            assert (ours - double).norm() < max(torch.finfo(dtype).eps, 1e-5) * double.norm()


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9, reason="needs a Hopper GPU"
)
def test_projection():
    check_projection("cuda")


if __name__ == "__main__":
    check_projection("cuda" if torch.cuda.is_available() else "cpu")
