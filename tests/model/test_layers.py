"""Linear, Embedding, RMSNorm, feed-forwards and rotary embedding against independent ones."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import gradcheck
from torch.testing import assert_close

from lm.model import Embedding, Linear, RMSNorm, RotaryPositionEmbedding, SiLUFeedForward, SwiGLU, layers
from lm.model.layers import truncated_normal


def random(*shape: int, **options: Any) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)), **options)


def check_truncated_normal(weight: torch.Tensor, std: float) -> None:
    """Cut at 3 std, with a truncated normal's standard deviation and share within 1 std."""
    scaled = weight.detach().double() / std
    assert 2.9 < scaled.abs().max() <= 3
    assert scaled.mean().abs() < 0.02
    assert_close(scaled.std().item(), 0.98658, atol=0.01, rtol=0)
    assert_close((scaled.abs() < 1).double().mean().item(), 0.68269 / 0.99730, atol=0.01, rtol=0)


def test_truncated_normal(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(layers, "PIECE", 2**16)  # the last piece is shorter
    torch.manual_seed(0)
    check_truncated_normal(truncated_normal(1200, 1000, 0.02), 0.02)  # some ten numbers are drawn a third time
    with torch.device("meta"):
        assert truncated_normal(3, 2, 1.0).shape == (3, 2)


def test_linear():
    torch.manual_seed(0)
    ours, theirs = Linear(200, 300), nn.Linear(200, 300, bias=False)
    theirs.load_state_dict(ours.state_dict())  # the same keys and shapes
    for x in (random(200), random(4, 200), random(2, 3, 200)):
        assert_close(ours(x), theirs(x))
    check_truncated_normal(ours.weight, math.sqrt(2 / 500))


def test_embedding():
    torch.manual_seed(0)
    ours = Embedding(300, 200)
    ids = torch.tensor([[0, 299, 5], [5, 5, 1]])
    assert_close(ours(ids), F.embedding(ids, ours.weight))
    assert_close(ours(ids)[1, 0], ours.weight[5])
    check_truncated_normal(ours.weight, 1.0)
    with pytest.raises(IndexError):
        ours(torch.tensor([-1]))


def test_rms_norm():
    ours, theirs = RMSNorm(16), nn.RMSNorm(16, eps=1e-5)
    assert_close(ours.weight, torch.ones(16))
    weights = {"weight": random(16)}
    ours.load_state_dict(weights)
    theirs.load_state_dict(weights)
    for x in (random(2, 3, 16), random(16) * 1e-3, torch.zeros(1, 16)):
        assert_close(ours(x), theirs(x))
    assert_close(RMSNorm(16, eps=0.5)(random(3, 16)), F.rms_norm(random(3, 16), (16,), eps=0.5))


def test_rms_norm_of_large_half_precision():
    # The squares overflow float16, and bfloat16 sums lose digits.
    for dtype in (torch.float16, torch.bfloat16):
        x = (random(3, 512) * 1e4).to(dtype)
        out = RMSNorm(512)(x)
        assert out.dtype == dtype
        assert_close(out.float(), F.rms_norm(x.double(), (512,)).to(dtype).float(), atol=1e-3, rtol=8e-3)


def test_feed_forwards():
    torch.manual_seed(0)
    x = random(2, 3, 8)
    gated, plain = SwiGLU(8, 24), SiLUFeedForward(8, 32)
    expected = F.linear(F.silu(F.linear(x, gated.w1.weight)) * F.linear(x, gated.w3.weight), gated.w2.weight)
    assert_close(gated(x), expected)
    assert_close(plain(x), F.linear(F.silu(F.linear(x, plain.w1.weight)), plain.w2.weight))
    assert sorted(gated.state_dict()) == ["w1.weight", "w2.weight", "w3.weight"]
    assert sum(p.numel() for p in gated.parameters()) == 3 * 8 * 24
    assert sum(p.numel() for p in plain.parameters()) == 2 * 8 * 32


def test_gradients():
    x = random(2, 6, dtype=torch.float64).requires_grad_()
    for part in (RMSNorm(6), SwiGLU(6, 4), SiLUFeedForward(6, 4)):
        assert gradcheck(part.double(), (x,))
    rope = RotaryPositionEmbedding(10.0, 6, 4)
    assert gradcheck(lambda v: rope(v, torch.tensor([1, 3])), (x,))


def complex_rotation(x: torch.Tensor, positions: torch.Tensor, theta: float) -> torch.Tensor:
    """Each pair as one complex number times exp(i * angle)."""
    width = x.shape[-1]
    angles = positions.double()[..., None] * theta ** (-torch.arange(0, width, 2).double() / width)
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


def test_rope_is_complex_multiplication():
    rope = RotaryPositionEmbedding(10_000.0, 8, 4096)
    x = random(2, 3, 5, 8)
    for positions in (torch.tensor([0, 1, 7, 100, 4095]), torch.randint(0, 4096, (2, 3, 5))):
        expected = complex_rotation(x, positions, 10_000.0)
        assert_close(rope(x, positions).double(), expected, atol=1e-6, rtol=1e-6)
        out = rope(x.bfloat16(), positions)
        assert out.dtype == torch.bfloat16
        expected = complex_rotation(x.bfloat16(), positions, 10_000.0).bfloat16()
        assert_close(out, expected, atol=1e-6, rtol=8e-3)


def test_rope_products_depend_on_the_distance_only():
    rope = RotaryPositionEmbedding(100.0, 16, 1000)
    q, k = random(1, 16), random(1, 1, 16)[0]

    def product(m: int, n: int) -> torch.Tensor:
        return (rope(q, torch.tensor([m])) * rope(k, torch.tensor([n]))).sum()

    assert_close(product(7, 3), product(804, 800), atol=1e-4, rtol=1e-4)
    assert not torch.isclose(product(7, 3), product(7, 4), atol=1e-3)
    assert_close(rope(q, torch.tensor([0])), q)


def test_rope_keeps_nothing_in_the_state_dict():
    rope = RotaryPositionEmbedding(10_000.0, 8, 16)
    assert not rope.state_dict()
    assert {b.dtype for b in rope.buffers()} == {torch.float32}


def test_rope_refuses_odd_widths():
    with pytest.raises(ValueError, match="d_k is 7"):
        RotaryPositionEmbedding(10_000.0, 7, 16)
