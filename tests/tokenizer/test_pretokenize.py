"""Cuts of texts and files: never a pre-token or a special token changed."""

import random
from pathlib import Path

import pytest

from lm.tokenizer import pretokenize
from lm.tokenizer.pretokenize import PRE_TOKEN, Span, SpecialTokens, read_text

ALPHABET = ["a", "b", "l", "s", "'", " ", "\n", "\t", "1", "!", "<|", "|>", "é", "\u0301", "中", "😀", "\u00a0", "²"]


def pre_tokens(specials: SpecialTokens, text: str) -> list[str]:
    """By definition: special tokens first, then the pattern between them."""
    return [
        token
        for index, part in enumerate(specials.split(text))
        for token in ([part] if index % 2 else PRE_TOKEN.findall(part))
    ]


def test_pattern_splits_as_gpt2() -> None:
    assert PRE_TOKEN.findall("I'll go,  it's 12\n\n now\n\t's") == [
        *("I", "'ll", " go", ",", " ", " it", "'s", " 12", "\n\n", " now", "\n", "\t", "'s"),
    ]


@pytest.mark.parametrize("tokens", [["ab", "abc"], ["abc", "ab"]])
def test_longest_special_wins(tokens: list[str]) -> None:
    assert SpecialTokens(tokens).split("xabcabab") == ["x", "abc", "", "ab", "", "ab", ""]


def test_special_characters_are_literal() -> None:
    assert SpecialTokens(["<|a.b|>", "(x"]).split("<|aXb|><|a.b|>(x") == ["<|aXb|>", "<|a.b|>", "", "(x", ""]


@pytest.mark.parametrize("tokens", [["a", ""], ["a", "b", "a"]])
def test_bad_specials(tokens: list[str]) -> None:
    with pytest.raises(ValueError, match="special token"):
        SpecialTokens(tokens)


@pytest.mark.parametrize(
    "tokens", [[], ["<|a|>"], ["ab", "ba", "aab", "b'"], ["<|", "<||>", "<|<|a", " a", "\n\n"], ["a!b 1", "1a"]]
)
def test_stream_pieces_can_be_taken_alone(tokens: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretokenize, "WINDOW", 12)
    specials = SpecialTokens(tokens)
    rng = random.Random(0)
    num_pieces = 0
    for _ in range(3000):
        text = "".join(rng.choices([*ALPHABET, *tokens], k=rng.randrange(60)))
        chunks, rest = [], text
        while rest:
            size = rng.randrange(1, 30)
            chunks.append(rest[:size])
            rest = rest[size:]
        pieces = list(specials.stream(chunks))
        num_pieces += len(pieces)
        assert [token for piece in pieces for token in pre_tokens(specials, piece)] == pre_tokens(specials, text)
    assert num_pieces > 9000  # it does cut


def test_stream_cuts_text_without_spaces() -> None:
    assert max(map(len, SpecialTokens([]).stream(["小猫，"] * 20_000))) < 2 * pretokenize.WINDOW


def test_stream_holds_a_giant_pre_token_in_linear_work(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at = 0
    safe_cut = SpecialTokens._safe_cut

    def count(self: SpecialTokens, text: str) -> int:
        nonlocal looked_at
        looked_at += len(text)
        return safe_cut(self, text)

    monkeypatch.setattr(SpecialTokens, "_safe_cut", count)
    run, tail = "a" * 1_000_000, " of it" * 500_000
    pieces = list(SpecialTokens(["<|x|>"]).stream([run, tail]))
    assert "".join(pieces) == run + tail
    assert len(pieces[0]) < 2.1 * len(run)
    assert max(map(len, pieces[1:])) < 2 * pretokenize.WINDOW
    assert looked_at < 3 * len(run + tail)


@pytest.mark.parametrize(
    "tokens", [[], ["<|a|>"], ["ab", "ba", "aab"], ["é", "aé", "éa"], ["a|", "<|a|>", "|>"], ["a b", "b ", " a", "1\n"]]
)
def test_spans_and_shards_cut_a_file_like_the_text(
    tokens: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretokenize, "BLOCK", 7)
    specials = SpecialTokens(tokens)
    rng = random.Random(2)
    path = tmp_path / "text.txt"
    num_spans = 0
    for _ in range(300):
        text = "".join(rng.choices([*ALPHABET, "a ", "b\n", *tokens], k=rng.randrange(1, 60)))
        path.write_text(text, encoding="utf-8", newline="")
        number = rng.randrange(1, 9)
        spans = list(specials.spans(specials.shard(path), size=rng.randrange(1, 20)))
        num_spans += len(spans)
        for parts in (spans, [specials.shard(path, i, number) for i in range(number)]):
            read = ["".join(read_text(part)) for part in parts]
            assert "".join(read) == text
            assert [token for part in read for token in pre_tokens(specials, part)] == pre_tokens(specials, text)
    assert num_spans > 600


def test_no_span_of_nothing_and_no_shard_beyond(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("")
    assert list(SpecialTokens(["x"]).spans(Span(path, 0, 0), size=1)) == []
    assert SpecialTokens([]).shard(path, 2, 3) == Span(path, 0, 0)
    with pytest.raises(ValueError, match="shard 3 of 3 does not exist; shards are 0 to 2"):
        SpecialTokens([]).shard(path, 3, 3)


@pytest.mark.parametrize("block", [1, 2, 3, 100])
@pytest.mark.parametrize(("data", "offset"), [(b"caf\xc3\xa9 \xff!", 6), (b"a\xe4\xb8", 1), (b"ab\xe4\xb8z", 2)])
def test_text_that_is_not_utf8(
    data: bytes, offset: int, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretokenize, "BLOCK", block)
    path = tmp_path / "text.txt"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"text\.txt is not UTF-8: .* at offset {offset};"):
        list(read_text(Span(path, 0, len(data))))
