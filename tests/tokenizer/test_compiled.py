"""The compiled scanner, counter, merger and encoder, held to the reference in plain Python."""

import random
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import regex

from lm.data.stories import generate_stories
from lm.tokenizer import END_OF_TEXT, Tokenizer, blocks, counting, encoder, merging, native, train, train_bpe
from lm.tokenizer.blocks import SpecialArrays
from lm.tokenizer.encoder import EncoderPool
from lm.tokenizer.layout import LOAD_FROM, NUMBER, PADDING
from lm.tokenizer.native import kernels
from lm.tokenizer.pretokenize import PRE_TOKEN, Span, SpecialTokens

SPECIALS = [END_OF_TEXT, "<|end", "<|", "ab", "ab cd", "'s", "é", " ", "\n\n", "12"]


def fast_counts(path: Path, special_tokens: list[str], num_threads: int = 1) -> Counter[str]:
    spans = list(SpecialTokens(special_tokens).spans(Span(path, 0, path.stat().st_size), size=1000))
    flat, starts, counts = counting.count_spans(spans, special_tokens, num_threads, lambda _: None).words()
    words = [flat[i:j].tobytes().decode() for i, j in pairwise(starts.tolist())]
    assert len(set(words)) == len(words)
    return Counter(dict(zip(words, counts.tolist(), strict=True)))


def reference_counts(text: str, special_tokens: list[str]) -> Counter[str]:
    parts = SpecialTokens(special_tokens).split(text)[::2]
    return Counter(token for part in parts for token in PRE_TOKEN.findall(part))


def random_texts(seed: int, number: int) -> list[str]:
    """Texts with every kind of border between categories and scripts, contractions and special tokens among them."""
    rng = random.Random(seed)
    anything = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    pools = [
        "abXZ'stdmlver ", " \n\t\r\u00a0\u2003\u3000\x0b\x1c\x85\u200b", "019٣½²Ⅷ", "!?.—“<|>", "éßжш中カ한ǅʰ",
        "😀👍🏽\u200d\ufe0f", "\u0301\u0903", "a", " ", "\x00a ", anything,
    ]  # fmt: skip
    pieces = [*SPECIALS, "'ll", "'ve", "'re", "\n\t's", "'LL", " '", "\r\n", "<|endoftex", "don't", "x" * 7, "x" * 8]
    long = ["a plain run of words, " * 4, "x" * 70, "it's we'll they've I'd'd''s " * 3, "12 345 6789 " * 6, " \n" * 40]

    def piece() -> str:
        chance = rng.random()
        if chance < 0.3:
            return rng.choice(pieces)
        if chance < 0.4:
            return rng.choice(long)[rng.randrange(10) :]
        return "".join(rng.choices(rng.choice(pools), k=rng.randint(1, 5)))

    return ["".join(piece() for _ in range(rng.randint(0, 14))) for _ in range(number)]


def plain(tokenizer: Tokenizer) -> Tokenizer:
    """The same without compiled code."""
    slow = Tokenizer(tokenizer.vocab, tokenizer.merges, list(tokenizer.special_ids))
    slow.encoders = lambda num_bytes: None
    return slow


def pool_of(tokenizer: Tokenizer) -> EncoderPool:
    pool = tokenizer.encoders(1 << 30)
    assert pool is not None
    return pool


def wide(tokenizer: Tokenizer, distance: int = 100_000) -> Tokenizer:
    """The same merges with ids above 65,536."""
    vocab = {id_ + distance: token for id_, token in tokenizer.vocab.items()}
    return Tokenizer(vocab, tokenizer.merges, list(tokenizer.special_ids))


def test_kinds_are_those_of_regex() -> None:
    rng = random.Random(0)
    kinds = kernels().kinds
    for code in [*range(0x3100), *rng.sample(range(0x3100, 0x110000), 20_000)]:
        patterns = (r"[^\s\p{L}\p{N}]", r"\p{L}", r"\p{N}", r"\s")
        assert [bool(regex.fullmatch(p, chr(code))) for p in patterns].index(True) == kinds[code]
    assert kinds[ord("½")] == NUMBER


