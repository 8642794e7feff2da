"""The account of the fast path: by hand, in step with lm.model, and near what a GPU was measured to use."""

from dataclasses import replace

import pytest

from lm.accounting import PRESETS, fast_moments, largest_fast_batch
from lm.accounting import fast as account
from lm.model import ModelConfig
from lm.model.loss import GPU_PART


def test_constants_are_those_of_the_model():
    assert account.LOGITS_PART == GPU_PART


@pytest.mark.parametrize(
    ("preset", "batch_size", "measured"),
    [("tinystories", 128, 3.390e9), ("gpt2-small", 16, 11.360e9), ("gpt2-xl", 13, 81.343e9)],
)
def test_near_the_bytes_of_an_h100(preset: str, batch_size: int, measured: float):
    net = PRESETS[preset].net
    assert max(fast_moments(net, net.context_length, batch_size).values()) == pytest.approx(measured, rel=0.02)


def test_a_block_by_hand():
    # Width 8, two heads of 4, 10 inside, 3 tokens: input, stream, two norms, queries, keys, values and the output are 8
    # of the width; SwiGLU's 3 of 10; float32 for heads and norms.
    net = ModelConfig(vocab_size=9, context_length=3, d_model=8, num_layers=1, num_heads=2, d_ff=10)
    per_token = 2 * (8 * 8 + 3 * 10) + 4 * (2 + 2)
    assert account._block(net, 3) == 3 * per_token
    assert account._block(replace(net, position="none", norm="none", ffn="silu"), 3) == 3 * (2 * (6 * 8 + 20) + 4 * 2)
    assert account._block(replace(net, dropout=0.1), 3) == 3 * (per_token + 2 * 8)
    two = [fast_moments(replace(net, num_layers=layers), 3, 5)["backward, first block"] for layers in (1, 2)]
    matrices = 4 * 8**2 + 3 * 8 * 10
    assert two[1] - two[0] == (4 + 8 + 4) * (matrices + 2 * 8) + 2 * matrices


def test_largest_batch_is_the_last_that_fits():
    net = PRESETS["gpt2-small"].net
    for checkpointing in (False, True):
        most = largest_fast_batch(net, 1024, 40 * 10**9, checkpointing)
        at = [max(fast_moments(net, 1024, size, checkpointing).values()) for size in (most, most + 1)]
        assert at[0] <= 40 * 10**9 < at[1]
    assert largest_fast_batch(net, 1024, 10**9) == 0


def test_manual_attention_is_refused():
    with pytest.raises(ValueError, match="attention is manual"):
        fast_moments(replace(PRESETS["tinystories"].net, attention="manual"), 256, 1)
