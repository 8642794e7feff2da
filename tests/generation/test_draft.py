"""Guessed tokens against one token at a time: the same ids and the same log-probabilities, to the last bit."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lm.generation import Decoder, SamplingConfig, complete, decoder, generate
from lm.generation.draft import Speculation
from lm.generation.native import Step
from lm.generation.products import MOST, multiply
from lm.model import KVCache, ModelConfig, TransformerLM
from lm.tokenizer import Tokenizer

SAMPLINGS = [
    SamplingConfig(temperature=0),
    SamplingConfig(temperature=0.5),
    SamplingConfig(temperature=3),
    SamplingConfig(temperature=0, repetition_penalty=1.3),
    SamplingConfig(temperature=0.8, top_k=9, top_p=0.9, repetition_penalty=1.2),
    SamplingConfig(temperature=1, min_p=0.05),
]
PROMPT = [1, 2, 3, 4, 5]


def build(**changes: Any) -> TransformerLM:
    torch.manual_seed(1)
    shape: dict[str, Any] = {"context_length": 48, "d_model": 36, "num_layers": 2, "num_heads": 3, "d_ff": 50}
    model = TransformerLM(ModelConfig(vocab_size=301, **(shape | changes)))
    with torch.no_grad():
        model.lm_head.weight.mul_(3)  # rounding rarely changes the likeliest token, but sometimes
    return model.eval()


@pytest.fixture(autouse=True)
def small_ones_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "LARGE", 0)


@pytest.fixture
def hits(monkeypatch: pytest.MonkeyPatch) -> Counter[bool]:
    """Passes whose guesses were all right, and others."""
    counts: Counter[bool] = Counter()
    learn = Speculation._learn

    def count(self: Speculation, hits: int, guesses: int) -> None:
        counts[hits == guesses] += guesses > 0
        learn(self, hits, guesses)

    monkeypatch.setattr(Speculation, "_learn", count)
    return counts


def one_at_a_time(model: TransformerLM) -> Decoder:
    plain = Decoder(model)
    plain.rounded = None
    return plain


def ids_and_logprobs(reader: Decoder, sampling: SamplingConfig, seed: int, stop: set[int] = set()) -> list[Any]:  # noqa: B006
    return [step[0] for step in generate(reader, [PROMPT], 150, sampling, stop, seed, 290, logprobs=True)]


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("changes", [{}, {"norm_position": "post", "position": "none", "ffn": "silu"}])
def test_equals_one_token_at_a_time(hits: Counter[bool], sampling: SamplingConfig, changes: dict[str, Any]):
    """Beyond the context, at several seeds, the second and third time with what the first has learned."""
    model = build(**changes)
    plain, drafting = one_at_a_time(model), Decoder(model)
    for seed in range(3):
        expected = ids_and_logprobs(plain, sampling, seed)
        assert ids_and_logprobs(drafting, sampling, seed) == expected
        stop = {expected[70].id}
        assert ids_and_logprobs(drafting, sampling, seed, stop) == ids_and_logprobs(plain, sampling, seed, stop)
    assert hits[True]
    assert hits[False]


def test_stop_strings():
    model, tokenizer = build(), Tokenizer({i: bytes([i]) for i in range(256)}, [])
    plain, drafting = one_at_a_time(model), Decoder(model)
    (whole,) = complete(plain, tokenizer, ["a"], 60, SAMPLINGS[1], 3)
    for stop in (whole.text[20:22], whole.text[41:42]):
        expected = complete(plain, tokenizer, ["a"], 60, SAMPLINGS[1], 3, [stop])
        assert complete(drafting, tokenizer, ["a"], 60, SAMPLINGS[1], 3, [stop]) == expected
        assert expected[0].finish == "stop string"


def test_wrong_guesses_are_given_up(monkeypatch: pytest.MonkeyPatch, hits: Counter[bool]):
    def wrong(self: Speculation, logits_1V: Tensor, *_: Any) -> list[int]:
        return logits_1V.argmin(-1).tolist()

    monkeypatch.setattr(Speculation, "_guess", wrong)
    model = build(context_length=256)
    greedy = SAMPLINGS[0]
    expected = ids_and_logprobs(one_at_a_time(model), greedy, 0)
    assert ids_and_logprobs(Decoder(model), greedy, 0) == expected
    assert not hits[True]
    assert 0 < hits[False] < 20


def test_right_guesses_become_many_and_hope_returns():
    drafting = Decoder(build())
    assert drafting.native is not None
    speculation = Speculation(drafting.native, drafting.native, SAMPLINGS[0], 301)  # guesses by the model itself
    cache = KVCache(drafting.config, 1, 48, "cpu", torch.float32)
    uniforms = torch.zeros(20, dtype=torch.float64)
    speculation.hit_rate = 0.0
    counts = []
    for _ in range(300):
        with torch.inference_mode():
            counts.append(len(speculation(1, cache, uniforms, None)[0]))
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (1, MOST)


@pytest.mark.parametrize("dtype", [np.float32, np.int8])
@pytest.mark.parametrize(("rows", "columns"), [(16, 32), (7, 50), (3, 5), (301, 36)])
def test_products_have_the_same_bits_for_any_number_of_vectors(dtype: Any, rows: int, columns: int):
    rng = np.random.default_rng(0)
    matrix = (rng.standard_normal((rows, columns)) * 40).astype(dtype)
    scales = np.zeros(0, np.float32) if dtype is np.float32 else rng.random(rows, np.float32)
    vectors = rng.standard_normal((MOST, columns)).astype(np.float32)
    alone = np.zeros((MOST, rows), np.float32)
    for n in range(MOST):
        multiply(matrix, scales, vectors[n : n + 1], alone[n : n + 1])
    exact = vectors.astype(np.float64) @ matrix.astype(np.float64).T * (scales if len(scales) else 1)
    np.testing.assert_allclose(alone, exact, rtol=1e-4, atol=1e-3)
    for count in range(1, MOST + 1):
        together = np.zeros((count, rows), np.float32)
        multiply(matrix, scales, vectors[:count], together)
        assert (together == alone[:count]).all()


def test_rounded_weights():
    model = build()
    with torch.no_grad():
        model.lm_head.weight[7] = 0
    rounded = Decoder(model).rounded
    assert isinstance(rounded, Step)
    values, scales = rounded.weights[-1]
    assert (np.abs(values[0]).max(-1) == np.where(np.arange(301) == 7, 0, 127)).all()
    error = values[0] * scales[0][:, None] - model.lm_head.weight.detach().numpy()
    assert (np.abs(error) <= scales[0][:, None] * 0.501).all()


def test_small_models_only_compute(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    assert Decoder(build()).rounded is None
