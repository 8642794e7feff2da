"""The whole model: keys, causality, initial loss, switches, overfitting, cache, autocast, compilation."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from lm.model import KVCache, ModelConfig, TransformerBlock, TransformerLM, cross_entropy_loss

TINY = ModelConfig(vocab_size=50, context_length=16, d_model=32, num_layers=2, num_heads=4, d_ff=64)
SWITCHES: list[dict[str, Any]] = [
    {},
    {"norm": "none"},
    {"norm_position": "post"},
    {"position": "none"},
    {"ffn": "silu"},
    {"tie_embeddings": True},
    {"attention": "manual"},
]


def build(config: ModelConfig = TINY, seed: int = 0, **changes: Any) -> TransformerLM:
    torch.manual_seed(seed)
    return TransformerLM(replace(config, **changes))


def random_ids(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, TINY.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def test_state_dict_keys():
    block = [*(f"attn.{part}_proj" for part in ("q", "k", "v", "output")), "ln1", "ln2", "ffn.w1", "ffn.w2", "ffn.w3"]
    expected = {"token_embeddings.weight", "ln_final.weight", "lm_head.weight"}
    expected |= {f"layers.{i}.{name}.weight" for i in (0, 1) for name in block}
    assert set(build().state_dict()) == expected
    assert set(build(tie_embeddings=True).state_dict()) == expected
    assert set(build(norm_position="post").state_dict()) == expected - {"ln_final.weight"}
    assert set(build(norm="none").state_dict()) == {k for k in expected if ".ln" not in k and "ln_" not in k}
    assert set(build(ffn="silu").state_dict()) == {k for k in expected if "w3" not in k}


def reference_logits(weights: dict[str, torch.Tensor], config: ModelConfig, ids_T: torch.Tensor) -> torch.Tensor:
    """The default model written out once more from the formulas, with complex rotation, in float64."""
    w = {k: v.double() for k, v in weights.items()}
    time, width = len(ids_T), config.head_width
    frequencies = config.rope_theta ** (-torch.arange(0, width, 2).double() / width)
    angles = torch.outer(torch.arange(time).double(), frequencies)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * w[name]

    def rotate(x: torch.Tensor) -> torch.Tensor:
        z = torch.complex(x[:, 0::2], x[:, 1::2]) * torch.exp(1j * angles)
        return torch.stack((z.real, z.imag), -1).reshape(time, width)

    x = w["token_embeddings.weight"][ids_T]
    for i in range(config.num_layers):
        h, layer = norm(x, f"layers.{i}.ln1.weight"), f"layers.{i}."
        q, k, v = (h @ w[f"{layer}attn.{name}_proj.weight"].T for name in "qkv")
        heads = []
        for head in range(config.num_heads):
            part = slice(head * width, (head + 1) * width)
            scores = rotate(q[:, part]) @ rotate(k[:, part]).T / math.sqrt(width)
            scores += torch.full((time, time), -math.inf, dtype=torch.float64).triu(1)
            heads.append(scores.softmax(-1) @ v[:, part])
        x = x + torch.cat(heads, -1) @ w[f"{layer}attn.output_proj.weight"].T
        h = norm(x, f"{layer}ln2.weight")
        gated = F.silu(h @ w[f"{layer}ffn.w1.weight"].T) * (h @ w[f"{layer}ffn.w3.weight"].T)
        x = x + gated @ w[f"{layer}ffn.w2.weight"].T
    return norm(x, "ln_final.weight") @ w["lm_head.weight"].T


@pytest.mark.parametrize("attention", ["fused", "manual"])
def test_equals_the_formulas(attention: str):
    model = build(attention=attention)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "ln" in name:
                parameter.uniform_(0.5, 1.5)
    ids = random_ids(2, 16)
    for row in (0, 1):
        expected = reference_logits(model.state_dict(), TINY, ids[row])
        assert_close(model(ids)[row].double(), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("changes", SWITCHES)
def test_causality(changes: dict[str, Any]):
    model = build(**changes).eval()
    ids = random_ids(2, 16)
    changed = ids.clone()
    changed[:, 9] = (changed[:, 9] + 1) % TINY.vocab_size
    before, after = model(ids), model(changed)
    assert_close(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 10:], after[:, 10:], atol=1e-3)


@pytest.mark.parametrize("tie", [False, True])
def test_initial_loss_is_near_ln_of_the_vocabulary(tie: bool):
    model = build(vocab_size=2000, d_model=128, tie_embeddings=tie)
    ids = torch.randint(0, 2000, (8, 17), generator=torch.Generator().manual_seed(0))
    loss = cross_entropy_loss(model(ids[:, :-1]), ids[:, 1:])
    assert abs(loss.item() - math.log(2000)) < 0.3


def test_tied_embeddings_are_one_parameter():
    model, untied = build(tie_embeddings=True), build()
    assert model.token_embeddings.weight is model.lm_head.weight
    saved = sum(p.numel() for p in untied.parameters()) - sum(p.numel() for p in model.parameters())
    assert saved == TINY.vocab_size * TINY.d_model
    assert model.lm_head.weight.abs().max() <= 3 * math.sqrt(2 / (TINY.vocab_size + TINY.d_model))
    other = build(seed=5, tie_embeddings=True)
    other.load_state_dict(model.state_dict())
    assert_close(other(random_ids(2, 5)), model(random_ids(2, 5)))
    assert other.token_embeddings.weight is other.lm_head.weight


def test_position_switch():
    # One layer without positions cannot tell the order of what came before; RoPE can.
    ids = random_ids(1, 8)
    shuffled = ids[:, [3, 1, 0, 2, 6, 5, 4, 7]]
    for position, same in (("none", True), ("rope", False)):
        model = build(position=position, num_layers=1)
        assert torch.allclose(model(ids)[0, -1], model(shuffled)[0, -1], atol=1e-4) == same


def test_norm_position_switch():
    torch.manual_seed(0)
    pre, post = (TransformerBlock(replace(TINY, norm_position=where)) for where in ("pre", "post"))
    post.load_state_dict(pre.state_dict())
    x = torch.randn(2, 8, TINY.d_model)
    inner = x + pre.attn(pre.ln1(x))
    assert_close(pre(x), inner + pre.ffn(pre.ln2(inner)))
    inner = post.ln1(x + post.attn(x))
    assert_close(post(x), post.ln2(inner + post.ffn(inner)))
    model = build(norm_position="post")
    assert_close(model.hidden(random_ids(2, 8)).square().mean(-1), torch.ones(2, 8), atol=1e-3, rtol=0)


def test_norm_none_leaves_the_scale_alone():
    # Without norms, attention and feed-forward off, the logits are linear in the embeddings.
    model = build(norm="none")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "output_proj" in name or "w2" in name:
                parameter.zero_()
        before = model(random_ids(1, 4))
        model.token_embeddings.weight.mul_(3)
        assert_close(model(random_ids(1, 4)), 3 * before)


def test_dropout_in_training_only():
    model = build(dropout=0.5)
    ids = random_ids(2, 8)
    assert not torch.equal(model(ids), model(ids))
    model.eval()
    assert_close(model(ids), build().eval()(ids))


def test_dropout_in_post_norm():
    block = TransformerBlock(replace(TINY, norm_position="post", dropout=0.999))
    x = torch.randn(1, 1, TINY.d_model)
    torch.manual_seed(0)  # drops everything
    assert_close(block(x), block.ln2(block.ln1(x)))


def test_dropout_falls_on_embeddings_and_sublayers():
    model = build(dropout=0.5)
    seen: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        if name in ("token_embeddings", "dropout", "layers.0"):
            module.register_forward_hook(lambda _module, _inputs, output, name=name: seen.update({name: output}))
    model(random_ids(4, 16))
    dropped = seen["dropout"] == 0
    assert 0.4 < dropped.float().mean() < 0.6
    assert_close(seen["dropout"][~dropped], 2 * seen["token_embeddings"][~dropped])
    # Both sublayers dropped: a quarter of the residual stream passes the block untouched.
    untouched = (seen["layers.0"] == seen["dropout"]).float().mean()
    assert 0.2 < untouched < 0.3


@pytest.mark.parametrize("changes", SWITCHES)
def test_overfits_one_batch(changes: dict[str, Any]):
    model = build(**changes)
    ids = random_ids(2, 13)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2 if "norm" not in changes else 3e-3, weight_decay=0)
    loss = torch.tensor(math.inf)
    for _ in range(120):
        optimizer.zero_grad()
        loss = cross_entropy_loss(model(ids[:, :-1]), ids[:, 1:])
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.02


def test_too_long_a_sequence():
    with pytest.raises(ValueError, match=r"17 tokens exceeds the model's context_length 16"):
        build()(random_ids(1, 17))


@pytest.mark.parametrize("changes", SWITCHES)
def test_cache_equals_the_full_pass_for_ragged_rows(changes: dict[str, Any]):
    model = build(**changes).eval()
    ids = random_ids(3, 14)
    expected = model(ids)
    lengths = [5, 1, 3]
    cache = KVCache(model.config, 3, 16, "cpu", torch.float32)
    prompt = random_ids(3, 5, seed=9)  # the padding on the right is anything
    for row, length in enumerate(lengths):
        prompt[row, :length] = ids[row, :length]
    with torch.no_grad():
        first = model(prompt, cache)
        for row, length in enumerate(lengths):
            assert_close(first[row, :length], expected[row, :length], atol=1e-5, rtol=1e-4)
        cache.lengths += torch.tensor(lengths)
        for count in (1, 3, 1, 4):  # one or several tokens at a time
            chunk = torch.stack([ids[row, n : n + count] for row, n in enumerate(cache.lengths.tolist())])
            logits = model(chunk, cache)
            for row, n in enumerate(cache.lengths.tolist()):
                assert_close(logits[row], expected[row, n : n + count], atol=1e-5, rtol=1e-4)
            cache.lengths += count


def test_cache_of_another_size():
    cache = KVCache(TINY, 2, 4, "cpu", torch.float32)
    for shape in ((3, 4), (2, 5)):
        with pytest.raises(ValueError, match=r"do not fit a cache of 2 rows of 4"):
            build()(random_ids(*shape), cache)


@pytest.mark.parametrize("attention", ["fused", "manual"])
@pytest.mark.parametrize("cache_type", [torch.bfloat16, torch.float32])
def test_autocast(attention: str, cache_type: torch.dtype):
    model = build(attention=attention)
    ids = random_ids(2, 12)
    exact = model(ids)
    cache = KVCache(model.config, 2, 16, "cpu", cache_type)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(ids)
        assert logits.dtype == torch.bfloat16
        loss = cross_entropy_loss(logits, ids)
        with torch.no_grad():
            model(ids[:, :8], cache)
            cache.lengths += 8
            cached = model(ids[:, 8:], cache)
    assert loss.dtype == torch.float32
    assert_close(logits.float(), exact, atol=0.05, rtol=0.05)
    assert_close(cached.float(), exact[:, 8:], atol=0.05, rtol=0.05)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_compiled_in_place():
    model, plain = build(), build()
    keys = list(model.state_dict())
    model.compile(backend="aot_eager")
    ids = random_ids(2, 12)
    cross_entropy_loss(model(ids), ids).backward()
    cross_entropy_loss(plain(ids), ids).backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert_close(ours.grad, theirs.grad)
    assert list(model.state_dict()) == keys
    cache = KVCache(model.config, 2, 16, "cpu", torch.float32)
    with torch.no_grad():
        for start, end in ((0, 8), (8, 9), (9, 10)):
            assert_close(model(ids[:, start:end], cache), plain(ids)[:, start:end], atol=1e-5, rtol=1e-4)
            cache.lengths += end - start