def test_pre_tokens_of_random_texts(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    rng = random.Random(1)
    for text in random_texts(2, 2000):
        tokens = rng.sample(SPECIALS, rng.randint(0, 3))
        path.write_bytes(text.encode())
        assert fast_counts(path, tokens) == reference_counts(text, tokens), (text, tokens)


def test_contractions_end_with_their_text_and_at_windows_ends(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    for size in range(70):
        for contraction in ("'s", "'d", "'ll", "'ve", "'re"):
            text = f"{'x' * size}{contraction}| {contraction} 'x"
            path.write_bytes(text.encode())
            for cut in range(1, len(contraction) + 1):
                special = contraction[cut:] + "|"
                assert fast_counts(path, [special]) == reference_counts(text, [special]), (text, special)


@pytest.mark.parametrize("block", [64, 1000])
@pytest.mark.parametrize("tokens", [[], [END_OF_TEXT], SPECIALS])
def test_borders_of_blocks_spans_and_threads(
    block: int, tokens: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK", block)
    monkeypatch.setattr(counting, "FIRST_SIZE", 4)
    monkeypatch.setattr(counting, "FIRST_ARENA", 4)
    texts = random_texts(3, 3000)
    text = "".join([*texts, "b" * 3000, " " * 2000, *texts[:1000]])
    path = tmp_path / "text.txt"
    path.write_bytes(text.encode())
    assert fast_counts(path, tokens, num_threads=3) == reference_counts(text, tokens)


def test_malformed_utf8_is_found_where_python_finds_it() -> None:
    rng = random.Random(4)
    alphabet = [0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC2, 0xDF, 0xE0, 0xE1, 0xED, 0xEF, 0xF0,
                0xF1, 0xF4, 0xF5, 0xFF]  # fmt: skip
    data = np.zeros(16 + PADDING, np.uint8)
    for _ in range(30_000):
        raw = bytes(rng.choices(alphabet, k=rng.randint(1, 5))).rjust(rng.randint(1, 16), b"a")
        try:
            raw.decode()
            expected = len(raw)
        except UnicodeDecodeError as error:
            expected = error.start
        data[: len(raw)] = np.frombuffer(raw, np.uint8)
        assert kernels().valid_until(data, 0, len(raw)) == expected, raw


def test_malformed_files_are_named_with_the_offset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "_is_fast", lambda _: True)
    path = tmp_path / "text.txt"
    for raw, offset in ((b"caf\xe9 ", 3), (b"a" * 3_000_000 + b"\xff", 3_000_000), ("é".encode()[:1], 0)):
        path.write_bytes(raw)
        with pytest.raises(ValueError, match=f"not UTF-8: byte 0x{raw[offset]:02x} at offset {offset};"):
            train_bpe(path, 300, [END_OF_TEXT])


def test_training_with_replacement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = b"caf\xe9 caf\xe9s " * 50 + END_OF_TEXT.encode() + b"\xff\xff cut \xe2\x82"
    bad, good = tmp_path / "bad.txt", tmp_path / "good.txt"
    bad.write_bytes(raw)
    good.write_text(raw.decode(errors="replace"), encoding="utf-8")
    expected = train_bpe(good, 270, [END_OF_TEXT])
    assert any("\ufffd".encode() in token for token in expected[0].values())
    for is_fast in (False, True):
        monkeypatch.setattr(train, "_is_fast", lambda _, is_fast=is_fast: is_fast)
        assert train_bpe(bad, 270, [END_OF_TEXT], errors="replace") == expected


def train_both(
    path: Path | list[Path], size: int, tokens: list[str], monkeypatch: pytest.MonkeyPatch, workers: int = 1
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(train, "_is_fast", lambda _: False)
        expected = train_bpe(path, size, tokens, num_workers=1)
        patch.setattr(train, "_is_fast", lambda _: True)
        assert train_bpe(path, size, tokens, num_workers=workers) == expected


@pytest.mark.parametrize("alphabet", ["a", "ab", "ab ", "abc\n", "aé中", "a\x00\x7f", "aaab'sl "])
def test_merges_of_small_alphabets(alphabet: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(alphabet)
    path = tmp_path / "text.txt"
    for _ in range(20):
        path.write_text("".join(rng.choices(alphabet, k=rng.randrange(200))), encoding="utf-8", newline="")
        train_both(path, 256 + rng.randrange(60), [], monkeypatch)


def test_trains_the_same_on_stories_and_random_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stories, random_text = tmp_path / "stories.txt", tmp_path / "random.txt"
    generate_stories(stories, 400_000, seed=0)
    random_text.write_bytes("".join(random_texts(5, 3000)).encode())
    train_both([stories, random_text], 4000, [END_OF_TEXT], monkeypatch, workers=2)
    train_both(random_text, 1000, [token for token in SPECIALS if len(token.encode()) > 1], monkeypatch)


def test_stops_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("never read")
    stop = Event()
    stop.set()
    counts = counting.Counts()
    counts.count_span(Span(path, 0, 10), SpecialArrays([]), stop, lambda _: None)
    assert len(counts.words()[2]) == 0


def test_small_texts_do_not_wait_for_compiled_code(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("a small text")
    code = (
        "import sys; from lm.tokenizer import train_bpe, Tokenizer\n"
        "Tokenizer(*train_bpe('text.txt', 260, [])).encode('a text')\n"
        "assert not {'numba', 'llvmlite'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


def test_merging_finds_room_as_it_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes("".join(random_texts(6, 2000)).encode())
    for name in ("FIRST_HEAP", "FIRST_TEXT", "STEP"):
        monkeypatch.setattr(merging, name, 300)
    train_both(path, 3000, [END_OF_TEXT], monkeypatch)


def test_ids_of_random_texts(tokenizer: Tokenizer) -> None:
    merged = {left + right for left, right in tokenizer.merges}
    ordinary = {id_: token for id_, token in tokenizer.vocab.items() if len(token) == 1 or token in merged}
    many = [token for token in SPECIALS if len(token.encode()) > 1 and token.encode() not in merged]
    for specials in ([], [END_OF_TEXT], many):
        narrow = Tokenizer(ordinary, tokenizer.merges, specials)
        for candidate in (narrow, wide(narrow)):
            pool, reference = pool_of(candidate), plain(candidate)
            for text in random_texts(7, 1000):
                assert pool.encode(text.encode()).tolist() == reference.encode(text), text


def test_long_words_and_full_tables(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(8)
    for name in ("FIRST_SHORT", "FIRST_LONG", "MOST_SHORT", "MOST_LONG"):
        monkeypatch.setattr(encoder, name, 1 << (10 if name.startswith("FIRST") else 12))
    letters = "abcdefghijklmnopqrstuvwxyzé"
    words = ["".join(rng.choices(letters, k=rng.randint(1, 20))) for _ in range(20_000)]
    text = " ".join([*words, "ab" * 600, *words[:100], "\n" * 1500, "the" * 700])
    for candidate in (tokenizer, wide(tokenizer)):
        pool, expected = pool_of(candidate), plain(candidate).encode(text)
        for _ in range(2):
            assert pool.encode(text.encode()).tolist() == expected


def test_large_texts_take_the_compiled_way(tokenizer: Tokenizer) -> None:
    text = "".join(random_texts(9, 20_000)) + "a" * LOAD_FROM
    assert tokenizer.encode(text) == plain(tokenizer).encode(text)
    assert tokenizer._pool is not None or not native.ready(len(text))
    with pytest.raises(ValueError, match="U\\+D800"):
        tokenizer.encode(text + "\ud800")


def test_a_damaged_cache_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = native.build()
    monkeypatch.setattr(native, "build", lambda: whole)
    monkeypatch.setattr(native, "_folders", lambda: [tmp_path / "new"])
    native.kernels.cache_clear()
    native.kernels()
    (cached,) = (tmp_path / "new").iterdir()
    assert cached.read_bytes() == whole
    cached.write_bytes(whole[:-100])
    native.kernels.cache_clear()
    assert native.kernels().valid_until(np.zeros(PADDING, np.uint8), 0, 0) == 0
    assert cached.read_bytes() == whole


def test_without_a_folder_for_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    made = kernels_file()
    monkeypatch.setattr(native, "build", lambda: made)
    monkeypatch.setattr(native, "_folders", lambda: [tmp_path / "file" / "below"])
    native.kernels.cache_clear()
    assert native.kernels().valid_until(np.zeros(PADDING, np.uint8), 0, 0) == 0
    assert "file/below can be written: this will be compiled in every run" in caplog.text
    native.kernels.cache_clear()


def kernels_file() -> bytes:
    kernels()
    path = native._cached_file()
    assert path is not None
    return path.read_bytes()
