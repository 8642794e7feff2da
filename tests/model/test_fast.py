"""The fast path computes what the readable one does: losses and gradients, for every switch; its kernels too."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from lm.model import (
    ModelConfig,
    TransformerLM,
    cross_entropy_loss,
    linear_cross_entropy,
    scaled_dot_product_attention,
)
from lm.model import fast as fast_module
from lm.model import loss as loss_module
from lm.model.loss import loss_into_gradient

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


@pytest.fixture
def quick_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch.compile without its last stage, which takes a C++ compiler half a minute."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    loss_module._compiled.cache_clear()
    yield
    loss_module._compiled.cache_clear()
    torch.compiler.reset()


def models(packed: bool = True, **changes: Any) -> tuple[TransformerLM, TransformerLM]:
    """A model and its double on the fast path."""
    config = replace(TINY, **changes)
    torch.manual_seed(0)
    slow, fast = TransformerLM(config), TransformerLM(config)
    fast.load_state_dict(slow.state_dict())
    fast.speed_up(packed=packed)
    return slow, fast


def batch(rows: int = 3) -> tuple[Tensor, Tensor]:
    ids = torch.randint(0, TINY.vocab_size, (rows, 17), generator=torch.Generator().manual_seed(1))
    return ids[:, :-1], ids[:, 1:]


def gradients(model: TransformerLM) -> dict[str, Tensor]:
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {name: gradient for name, gradient in found.items() if gradient is not None}


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "by parameters"])
@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_equals_the_readable_path(switches: dict[str, Any], packed: bool):
    slow, fast = (model.double() for model in models(packed, **switches))
    losses = [model.loss(*batch()) for model in (slow, fast)]
    assert_close(losses[1], losses[0], rtol=1e-12, atol=0)
    for loss in losses:
        (2 * loss).backward()
    assert gradients(fast).keys() == gradients(slow).keys()
    # The rotary tables, and so the rotation, are float32 in both.
    assert_close(gradients(fast), gradients(slow), rtol=1e-5, atol=1e-8)


def test_loss_is_that_of_the_logits():
    slow, fast = models()
    inputs, targets = batch()
    assert_close(slow.loss(inputs, targets), cross_entropy_loss(slow(inputs), targets))
    with torch.no_grad():
        assert_close(fast.loss(inputs, targets), cross_entropy_loss(slow(inputs), targets))


def test_near_under_autocast():
    slow, fast = models()
    with torch.autocast("cpu", torch.bfloat16):
        losses = [model.loss(*batch()) for model in (slow, fast)]
        narrow = fast.hidden(batch()[0])
    assert narrow.dtype == torch.bfloat16
    assert_close(losses[1], losses[0], rtol=1e-2, atol=0)
    for loss in losses:
        loss.backward()
    for name, expected in gradients(slow).items():
        assert gradients(fast)[name].dtype == torch.float32
        assert (gradients(fast)[name] - expected).norm() < 0.05 * expected.norm(), name


def test_cached_passes_are_the_readable_ones():
    from lm.model import KVCache

    slow, fast = models()
    inputs, _ = batch()
    caches = [KVCache(TINY, 3, 16, "cpu", torch.float32) for _ in range(2)]
    assert torch.equal(fast(inputs, caches[0]), slow(inputs, caches[1]))


@pytest.mark.usefixtures("quick_compiler")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_equals_uncompiled():
    _, fast = models()
    _, compiled = models()
    compiled.speed_up(compiled=True)
    for model in (fast, compiled):
        model.loss(*batch()).backward()
    assert_close(gradients(compiled), gradients(fast), rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("switches", [{}, {"norm_position": "post"}], ids=str)
def test_blocks_are_compiled_once(switches: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    _, fast = models(**switches)
    fast.speed_up(compiled=True)
    for _ in range(2):
        fast.hidden(batch()[0])
    assert len(graphs) == 1
    torch.compiler.reset()


@pytest.mark.parametrize("is_fast", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_checkpointing_changes_nothing_but_memory(is_fast: bool, dropout: float):
    kept, again = models(dropout=dropout) if is_fast else (models(dropout=dropout)[0], models(dropout=dropout)[0])
    if is_fast:
        kept.speed_up()
    again.checkpointing = True
    saved: list[int] = []
    for model in (kept, again):
        torch.manual_seed(3)
        sizes: list[int] = []

        def pack(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model.loss(*batch())
        loss.backward()
        saved.append(sum(sizes))
    assert_close(gradients(again), gradients(kept), rtol=0, atol=0)
    assert saved[1] < saved[0] / 2


@pytest.mark.usefixtures("quick_compiler")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("vocab_size", [48, 50])
def test_linear_cross_entropy_in_parts(compiled: bool, vocab_size: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loss_module, "CPU_PART", 56 * 8 * 4)  # four rows at a time of ten
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 6, generator=generator, dtype=torch.float64).requires_grad_()
    weight = (5 * torch.randn(vocab_size, 6, generator=generator, dtype=torch.float64)).requires_grad_()
    targets = torch.randint(0, vocab_size, (2, 5), generator=generator)
    results = []
    for loss in (linear_cross_entropy(x, weight, targets, compiled), cross_entropy_loss(x @ weight.T, targets)):
        results.append((loss, *torch.autograd.grad(3 * loss, (x, weight))))
    assert_close(results[0], results[1], rtol=1e-10, atol=1e-12)


def test_gradients_are_scaled_and_the_loss_is_not():
    _, model = models()
    ids = torch.randint(0, TINY.vocab_size, (2, 9), generator=torch.Generator().manual_seed(1))
    losses, found = [], []
    for scale in (None, 1.0, 0.25):
        model.zero_grad()
        losses.append(model.loss(ids[:, :-1], ids[:, 1:], scale))
        losses[-1].backward()
        found.append({name: gradient / (scale or 1) for name, gradient in gradients(model).items()})
    assert_close(losses[1:], losses[:1] * 2, rtol=0, atol=0)
    assert_close(found[1:], found[:1] * 2, rtol=1e-6, atol=1e-9)


def test_loss_into_gradient_keeps_columns_beyond_the_vocabulary_out():
    logits = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 4, 2])
    real = logits[:, :5].clone().requires_grad_()
    expected = cross_entropy_loss(real, targets) * 3
    expected.backward()
    loss = loss_into_gradient(logits, targets, 5, 0.5)
    assert_close(loss, expected.detach())
    assert real.grad is not None
    assert_close(logits[:, :5], real.grad / 2)
    assert not logits[:, 5:].any()


@pytest.mark.parametrize("threads", [1, 2])
def test_attention_compiled_for_the_cpu(threads: int, monkeypatch: pytest.MonkeyPatch):
    from lm.model.native import causal_attention

    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    generator = torch.Generator().manual_seed(0)
    for shape in ((2, 3, 64, 32), (1, 1, 96, 64)):
        q, k, v, weights = (2 * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(4))
        wide, narrow = ([x.to(dtype).requires_grad_() for x in (q, k, v)] for dtype in (q.dtype, torch.float32))
        mask = torch.ones(shape[2], shape[2], dtype=torch.bool).tril()
        expected, ours = scaled_dot_product_attention(*wide, mask=mask), causal_attention(*narrow)
        assert_close(ours.double(), expected, rtol=1e-5, atol=1e-5)
        for mine, theirs in zip(
            torch.autograd.grad(ours, narrow, weights.float()),
            torch.autograd.grad(expected, wide, weights),
            strict=True,
        ):
            assert_close(mine.double(), theirs, rtol=1e-4, atol=1e-4)


def test_attention_compiled_for_the_cpu_keeps_what_is_no_number():
    from lm.model.native import causal_attention

    q, k, v = (torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0)) for _ in range(3))
    for number in (float("nan"), float("inf")):
        wrong = k.clone()
        wrong[0, 0, 7, 0] = number
        out = causal_attention(q, wrong, v)
        assert out[0, 0, :7].isfinite().all()
        assert_close(out, F.scaled_dot_product_attention(q, wrong, v, is_causal=True), equal_nan=True)


@pytest.mark.usefixtures("quick_compiler")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_equals_the_readable_path_where_attention_is_compiled():
    slow, fast = models(d_model=64, num_heads=2, context_length=32)
    ids = torch.randint(0, TINY.vocab_size, (3, 33), generator=torch.Generator().manual_seed(1))
    slow.loss(ids[:, :-1], ids[:, 1:]).backward()
    for compiled in (False, True):
        fast.speed_up(compiled)
        fast.zero_grad()
        fast.loss(ids[:, :-1], ids[:, 1:]).backward()
        assert_close(gradients(fast), gradients(slow), rtol=1e-4, atol=1e-6)


def check_kernels(device: str) -> None:
    """The kernels against the plain functions; runs on a GPU, or in Triton's interpreter on the CPU."""
    from lm.model.kernels.cross_entropy import loss_into_gradient as kernel

    for rows, vocab_size, length in ((5, 50, 56), (3, 5_000, 5_000), (2, 20_001, 20_008)):
        for dtype in (torch.float32, torch.bfloat16):
            logits = (10 * torch.randn(rows, length, generator=torch.Generator().manual_seed(0))).to(device, dtype)
            targets = torch.randint(0, vocab_size, (rows,)).to(device)
            ours, expected = logits.clone(), logits.clone()
            losses = [
                function(x, targets, vocab_size, 0.5)
                for function, x in ((kernel, ours), (loss_into_gradient, expected))
            ]
            assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-5)
            assert_close(ours, expected, rtol=2**-7 if dtype == torch.bfloat16 else 1e-4, atol=1e-6)

    if device == "cuda":
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(70, 32, generator=generator).to(device, torch.bfloat16).requires_grad_()
        weight = torch.randn(50, 32, generator=generator).to(device).requires_grad_()
        targets = torch.randint(0, 50, (70,), generator=generator).to(device)
        with torch.autocast(device, torch.bfloat16):
            ours = torch.autograd.grad(linear_cross_entropy(x, weight, targets), (x, weight))
        expected = torch.autograd.grad(cross_entropy_loss(x.double() @ weight.double().T, targets), (x, weight))
        for mine, theirs in zip(ours, expected, strict=True):
            assert mine.dtype == theirs.dtype
            assert (mine - theirs).norm() < 0.02 * theirs.norm()

    from lm.model.kernels.embedding import embedding
    from lm.model.kernels.norm import add_norm
    from lm.model.layers import RMSNorm

    for tokens, width in ((7, 48), (70, 520), (4500, 16)):
        generator = torch.Generator().manual_seed(tokens)
        norm = RMSNorm(width).to(device)
        torch.nn.init.normal_(norm.weight, generator=None)
        x, delta, residual, weights = (torch.randn(tokens, width, generator=generator).to(device) for _ in range(4))
        for has_delta in (True, False):
            ours, expected = ([t.clone().requires_grad_() for t in (x, delta)] for _ in range(2))
            given = ours[1] if has_delta else None
            total = expected[0] + expected[1] if has_delta else expected[0]
            pairs = add_norm(ours[0], given, norm.weight, norm.eps), (total, norm(total))
            variables = [[*inputs[: 1 + has_delta], norm.weight] for inputs in (ours, expected)]
            grads = [
                torch.autograd.grad((pair[0] * residual + pair[1] * weights).sum(), inputs)
                for pair, inputs in zip(pairs, variables, strict=True)
            ]
            assert_close(pairs[0], pairs[1], rtol=1e-5, atol=1e-5)
            assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-4)

        table = torch.randn(50, width, generator=generator).to(device).requires_grad_()
        for ids in (
            torch.randint(0, 49, (tokens,), generator=generator),
            torch.randint(0, 3, (tokens,), generator=generator),
            torch.full((tokens,), 49),
        ):
            rows = embedding(ids.to(device), table, torch.float32), F.embedding(ids.to(device), table)
            assert torch.equal(rows[0], rows[1])
            grads = [torch.autograd.grad((out * weights).sum(), table)[0] for out in rows]
            assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-4)

    from lm.model.kernels.attention import causal_attention
    from lm.model.rope import RotaryPositionEmbedding

    is_gpu = device == "cuda"
    for time, heads, width, has_rope in ((100, 3, 32, True), (64, 2, 16, False), (130, 2, 64, True)):
        generator = torch.Generator().manual_seed(time)
        qkv = torch.randn(2, time, 3, heads, width, generator=generator).to(device)
        weights = torch.randn(2, time, heads, width, generator=generator).to(device)
        rope = RotaryPositionEmbedding(10_000, width, 2 * time).to(device) if has_rope else None
        expected = qkv.double().requires_grad_()
        q, k, v = (x.transpose(1, 2) for x in expected.unbind(2))
        if rope is not None:
            q, k = (rope(x, torch.arange(time, device=device)) for x in (q, k))
        # The GPU's products round float32 to 10 bits.
        rotated = torch.stack([x.transpose(1, 2) for x in (q, k, v)], 2).detach()
        ours = rotated.to(torch.bfloat16 if is_gpu else torch.float32).requires_grad_()
        outs = (
            causal_attention(ours, rope and rope.cos, rope and rope.sin),
            F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2),
        )
        grads = [
            torch.autograd.grad((out * weights).sum(), x)[0] for out, x in zip(outs, (ours, expected), strict=True)
        ]
        for mine, theirs in ((outs[0], outs[1]), (grads[0], grads[1])):
            assert (mine - theirs).norm() < (0.01 if is_gpu else 1e-6) * theirs.norm()

    from lm.model.kernels.swiglu import swiglu

    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2**-6)):
        x = torch.randn(5, 2 * 1100, generator=torch.Generator().manual_seed(0)).to(device, dtype)
        ours, expected = x.clone().requires_grad_(), x.float().requires_grad_()
        gate, value = expected.chunk(2, -1)
        outs = swiglu(ours), F.silu(gate) * value
        weights = torch.randn(5, 1100, generator=torch.Generator().manual_seed(1)).to(device)
        grads = [
            torch.autograd.grad((out * weights).sum(), x)[0] for out, x in zip(outs, (ours, expected), strict=True)
        ]
        for mine, theirs in ((outs[0], outs[1]), (grads[0], grads[1])):
            assert_close(mine.float(), theirs, rtol=tolerance, atol=tolerance / 4)


