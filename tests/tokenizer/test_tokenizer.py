"""Encoding and decoding, held to tiktoken with the same vocabulary and to the definition."""

import pickle
import random
import tracemalloc
from pathlib import Path

import pytest
import tiktoken

from lm.tokenizer import END_OF_TEXT, Tokenizer, bpe, pretokenize, train_bpe

PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
BYTES = {i: bytes([i]) for i in range(256)}
SAMPLES = [
    "",
    " ",
    "Once upon a time, there was a boat.",
    "The crew didn't; we'll they'VE I'm you're he'd 's 'll '' ''s",
    "\n\t's \r\n'll\n\n's \u00a0's   're\t'd",
    "Die Straße führt über die Brücke zum größten Fluß. Ärger, Öl, Übung, ẞ",
    "小猫在河边。我们，一起去！２０２６年 第12章",
    "😀🎉👩‍👩‍👧🏳️‍🌈 ok 😀 😀",
    "\x00\x01 \x1b[0m \x7f\x80\x9f \ufeff \ufffd \u200b\u2028\u2029\u0085\u3000",
    "e\u0301a नमस्ते العربية ½²٣ 12.50 x² U+10FFFF \U0010ffff",
    f"{END_OF_TEXT}a{END_OF_TEXT}{END_OF_TEXT} b <|pad|><|pad <|endoftext|",
    "   many    spaces   \n\n\n   and lines \n",
    "def f(x):\n\treturn x**2 + 3_000  # why?\n",
]


@pytest.fixture(scope="module")
def rival(tokenizer: Tokenizer) -> tiktoken.Encoding:
    specials = tokenizer.special_ids
    ranks = {token: id_ for id_, token in tokenizer.vocab.items() if id_ not in specials.values()}
    return tiktoken.Encoding("own", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=specials)


@pytest.mark.parametrize("sample", SAMPLES)
def test_equals_tiktoken(sample: str, tokenizer: Tokenizer, rival: tiktoken.Encoding) -> None:
    ids = tokenizer.encode(sample)
    assert ids == rival.encode(sample, allowed_special="all")
    assert tokenizer.decode(ids) == sample


def test_equals_tiktoken_on_random_text(text: str, tokenizer: Tokenizer, rival: tiktoken.Encoding) -> None:
    rng = random.Random(4)
    characters = [*text, "'", "s", " ", "\n", END_OF_TEXT, "<|", *map(chr, range(0x250))]
    for _ in range(1000):
        sample = "".join(rng.choices(characters, k=rng.randrange(80)))
        ids = tokenizer.encode(sample)
        assert ids == rival.encode(sample, allowed_special="all")
        assert tokenizer.decode(ids) == sample


def test_merges_by_rank_and_not_by_length() -> None:
    vocab = {**BYTES, 256: b"bc", 257: b"ab", 258: b"abc", 259: b"cc"}
    tokenizer = Tokenizer(vocab, [(b"b", b"c"), (b"a", b"b"), (b"ab", b"c"), (b"c", b"c")])
    assert tokenizer.encode("abc") == [97, 256]  # never "abc": "bc" goes first
    assert tokenizer.encode("abcccc") == [97, 256, 259, 99]  # the leftmost first


def test_merges_a_giant_pre_token(tokenizer: Tokenizer, rival: tiktoken.Encoding) -> None:
    run = "".join(random.Random(5).choices("thesandr", k=30_000))
    assert tokenizer.encode(run) == rival.encode(run)


@pytest.mark.parametrize("window", [1, 16, pretokenize.WINDOW])
def test_chunks_do_not_matter(
    window: int, text: str, tokenizer: Tokenizer, rival: tiktoken.Encoding, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretokenize, "WINDOW", window)
    whole = f"{text}{END_OF_TEXT}<|pad|>{text} they'll<|endoftext|>'s   {END_OF_TEXT}\n\n"
    expected = rival.encode(whole, allowed_special="all")
    for size in [*range(1, 40), 100, len(whole)]:
        chunks = (whole[i : i + size] for i in range(0, len(whole), size))
        assert list(tokenizer.encode_iterable(chunks)) == expected
    assert list(tokenizer.encode_iterable(["", *whole.splitlines(keepends=True), ""])) == expected
    assert list(tokenizer.encode_iterable([])) == []


