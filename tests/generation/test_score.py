"""Scores in windows against a naive loop, token by token."""

import math

import numpy as np
import pytest
import torch

from lm.generation.score import Score, score_ids, score_text, token_logprobs
from lm.model import ModelConfig, TransformerLM
from lm.tokenizer import END_OF_TEXT, Tokenizer

CONTEXT = 8
END = 256


def byte_tokenizer(*special_tokens: str) -> Tokenizer:
    vocab = {i: bytes([i]) for i in range(256)} | {256 + i: s.encode() for i, s in enumerate(special_tokens)}
    return Tokenizer(vocab, [], list(special_tokens) or None)


@pytest.fixture(scope="module")
def model() -> TransformerLM:
    torch.manual_seed(0)
    return TransformerLM(ModelConfig(258, CONTEXT, d_model=16, num_layers=2, num_heads=2)).eval()


def naive(model: TransformerLM, ids: list[int], stride: int) -> list[float]:
    """Each token after as many before it as its window shows: the first window whole, then `stride` new ones each."""
    logprobs = []
    for target in range(1, len(ids)):
        beyond = max(0, target - CONTEXT)
        start = -(-beyond // stride) * stride
        with torch.no_grad():
            logits = model(torch.tensor([ids[start:target]]))[0, -1]
        logprobs.append(float(logits.double().log_softmax(-1)[ids[target]]))
        assert target < CONTEXT or target - start > CONTEXT - stride
    return logprobs


@pytest.mark.parametrize("stride", [1, 3, 5, CONTEXT, None])
@pytest.mark.parametrize("length", [2, CONTEXT, CONTEXT + 1, CONTEXT + 2, 2 * CONTEXT + 1, 41, 100])
def test_equals_a_loop_over_tokens(model: TransformerLM, stride: int | None, length: int) -> None:
    ids = torch.randint(0, 258, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    expected = naive(model, ids, stride or CONTEXT)
    for given in (ids, np.array(ids, np.uint16)):
        assert torch.cat(list(token_logprobs(model, given, stride))).tolist() == pytest.approx(expected, abs=1e-5)
        after = torch.cat(list(token_logprobs(model, given[1:], stride, before=ids[0]))).tolist()
        assert after == pytest.approx(expected, abs=1e-5)


def test_more_context_scores_better_where_the_model_uses_it(model: TransformerLM) -> None:
    ids = list(range(60))
    assert sum(map(len, token_logprobs(model, ids, 2))) == 59
    assert torch.cat(list(token_logprobs(model, ids, 2))).sum() != torch.cat(list(token_logprobs(model, ids))).sum()


def test_figures() -> None:
    score = Score(tokens=4, bytes=10, nats=8 * math.log(2))
    assert score.loss == pytest.approx(2 * math.log(2))
    assert score.perplexity == pytest.approx(4)
    assert score.bits_per_byte == pytest.approx(0.8)
    assert Score(1, 0, 1.0).bits_per_byte == math.inf


def test_text_starts_after_end_of_text(model: TransformerLM) -> None:
    text = "Zoë ran."
    with_end, without = byte_tokenizer(END_OF_TEXT), byte_tokenizer()
    score = score_text(model, with_end, text)
    ids = [END, *text.encode()]
    assert (score.tokens, score.bytes) == (9, 9)
    assert score.nats == pytest.approx(-sum(naive(model, ids, CONTEXT)), abs=1e-4)
    assert score_ids(model, with_end, ids) == score  # its own end of text is not another one
    assert (without_end := score_text(model, without, text)).tokens == without_end.bytes == 8
    two = score_text(model, with_end, f"a{END_OF_TEXT}b")
    assert (two.tokens, two.bytes) == (3, 2)


def test_refusals(model: TransformerLM) -> None:
    with pytest.raises(ValueError, match=r"stride is 9; it must be 1 to the model's context_length, 8"):
        token_logprobs(model, [1, 2], 9)
    with pytest.raises(ValueError, match="stride is 0"):
        token_logprobs(model, [1, 2], 0)
    with pytest.raises(ValueError, match="1 tokens leave nothing to score"):
        token_logprobs(model, [1])
    with pytest.raises(ValueError, match="token id 300, the model knows 0 to 257"):
        list(token_logprobs(model, [1, 300]))
