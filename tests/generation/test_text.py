"""Text in, text out: whole characters, end of text, empty prompts."""

import itertools
from itertools import pairwise
from typing import Any

import pytest
import torch

from lm.generation import Completion, Decoder, SamplingConfig, complete, generate_text, stream_text
from lm.generation.text import StopStrings
from lm.model import ModelConfig, TransformerLM
from lm.tokenizer import END_OF_TEXT, Tokenizer

END = 256
GREEDY = SamplingConfig(temperature=0)


def byte_tokenizer(*special_tokens: str) -> Tokenizer:
    """Every byte a token, so that longer characters are always split; specials from id 256."""
    vocab = {i: bytes([i]) for i in range(256)}
    vocab |= {256 + i: token.encode() for i, token in enumerate(special_tokens)}
    return Tokenizer(vocab, [], list(special_tokens) or None)


def parrot(script: dict[int, int], vocab_size: int = 257) -> TransformerLM:
    """A model that says script[id] after id: attention and feed-forward silent, one direction for each id."""
    torch.manual_seed(0)
    config = ModelConfig(vocab_size, context_length=16, d_model=300, num_layers=1, num_heads=2)
    model = TransformerLM(config)
    with torch.no_grad():
        model.layers[0].get_parameter("attn.output_proj.weight").zero_()
        model.layers[0].get_parameter("ffn.w2.weight").zero_()
        model.token_embeddings.weight.copy_(torch.eye(vocab_size, 300))
        model.lm_head.weight.zero_()
        for before, after in script.items():
            model.lm_head.weight[after, before] = 1
    return model


def says(text: bytes, start: int, end: int | None = END) -> dict[int, int]:
    """The script for `text` (no byte twice) after the id `start`."""
    ids = [start, *text, *([] if end is None else [end])]
    assert len(set(ids)) == len(ids)
    return dict(pairwise(ids))


def test_a_character_of_four_bytes_comes_whole():
    text = "a🦊é"
    assert len(text.encode()) == 7
    model, tokenizer = parrot(says(text.encode(), ord("!"))), byte_tokenizer(END_OF_TEXT)
    pieces = list(stream_text(model, tokenizer, ["Hi!"], 20, GREEDY))
    assert pieces == [(0, "a"), (0, "🦊"), (0, "é")]
    assert generate_text(model, tokenizer, ["Hi!"], 20, GREEDY) == [text]


@pytest.mark.parametrize(("tokens", "expected"), [(1, "a"), (2, "a\ufffd"), (4, "a\ufffd"), (5, "a🦊")])
def test_a_character_cut_by_the_limit_is_replaced(tokens: int, expected: str):
    model = parrot(says("a🦊é".encode(), ord("!")))
    assert generate_text(model, byte_tokenizer(END_OF_TEXT), ["!"], tokens, GREEDY) == [expected]


def test_bytes_that_are_no_text_are_replaced():
    data = b"a\xffb\x9fc\xf0\x9e"
    model = parrot(says(data, ord("!")))
    text = generate_text(model, byte_tokenizer(END_OF_TEXT), ["!"], 20, GREEDY)
    assert text == [data.decode(errors="replace")]


def test_several_prompts_and_the_end():
    script = says(b"bcd", ord("a")) | says("xyé".encode(), ord("w"))
    model, tokenizer = parrot(script), byte_tokenizer(END_OF_TEXT)
    assert generate_text(model, tokenizer, ["zza", "w", "z c"], 20, GREEDY) == ["bcd", "xyé", "d"]
    pieces = list(stream_text(model, tokenizer, ["a", "w"], 20, GREEDY))
    assert pieces == [(0, "b"), (1, "x"), (0, "c"), (1, "y"), (0, "d"), (1, "é")]


def test_an_empty_prompt_starts_at_the_end_of_text():
    model = parrot(says(b"One", END, end=None))
    assert generate_text(model, byte_tokenizer(END_OF_TEXT), ["", END_OF_TEXT], 3, GREEDY) == ["One", "One"]
    with pytest.raises(ValueError, match="prompt 0 has 0 tokens"):
        stream_text(model, byte_tokenizer(), [""], 3)


def test_without_an_end_of_text_token_only_the_limit_stops():
    loop: dict[int, int] = {ord("a"): ord("b"), ord("b"): ord("a")}
    assert generate_text(parrot(loop), byte_tokenizer(), ["a"], 40, GREEDY) == ["ba" * 20]


def test_a_model_with_more_ids_than_the_tokenizer():
    model = parrot({ord("a"): 280}, vocab_size=300)
    # 280 is left out; all others are equal, and the lowest id wins.
    assert generate_text(model, byte_tokenizer(END_OF_TEXT), ["a"], 3, GREEDY) == ["\0\0\0"]


def test_an_abandoned_stream_restores_the_mode():
    model: Any = parrot(says(b"bcd", ord("a"))).train()
    pieces = stream_text(model, byte_tokenizer(END_OF_TEXT), ["a"], 20, GREEDY)
    assert next(pieces) == (0, "b")
    assert not model.training
    del pieces
    assert model.training


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize(
    ("stop", "expected", "finish"),
    [
        (["cd"], "b", "stop string"),  # across two tokens
        (["de", "cd"], "b", "stop string"),
        (["🦊"], "bcdef", "stop string"),  # across the bytes of one character
        (["bx", "f🦉"], "bcdef🦊g", "end of text"),  # begun, not ended: nothing is lost
        (["g!"], "bcdef🦊g", "end of text"),
        (["b"], "", "stop string"),
    ],
)
def test_stop_strings(plain: bool, stop: list[str], expected: str, finish: str):
    model, tokenizer = parrot(says("bcdef🦊g".encode(), ord("a"))), byte_tokenizer(END_OF_TEXT)
    rows: list[Completion] = []
    reader = model if plain else Decoder(model)
    pieces = list(stream_text(reader, tokenizer, ["a", "f"], 20, GREEDY, stop=stop, completions=rows))
    assert "".join(piece for row, piece in pieces if row == 0) == rows[0].text == expected
    assert rows[0].finish == finish
    assert rows[1].text == ("" if "🦊" in stop else "🦊g")  # a row of its own
    assert all(piece for _, piece in pieces)


def test_a_stop_string_begun_at_the_limit_is_shown():
    model, tokenizer = parrot(says(b"bcdefg", ord("a"))), byte_tokenizer(END_OF_TEXT)
    (row,) = complete(model, tokenizer, ["a"], 3, GREEDY, stop=["dx"])
    assert (row.text, row.finish, len(row.tokens)) == ("bcd", "length", 3)


def test_found_wherever_the_pieces_are_cut():
    text, strings = "aababcabcab", ["abcabd", "abca", "bcab"]
    for cuts in itertools.product([True, False], repeat=len(text) - 1):
        pieces, start = [], 0
        for index, cut in enumerate([*cuts, True], 1):
            if cut:
                pieces.append(text[start:index])
                start = index
        stops, shown = StopStrings(strings), ""
        for piece in pieces:
            new, found = stops.feed(piece)
            shown += new
            if found:
                break
        assert shown == "aab"
