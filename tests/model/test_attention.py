"""Multi-head self-attention against torch's module, and the cache."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lm.model import KVCache, ModelConfig, MultiHeadSelfAttention, RotaryPositionEmbedding


def test_equals_torchs_module():
    torch.manual_seed(0)
    ours = MultiHeadSelfAttention(24, 4)
    theirs = nn.MultiheadAttention(24, 4, bias=False, batch_first=True)
    packed = torch.cat([ours.q_proj.weight, ours.k_proj.weight, ours.v_proj.weight])
    theirs.load_state_dict({"in_proj_weight": packed, "out_proj.weight": ours.output_proj.weight})
    x = torch.randn(3, 7, 24)
    expected, _ = theirs(x, x, x, attn_mask=~torch.ones(7, 7, dtype=torch.bool).tril(), need_weights=False)
    assert_close(ours(x), expected)
    assert_close(ours(x[0]), expected[0])
    assert_close(ours(x[None]), expected[None])


def test_manual_equals_fused_with_rope():
    torch.manual_seed(0)
    rope = RotaryPositionEmbedding(100.0, 6, 50)
    fused, manual = (MultiHeadSelfAttention(24, 4, rope, kind) for kind in ("fused", "manual"))
    manual.load_state_dict(fused.state_dict())
    x = torch.randn(2, 9, 24)
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 8], [3, 1, 4, 15, 9, 26, 5, 35, 49]])
    assert_close(fused(x, positions), manual(x, positions))
    assert_close(fused(x), fused(x, torch.arange(9)))
    assert not torch.allclose(fused(x)[1], fused(x, positions)[1], atol=1e-3)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="d_model 10 is not divisible by num_heads 3"):
        MultiHeadSelfAttention(10, 3)


def test_cache_is_no_longer_than_the_context():
    config = ModelConfig(context_length=8, d_model=8, num_heads=2)
    with pytest.raises(ValueError, match="9 tokens exceeds the model's context_length 8"):
        KVCache(config, 1, 9, "cpu", torch.float32)