def test_a_stream_needs_little_memory(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rng = random.Random(6)
    words = ["".join(rng.choices("abcdefghilmnoprstuvw", k=rng.randrange(2, 9))) for _ in range(20_000)]
    weights = [1 / (rank + 1) for rank in range(len(words))]
    path = tmp_path / "text.txt"
    with path.open("w") as file:
        while file.tell() < 5_000_000:
            file.write(" ".join(rng.choices(words, weights, k=200)) + "\n")
    fresh = Tokenizer(tokenizer.vocab, tokenizer.merges, list(tokenizer.special_ids))
    with path.open() as file:
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            num_tokens = sum(1 for _ in fresh.encode_iterable(file))
            peak = tracemalloc.get_traced_memory()[1] - before
        finally:
            tracemalloc.stop()
    assert num_tokens > 1_000_000
    assert peak < 1_000_000


def test_a_full_cache_changes_nothing(text: str, tokenizer: Tokenizer) -> None:
    forgetful = Tokenizer(tokenizer.vocab, tokenizer.merges, list(tokenizer.special_ids), cache_size=2)
    assert forgetful.encode(text * 2) == tokenizer.encode(text * 2)


def test_the_longest_special_token_wins(tokenizer: Tokenizer) -> None:
    double = END_OF_TEXT * 2
    both = Tokenizer(tokenizer.vocab, tokenizer.merges, [END_OF_TEXT, double])
    one, two = both.special_ids[END_OF_TEXT], both.special_ids[double]
    assert two == tokenizer.vocab_size  # appended
    assert both.encode(END_OF_TEXT * 3) == [two, one]
    assert list(both.encode_iterable(END_OF_TEXT * 3)) == [two, one]
    assert both.decode([two, one]) == END_OF_TEXT * 3


def test_without_special_tokens_they_are_text(tokenizer: Tokenizer) -> None:
    ids = Tokenizer(tokenizer.vocab, tokenizer.merges).encode(END_OF_TEXT)
    assert len(ids) > 1
    assert tokenizer.decode(ids) == END_OF_TEXT


def test_decode_replaces_malformed_bytes(tokenizer: Tokenizer) -> None:
    ids = [*"é".encode(), 0xFF, *"é".encode()[:1]]
    assert tokenizer.decode(ids) == "é\ufffd\ufffd"
    assert tokenizer.decode_bytes(ids) == b"\xc3\xa9\xff\xc3"


@pytest.mark.parametrize("bad", [-1, 100_000])
def test_decode_refuses_unknown_ids(bad: int, tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=rf"id {bad} is not .* ids are 0 to {max(tokenizer.vocab)};"):
        tokenizer.decode([1, bad])


def test_encode_refuses_lone_surrogates(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"U\+D800"):
        tokenizer.encode("a \ud800")


def test_digest_tells_tokenizers_apart(tokenizer: Tokenizer) -> None:
    def digest(vocab: dict[int, bytes], merges: list[tuple[bytes, bytes]], specials: list[str]) -> str:
        return Tokenizer(vocab, merges, specials).digest

    vocab, merges, specials = tokenizer.vocab, tokenizer.merges, list(tokenizer.special_ids)
    assert digest(vocab, merges, specials[::-1]) == tokenizer.digest
    others = {
        digest(vocab, merges, specials[:1]),
        digest(vocab, merges, [*specials, "<|new|>"]),
        digest(vocab, merges[:-1], specials),
        digest(vocab, [*merges[:-2], merges[-1], merges[-2]], specials),
        digest({**vocab, 0: vocab[1], 1: vocab[0]}, merges, specials),
    }
    assert len(others | {tokenizer.digest}) == 6


def test_pickles(tokenizer: Tokenizer) -> None:
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.digest == tokenizer.digest
    assert copy.encode(f"a{END_OF_TEXT}") == tokenizer.encode(f"a{END_OF_TEXT}")


@pytest.mark.parametrize(
    ("vocab", "merges", "specials", "message"),
    [
        ({i: bytes([i]) for i in range(255)}, [], [], "lacks 1 single bytes, the first 0xff"),
        ({**BYTES, 256: b"a"}, [], [], "b'a' has two ids"),
        (BYTES, [(b"a", b"b")], [], "merge 1, b'a' with b'b', needs b'ab'"),
        ({**BYTES, 256: b"abc"}, [(b"ab", b"c")], [], "needs b'ab'"),
        ({**BYTES, 256: b"ab"}, [(b"a", b"b"), (b"a", b"b")], [], "merge 2, .* was there before"),
        ({**BYTES, 256: b"ab"}, [(b"a", b"b")], ["ab"], "ordinary token"),
        (BYTES, [], ["x"], "ordinary token"),
        (BYTES, [], [""], "empty"),
        (BYTES, [], ["<x>", "<x>"], "twice"),
    ],
)
def test_bad_vocabularies(
    vocab: dict[int, bytes], merges: list[tuple[bytes, bytes]], specials: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Tokenizer(vocab, merges, specials)
    assert "\n" not in str(caught.value)


def test_trained_without_text_still_encodes_everything(tmp_path: Path, text: str) -> None:
    path = tmp_path / "empty.txt"
    path.write_text("")
    tokenizer = Tokenizer(*train_bpe(path, 257, [END_OF_TEXT]), [END_OF_TEXT])
    assert tokenizer.encode(text + END_OF_TEXT) == [*text.encode(), 256]


def test_long_pre_tokens_are_not_kept(tokenizer: Tokenizer) -> None:
    fresh = Tokenizer(tokenizer.vocab, tokenizer.merges)
    for length in (bpe.PreTokenEncoder.LONGEST_KEPT, bpe.PreTokenEncoder.LONGEST_KEPT + 1):
        fresh.encode("a" * length)
    assert [len(key) for key in fresh._encoder] == [bpe.PreTokenEncoder.LONGEST_KEPT]