def check_models(device: str) -> None:
    """Whole models on the kernels against the readable path; where the kernels run."""
    is_gpu = device == "cuda"
    ids = torch.randint(0, 50, (3, 41), generator=torch.Generator().manual_seed(1)).to(device)
    for switches in [*SWITCHES, {"dropout": 0.0, "num_heads": 2}, {"context_length": 640}]:
        time = 640 if "context_length" in switches else 40
        tokens = ids if time == 40 else ids[:1].repeat(1, 16)[:, : time + 1]
        slow, fast = (model.to(device) for model in models(**{"context_length": 40, **switches}))
        slow = slow.double()
        for checkpointing in (False, True) if not switches else (False,):
            fast.checkpointing = checkpointing
            for model in (slow, fast):
                model.zero_grad()
            with torch.autocast(device, torch.bfloat16, enabled=is_gpu):
                mine = fast.loss(tokens[:, :-1], tokens[:, 1:], gradient_scale=1.0)
            theirs = slow.loss(tokens[:, :-1], tokens[:, 1:])
            for loss in (mine, theirs):
                loss.backward()
            assert (mine - theirs).abs() < (0.01 if is_gpu else 1e-5) * theirs, switches
            expected = gradients(slow)
            assert gradients(fast).keys() == expected.keys()
            for name, gradient in gradients(fast).items():
                assert gradient.dtype == torch.float32
                error = (gradient - expected[name]).norm() / expected[name].norm()
                assert error < (0.04 if is_gpu else 1e-4), (switches, name, error)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernels need an NVIDIA GPU")
def test_kernels():
    check_kernels("cuda")
    check_models("cuda")


if __name__ == "__main__":
    place = "cuda" if torch.cuda.is_available() else "cpu"
    if place == "cpu":  # Triton's interpreter takes the GPU's place
        fast_module.has_triton = loss_module.has_triton = lambda _: True
    check_kernels(place)
    check_models(place)


def test_without_packing_the_backward_pass_keeps_no_copy_of_a_matrix():
    _, fast = models(packed=False)
    storages = {parameter.untyped_storage().data_ptr() for parameter in fast.parameters()}
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: (kept.append(tensor), tensor)[1], lambda tensor: tensor
    ):
        fast.hidden(batch()[0])
    matrices = [x for x in kept if x.ndim == 2 and TINY.d_model in x.shape and 48 not in x.shape]  # 48 tokens
    assert matrices
    assert {x.untyped_storage().data_ptr() for x in matrices} <= storages
