"""vocab.json and merges.txt: GPT-2's form, whole or not at all, and clear words about damage."""

import json
from pathlib import Path

import pytest
from tiktoken.load import data_gym_to_mergeable_bpe_ranks

from lm.tokenizer import END_OF_TEXT, Tokenizer, files


def test_round_trip(tokenizer: Tokenizer, text: str, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "new" / "mine")
    assert sorted(p.name for p in (tmp_path / "new").rglob("*")) == ["merges.txt", "mine", "vocab.json"]
    loaded = Tokenizer.from_folder(tmp_path / "new" / "mine")
    assert loaded.digest == tokenizer.digest
    assert (loaded.vocab, loaded.merges) == (tokenizer.vocab, tokenizer.merges)
    assert loaded.special_ids == tokenizer.special_ids == {END_OF_TEXT: 256, "<|pad|>": 257}
    assert loaded.encode(text) == tokenizer.encode(text)


def test_saving_again_replaces_the_files(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("kept")
    (tmp_path / "vocab.json").write_text("{")
    tokenizer.save(tmp_path)
    tokenizer.save(tmp_path)
    assert Tokenizer.from_folder(tmp_path).digest == tokenizer.digest
    assert sorted(p.name for p in tmp_path.parent.glob(f".{tmp_path.name}*")) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["merges.txt", "notes.md", "vocab.json"]


def test_a_save_that_fails_leaves_nothing(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        tokenizer.save(tmp_path / "mine")
    assert list(tmp_path.iterdir()) == []


def test_other_tools_read_the_files(tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """tiktoken's own reader of GPT-2's files, which wants GPT-2's order: printable bytes, others, merges, special."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    printable = [b for b in range(256) if files._TO_TEXT[b] == chr(b)]
    order = [bytes([b]) for b in [*printable, *(b for b in range(256) if b not in printable)]]
    order += [left + right for left, right in tokenizer.merges]
    Tokenizer({**dict(enumerate(order)), len(order): END_OF_TEXT.encode()}, tokenizer.merges).save(tmp_path)
    ranks = data_gym_to_mergeable_bpe_ranks(str(tmp_path / "merges.txt"), str(tmp_path / "vocab.json"))
    assert ranks == {token: id_ for id_, token in enumerate(order)}


def test_gpt2_form(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    lines = (tmp_path / "merges.txt").read_text(encoding="utf-8").split("\n")
    assert lines[0].startswith("#version: 0.2 sha256:")
    assert len(lines) == len(tokenizer.merges) + 2
    vocab = json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8"))
    assert (vocab["Ġ"], vocab["Ċ"], vocab["a"], vocab["Ā"], vocab["Ń"]) == (32, 10, 97, 0, 173)
    assert vocab[END_OF_TEXT] == 256


def test_from_files_takes_special_tokens_as_told(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    paths = tmp_path / "vocab.json", tmp_path / "merges.txt"
    assert Tokenizer.from_files(*paths).special_ids == {}
    loaded = Tokenizer.from_files(*paths, [END_OF_TEXT, "<|new|>"])
    assert loaded.special_ids == {END_OF_TEXT: 256, "<|new|>": tokenizer.vocab_size}


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no tokenizer file .*vocab\.json; check"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{\n"a": 1,\n}', r"vocab\.json, line 3: not JSON"),
        (b"[1, 2]", r"vocab\.json is not a JSON object"),
        (b'{"a": "1"}', r"vocab\.json: token 'a' has the id '1'"),
        (b'{"a": -1}', "has the id -1"),
        (b'{"a": true}', "has the id True"),
        (b'{"a": {"b": 1}}', "has the id"),
        (b'{"a": 1, "b": 1}', "id 1 is given twice, the second time to 'b'"),
        (b'{"a": 1, "a": 2}', "token 'a' is there twice"),
        (b'{"a b": 1}', r"vocab\.json: ' ' in 'a b' stands for no byte"),
        (b'{"\xff": 1}', r"vocab\.json is not UTF-8 at offset 2"),
    ],
)
def test_damaged_vocabulary(content: bytes, message: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    (tmp_path / "vocab.json").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        Tokenizer.from_folder(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("abc", r"merges\.txt, line 3: 'abc' is not two tokens"),
        ("a b c", "line 3: 'a b c' is not two tokens"),
        ("a  b", "line 3: 'a  b' is not two tokens"),
        ("a 中", "line 3: '中' in '中' stands for no byte"),
        ("Ġ zzzz", "the tokenizer in .* cannot be used: merge 2, .* needs b'zzzz' in the vocabulary"),
    ],
)
def test_damaged_merges(line: str, message: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    path = tmp_path / "merges.txt"
    lines = path.read_text(encoding="utf-8").split("\n")
    path.write_text("\n".join(["#version: 0.2", lines[1], line, *lines[2:]]), encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        Tokenizer.from_folder(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_any_flipped_byte_is_found(name: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    path = tmp_path / name
    whole = path.read_bytes()
    for at in range(len("#version: 0.2 sha256:"), len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(ValueError, match=str(tmp_path)) as caught:
            Tokenizer.from_folder(tmp_path)
        assert "\n" not in str(caught.value)


def test_swapped_lines_are_found_unless_they_are_meant(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    path = tmp_path / "merges.txt"
    lines = path.read_text(encoding="utf-8").split("\n")
    lines[1], lines[2] = lines[2], lines[1]
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ValueError, match="changed since it was written"):
        Tokenizer.from_folder(tmp_path)
    path.write_text("\n".join(["#version: 0.2", *lines[1:]]), encoding="utf-8")
    assert Tokenizer.from_folder(tmp_path).digest != tokenizer.digest


def test_vocabulary_and_merges_of_different_tokenizers(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(ValueError, match="do not belong together"):
        Tokenizer.from_folder(tmp_path)
