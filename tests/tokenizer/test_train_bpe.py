"""The trainer, held to a naive one written from the definition."""

import logging
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import regex

from lm.tokenizer import END_OF_TEXT, train_bpe

GPT2 = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""


def naive_merges(texts: list[str], num_merges: int) -> list[tuple[bytes, bytes]]:
    """Count every pair anew, merge the most frequent (then the greatest), and again."""
    words = [[bytes([b]) for b in word.encode()] for text in texts for word in regex.findall(GPT2, text)]
    merges = []
    while len(merges) < num_merges:
        counts = Counter(pair for word in words for pair in pairwise(word))
        if not counts:
            break
        best = max(counts, key=lambda pair: (counts[pair], pair))
        merges.append(best)
        for word in words:
            i = 0
            while i + 1 < len(word):
                if (word[i], word[i + 1]) == best:
                    word[i : i + 2] = [best[0] + best[1]]
                i += 1
    return merges


def write(folder: Path, text: str) -> Path:
    path = folder / "text.txt"
    path.write_text(text, encoding="utf-8", newline="")
    return path


def test_equals_the_naive_trainer_on_text(text: str, tmp_path: Path) -> None:
    vocab, merges = train_bpe(write(tmp_path, text + END_OF_TEXT + text[::-1]), 257 + 120, [END_OF_TEXT])
    assert merges == naive_merges([text, text[::-1]], 120)
    assert [vocab[i] for i in range(256)] == [bytes([i]) for i in range(256)]
    assert vocab[256] == END_OF_TEXT.encode()
    assert [vocab[257 + i] for i in range(120)] == [left + right for left, right in merges]
    assert list(vocab) == list(range(377))


@pytest.mark.parametrize("alphabet", ["a", "ab", "ab ", "abc\n", "aé中", "a\x00\x7f", "aaab'sl "])
def test_equals_the_naive_trainer_on_small_alphabets(alphabet: str, tmp_path: Path) -> None:
    rng = random.Random(alphabet)
    for _ in range(40):
        text = "".join(rng.choices(alphabet, k=rng.randrange(120)))
        size = 256 + rng.randrange(40)
        vocab, merges = train_bpe(write(tmp_path, text), size, [])
        assert merges == naive_merges([text], size - 256)
        assert [vocab[i] for i in range(256, len(vocab))] == [left + right for left, right in merges]
        assert len(set(vocab.values())) == len(vocab)


def test_ties_go_to_the_greater_pair_of_byte_strings(tmp_path: Path) -> None:
    # Each pair is there once; "b" is greater than "a", a longer string greater than its beginning.
    _, merges = train_bpe(write(tmp_path, "ab ba"), 257, [])
    assert merges == [(b"b", b"a")]
    _, merges = train_bpe(write(tmp_path, "xyc xyc zxy zxy xy1xy1"), 260, [])
    assert merges == naive_merges(["xyc xyc zxy zxy xy1xy1"], 4)


def test_special_tokens_split_and_never_merge(tmp_path: Path) -> None:
    _, merges = train_bpe(write(tmp_path, "hug<|x|>hug<|x|>hug"), 262, ["<|x|>", "<|x|><|y|>"])
    assert merges == [(b"u", b"g"), (b"h", b"ug")]


def test_several_files_are_apart(tmp_path: Path) -> None:
    for name, text in (("a", "xyx"), ("b", "yyx")):
        (tmp_path / name).write_text(text)
    _, merges = train_bpe([tmp_path / "a", tmp_path / "b"], 300, [])
    assert merges == naive_merges(["xyx", "yyx"], 44)


def test_empty_text_has_no_merges(tmp_path: Path) -> None:
    vocab, merges = train_bpe(write(tmp_path, ""), 257, [END_OF_TEXT])
    assert (len(vocab), merges) == (257, [])


def test_says_when_the_text_cannot_fill_the_vocabulary(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "lm"):
        vocab, merges = train_bpe(write(tmp_path, "abc"), 1000, [])
    assert merges == [(b"b", b"c"), (b"a", b"bc")]
    assert len(vocab) == 258
    assert [r.getMessage() for r in caplog.records] == [
        "the text has no more pairs to merge: asked for 1000 tokens, reached 258"
    ]


@pytest.mark.parametrize(
    ("vocab_size", "specials", "message"),
    [
        (256, ["<|x|>"], "vocab_size is 256, .* at least 257; raise it"),
        (300, ["<|x|>", "<|x|>"], "given twice"),
        (300, [""], "is empty"),
        (300, ["a"], "single byte"),
    ],
)
def test_bad_arguments(vocab_size: int, specials: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        train_bpe(write(tmp_path, "abc"), vocab_size, specials)


def test_bad_worker_count(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="0 workers are too few"):
        train_bpe(write(tmp_path, "abc"), 300, [], num_workers=0)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file .*nowhere\.txt; check"):
        train_bpe(tmp_path / "nowhere.txt", 300, [])


def test_progress_bars(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_bpe(write(tmp_path, "abc abd"), 258, [], progress=True)
    shown = capsys.readouterr().err
    assert "counting" in shown
    assert "merging: 100%" in shown
