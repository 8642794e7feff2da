"""silu, softmax, attention and cross-entropy against torch's own and against explicit loops."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck
from torch.testing import assert_close

from lm.model import cross_entropy_loss, scaled_dot_product_attention, silu, softmax


def random(*shape: int, **options: Any) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)), **options)


def test_silu():
    x = torch.linspace(-100, 100, 401)
    assert_close(silu(x), F.silu(x))


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_softmax(dim: int):
    x = random(4, 5, 6)
    assert_close(softmax(x, dim), F.softmax(x, dim))
    assert_close(softmax(x + 1000, dim), F.softmax(x, dim), atol=1e-4, rtol=1e-3)


def test_softmax_of_large_bfloat16():
    x = torch.tensor([[3e38, 1.0, -3e38], [80.0, 80.0, -80.0]], dtype=torch.bfloat16)
    expected = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]], dtype=torch.bfloat16)
    assert_close(softmax(x, -1), expected)


def slow_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """One query at a time, in Python floats."""
    out = torch.zeros(q.shape[0], v.shape[1], dtype=torch.float64)
    for t in range(q.shape[0]):
        allowed = [s for s in range(k.shape[0]) if mask[t, s]]
        weights = [math.exp(float(q[t].double() @ k[s].double()) / math.sqrt(q.shape[1])) for s in allowed]
        for s, weight in zip(allowed, weights, strict=True):
            out[t] += weight / sum(weights) * v[s].double()
    return out


def test_attention_against_a_loop():
    q, k, v = random(5, 4), random(7, 4) * 2, random(7, 3)
    mask = random(5, 7) > 0
    mask[2] = False  # attends to nothing
    out = scaled_dot_product_attention(q, k, v, mask)
    assert_close(out.double(), slow_attention(q, k, v, mask), atol=1e-6, rtol=1e-5)
    assert out[2].eq(0).all()
    full = slow_attention(q, k, v, torch.ones(5, 7))
    assert_close(scaled_dot_product_attention(q, k, v).double(), full, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (2, 1, 3)])
def test_attention_with_any_leading_dimensions(lead: tuple[int, ...]):
    q, k, v = random(*lead, 5, 8), random(*lead, 6, 8), random(*lead, 6, 8)
    mask = random(*lead, 5, 6) > -0.5
    mask[..., 0] = True
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    assert_close(scaled_dot_product_attention(q, k, v, mask), expected)
    shared = mask.reshape(-1, 5, 6)[0]
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=shared)
    assert_close(scaled_dot_product_attention(q, k, v, shared), expected)


def test_attention_gradients():
    q, k, v = (random(2, 3, 4, dtype=torch.float64).mul(i).requires_grad_() for i in (1, 2, 3))
    mask = torch.tensor([[True, False, True], [False, False, False], [True, True, True]])
    assert gradcheck(scaled_dot_product_attention, (q, k, v, mask))


def test_attention_of_large_bfloat16_is_finite():
    q = (random(2, 4, 8) * 1e4).bfloat16()
    out = scaled_dot_product_attention(q, q, q, torch.ones(4, 4, dtype=torch.bool).tril())
    assert out.dtype == torch.bfloat16
    assert out.isfinite().all()


@pytest.mark.parametrize("lead", [(6,), (2, 3), (2, 3, 4)])
def test_cross_entropy(lead: tuple[int, ...]):
    logits = random(*lead, 11) * 5
    targets = torch.randint(0, 11, lead, generator=torch.Generator().manual_seed(0))
    expected = F.cross_entropy(logits.reshape(-1, 11), targets.reshape(-1))
    assert_close(cross_entropy_loss(logits, targets), expected)
    assert_close(cross_entropy_loss(logits + 1e3, targets), expected, atol=1e-3, rtol=1e-3)


def test_cross_entropy_of_large_bfloat16():
    logits = torch.tensor([[3e38, 0.0], [0.0, 3e38]], dtype=torch.bfloat16)
    loss = cross_entropy_loss(logits, torch.tensor([0, 1]))
    assert loss.dtype == torch.float32
    assert loss == 0


def test_cross_entropy_sums_in_float32():
    # 3000 equal logits: bfloat16 cannot hold ln 3000, nor count to 3000.
    logits = torch.zeros(4, 3000, dtype=torch.bfloat16)
    loss = cross_entropy_loss(logits, torch.zeros(4, dtype=torch.long))
    assert_close(loss, torch.tensor(math.log(3000)))


def test_cross_entropy_gradients():
    logits = random(2, 3, 5, dtype=torch.float64).requires_grad_()
    assert gradcheck(lambda x: cross_entropy_loss(x, torch.tensor([[0, 1, 2], [3, 4, 4]])), (logits,))


def test_cross_entropy_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"targets have shape \(2, 2\).*need \(2, 3\)"):
        cross_entropy_loss(torch.zeros(2, 3, 5), torch.zeros(2, 2, dtype=torch.long))
