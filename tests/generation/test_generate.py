"""Cached, batched, sliding generation against a naive loop without a cache."""

import contextlib
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lm.generation import Decoder, SamplingConfig, draw, fit_window, generate
from lm.generation.batch import Batch
from lm.model import ModelConfig, TransformerLM

CONTEXT = 12
GREEDY = SamplingConfig(temperature=0)
LIVELY = SamplingConfig(temperature=1.2, top_k=20, top_p=0.95)
PENALIZED = SamplingConfig(temperature=0.9, min_p=0.01, repetition_penalty=1.5)
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11, 12], list(range(13, 35))]  # the last one exceeds the context


def build(**changes: Any) -> TransformerLM:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"context_length": CONTEXT, "d_model": 32, "num_layers": 2, "num_heads": 4}
    model = TransformerLM(ModelConfig(vocab_size=40, **(shape | changes)))
    with torch.no_grad():
        model.lm_head.weight.mul_(5)  # far from uniform
    return model.eval()


def naive(model: TransformerLM, prompt: Sequence[int], steps: int, sampling: SamplingConfig, seed: int) -> list[int]:
    """One prompt, no cache: the whole window anew for each token."""
    context = model.config.context_length
    stream = np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(stream >> np.uint64(1)))
    window, out = list(prompt), []
    seen = torch.zeros(1, model.config.vocab_size, dtype=torch.bool)
    seen[0, list(prompt)] = True
    for _ in range(steps):
        if len(window) > context:
            window = window[-max(1, context // 2) :]
        with torch.no_grad():
            logits = model(torch.tensor([window]))[:, -1]
        out.append(int(draw(logits, sampling, torch.rand(1, generator=generator, dtype=torch.float64), seen)))
        window.append(out[-1])
        seen[0, out[-1]] = True
    return out


def rows_of(steps: Any) -> list[list[int]]:
    """Turn steps into rows; a row that has stopped stays so."""
    columns = list(zip(*([token and token.id for token in step] for step in steps), strict=True))
    for column in columns:
        ended = list(itertools.dropwhile(lambda x: x is not None, column))
        assert all(x is None for x in ended)
    return [[x for x in column if x is not None] for column in columns]


@pytest.mark.parametrize("sampling", [GREEDY, LIVELY, PENALIZED])
@pytest.mark.parametrize("changes", [{}, {"position": "none"}, {"context_length": 1}, {"context_length": 5}])
def test_equals_the_naive_loop(sampling: SamplingConfig, changes: dict[str, Any]):
    model = build(**changes)
    expected = [naive(model, prompt, 40, sampling, 7 + row) for row, prompt in enumerate(PROMPTS)]
    assert rows_of(generate(model, PROMPTS, 40, sampling, seed=7)) == expected
    decoder = Decoder(model)
    assert rows_of(generate(decoder, PROMPTS, 40, sampling, seed=7)) == expected
    for row, prompt in enumerate(PROMPTS):  # one row alone is compiled code; the batch before it is used again
        assert rows_of(generate(decoder, [prompt], 40, sampling, seed=7 + row)) == [expected[row]]


def test_within_the_context_nothing_slides():
    model = build()
    assert rows_of(generate(model, [[1, 2]], 10, LIVELY, seed=3)) == [naive(model, [1, 2], 10, LIVELY, 3)]


def test_two_generations_at_once_do_not_share_a_cache():
    decoder = Decoder(build())
    alone = rows_of(generate(decoder, [[1, 2]], 10, LIVELY, seed=3))
    one, two = (generate(decoder, [[1, 2]], 10, LIVELY, seed=3) for _ in range(2))
    both = list(zip(one, two, strict=True))
    assert rows_of(step for step, _ in both) == rows_of(step for _, step in both) == alone


class FakeGraph:
    """Runs again what it recorded, as a CUDA graph does."""

    recorded: Callable[[], None]

    def replay(self) -> None:
        self.recorded()


@pytest.fixture(params=[True, False], ids=["recorded", "not recorded"])
def recorded(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[FakeGraph]:
    """The logic around CUDA graphs, without CUDA: graphs as they are recorded, none where that does not work."""
    recorded = []

    @contextlib.contextmanager
    def record(graph: FakeGraph) -> Iterator[None]:
        if not request.param:
            raise RuntimeError("operation not permitted when stream is capturing")
        batch = sys._getframe(2).f_locals["self"]
        graph.recorded = lambda: batch._step(batch.cache.max_length)
        recorded.append(graph)
        yield

    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "graph", record)
    init = Batch.__init__

    def may_record(self: Batch, *arguments: Any) -> None:
        init(self, *arguments)
        self.may_record = self.decoder is not None

    monkeypatch.setattr(Batch, "__init__", may_record)
    return recorded


@pytest.mark.parametrize("sampling", [GREEDY, PENALIZED])
def test_recorded_steps(recorded: list[FakeGraph], sampling: SamplingConfig):
    """A recording leaves no trace, is used again, and attends to all slots."""
    model = build()
    expected = rows_of(generate(model, PROMPTS, 30, sampling, seed=2))
    decoder = Decoder(model)
    for _ in range(2):
        assert rows_of(generate(decoder, PROMPTS, 30, sampling, seed=2)) == expected
    assert len(recorded) <= 1


@pytest.mark.parametrize("sampling", [GREEDY, PENALIZED])
@pytest.mark.parametrize("context", [CONTEXT, 64])
def test_a_burst_that_runs_ahead(recorded: list[FakeGraph], context: int, sampling: SamplingConfig):
    """Rows that end meanwhile, a text that is given up, and the next one: as without."""
    model = build(context_length=context)
    free = rows_of(generate(model, PROMPTS, 50, sampling, seed=2))
    decoder = Decoder(model)
    for stop in ({free[0][9]}, {free[1][20], free[2][30]}, set[int]()):
        steps = generate(decoder, PROMPTS, 50, sampling, seed=2)
        assert [token and token.id for token in next(itertools.islice(steps, 6, 7))] == [row[6] for row in free]
        steps.close()
        (batch,) = decoder.batches.values()
        assert (batch.ahead > 0) == (batch.graph is not None and context == 64)
        expected = [list(itertools.takewhile(lambda x, stop=stop: x not in stop, row)) for row in free]
        assert rows_of(generate(decoder, PROMPTS, 50, sampling, stop, seed=2)) == expected


def test_logprobs_are_the_models_own():
    model = build()
    expected = None
    for reader in (model, Decoder(model)):
        for prompts in ([PROMPTS[0]], PROMPTS[:2]):
            drawn = [step[0] for step in generate(reader, prompts, 8, LIVELY, seed=1, logprobs=True)]
            ids = [token.id for token in drawn if token]
            with torch.no_grad():
                logprobs = model(torch.tensor([[*PROMPTS[0], *ids]]))[0, 2:-1].log_softmax(-1)
            expected = logprobs[range(8), ids].tolist()
            assert [token.logprob for token in drawn if token] == pytest.approx(expected, abs=1e-5)


def test_window():
    assert fit_window([1, 2, 3, 4], 4) == [1, 2, 3, 4]
    assert fit_window([1, 2, 3, 4, 5], 4) == [4, 5]
    assert fit_window([1, 2], 1) == [2]


def test_rows_do_not_depend_on_each_other():
    model = build()
    together = rows_of(generate(model, PROMPTS, 30, LIVELY, seed=1))
    others = [PROMPTS[0], [39, 38], [37], PROMPTS[3]]
    apart = rows_of(generate(model, others, 30, LIVELY, seed=1))
    assert together[0] == apart[0]
    assert together[3] == apart[3]
    assert together[1] != apart[1]
    assert rows_of(generate(model, [PROMPTS[3]], 30, LIVELY, seed=4)) == [together[3]]


def test_equal_prompts_in_one_batch_differ_and_seeds_repeat():
    model = build()
    first, second = rows_of(generate(model, [[1], [1]], 20, seed=5))
    assert first != second
    assert rows_of(generate(model, [[1], [1]], 20, seed=5)) == [first, second]
    assert rows_of(generate(model, [[1], [1]], 20, seed=6)) != [first, second]
    assert rows_of(generate(model, [[1]], 20)) != rows_of(generate(model, [[1]], 20))


def test_stopping():
    model = build()
    free = rows_of(generate(model, PROMPTS, 40, LIVELY, seed=7))
    stop = {free[0][4], free[2][20]}
    expected = [list(itertools.takewhile(lambda x: x not in stop, row)) for row in free]
    steps = list(generate(model, PROMPTS, 40, LIVELY, stop, seed=7))
    assert rows_of(steps) == expected
    assert len(steps) == max(map(len, expected))
    assert min(map(len, expected)) < len(steps)


def test_all_rows_stopping_at_once_ends():
    model = build()
    first = rows_of(generate(model, [[1]], 1, GREEDY))[0]
    assert list(generate(model, [[1]], 9, GREEDY, first)) == []


def test_ids_beyond_the_tokenizer_are_never_drawn():
    model = build()
    with torch.no_grad():
        model.lm_head.weight[10:] *= 20
    assert max(rows_of(generate(model, [[1, 2]], 50, seed=0))[0]) >= 10
    assert max(rows_of(generate(model, [[1, 2]], 50, seed=0, vocab_size=10))[0]) < 10


def test_mode_and_random_state_come_back():
    model = build(dropout=0.5)
    expected = rows_of(generate(model, [[1, 2]], 8, GREEDY))
    model.train()
    before = torch.get_rng_state()
    assert rows_of(generate(model, [[1, 2]], 8, GREEDY)) == expected  # without dropout
    assert model.training
    assert model.layers[0].training
    abandoned = generate(model, [[1, 2]], 8)
    next(abandoned)
    assert not model.training
    assert not torch.is_inference_mode_enabled()
    del abandoned
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    model(torch.tensor([[1, 2]])).sum().backward()  # nothing left over from inference mode


def test_reading_records_no_gradients():
    model, seen = build(), []
    model.ln_final.register_forward_hook(lambda _module, _inputs, output: seen.append(output.is_inference()))
    list(generate(model, [[1]], 3))
    assert seen == [True] * 3


def test_mode_comes_back_after_an_error():
    model = build()
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.nan)
    model.train()
    with pytest.raises(ValueError, match="logits are not finite"):
        next(generate(model, [[1]], 3))
    assert model.training


def test_under_autocast():
    model = build()
    with torch.autocast("cpu", torch.bfloat16):
        rows = rows_of(generate(model, PROMPTS, 30, GREEDY))
    assert [len(row) for row in rows] == [30] * 4
    agreed = sum(
        a == b
        for row, exact in zip(rows, rows_of(generate(model, PROMPTS, 30, GREEDY)), strict=True)
        for a, b in zip(row[:3], exact[:3], strict=True)
    )
    assert agreed >= 8  # of 12; rounding may part them, garbage would


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": []}, "0 prompts"),
        ({"prompts": [[1], []]}, "prompt 1 has 0 tokens"),
        ({"prompts": [[1, 40]]}, "prompt 0 has token id 40, the model knows 0 to 39"),
        ({"prompts": [[-1, 3]]}, "prompt 0 has token id -1"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_refusals_come_at_once(change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message) as caught:
        generate(build(), **({"prompts": [[1]], "max_new_tokens": 3} | change))
    assert "\n" not in str(caught.value)
