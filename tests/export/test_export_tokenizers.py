"""Tokenizers in other tools' files, held against these tools."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import tiktoken.load

import tokenizers
from lm.cli import main
from lm.export.tokenizer_formats import GPT2_PATTERN, export_huggingface, export_tiktoken, read_tokenizer
from lm.tokenizer import END_OF_TEXT, Tokenizer, train_bpe

SPECIALS = [END_OF_TEXT, "<|end", "<a b ü>"]
TEXTS = [
    "",
    "Once upon a time, there was a little girl. She'll say 'tis her friends' dog's 2nd bone!\n\nThe end.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. Fünf Äpfel kosten 3,50 €.",
    "从前有一个小女孩，她很喜欢红色的气球。\n她说：“你好！”",
    "🦊👩‍👩‍👧‍👦🇩🇪 e\u0301 \u200b\ufeff ﬁ Ⅷ ٣ \U0001f9ff",
    "\x00\x01\x1c\x1f\x7f\x85\xa0\u2028\u3000 \t\v\f\r\n\r\n   x  \n  y   ",
    f"a{END_OF_TEXT}b {END_OF_TEXT}{END_OF_TEXT} <|end <|endoftext| <a b ü><a b ü",
    " " * 70 + "a" * 70 + "\n" * 9 + "1234567890" * 5,
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(TEXTS * 3), encoding="utf-8")
    vocab, merges = train_bpe(path, 400, SPECIALS, num_workers=1)
    assert len(merges) > 100
    return Tokenizer(vocab, merges, SPECIALS)


def same(left: Tokenizer, right: Tokenizer) -> bool:
    return left.digest == right.digest and left.special_ids == right.special_ids


def test_tokenizer_json_gives_the_same_ids(trained: Tokenizer, tmp_path: Path) -> None:
    export_huggingface(trained, tmp_path / "hf")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "hf" / "tokenizer.json"))
    for text in TEXTS:
        ids = trained.encode(text)
        assert theirs.encode(text).ids == ids, text
        assert theirs.decode(ids, skip_special_tokens=False) == text
    assert {t: theirs.token_to_id(t) for t in SPECIALS} == trained.special_ids
    assert same(read_tokenizer(tmp_path / "hf"), trained)
    assert same(read_tokenizer(tmp_path / "hf" / "tokenizer.json"), trained)


def test_their_own_tokenizer_json_comes_in(tmp_path: Path) -> None:
    theirs = tokenizers.ByteLevelBPETokenizer()
    theirs.train_from_iterator(TEXTS * 3, vocab_size=400, show_progress=False, special_tokens=[END_OF_TEXT])
    theirs.save(str(tmp_path / "tokenizer.json"))
    ours = read_tokenizer(tmp_path)
    assert ours.special_ids == {END_OF_TEXT: 0}
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text).ids, text


def test_rank_file_gives_the_same_ids(trained: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "mine.tiktoken"
    export_tiktoken(trained, path)
    ranks = tiktoken.load.load_tiktoken_bpe(str(path))
    theirs = tiktoken.Encoding("mine", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens=trained.special_ids)
    for text in TEXTS[:-2] + TEXTS[-1:]:  # where special tokens overlap, tiktoken has no rule
        assert theirs.encode(text, allowed_special="all") == trained.encode(text), text
    assert same(read_tokenizer(path, trained.special_ids), trained)
    assert read_tokenizer(path).special_ids == {END_OF_TEXT: 256}


def test_gpt2_files_come_in(trained: Tokenizer, tmp_path: Path) -> None:
    trained.save(tmp_path / "gpt2")
    assert same(read_tokenizer(tmp_path / "gpt2"), trained)


def test_commands(trained: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained.save(tmp_path / "mine")
    path = tmp_path / "mine.tiktoken"
    assert main(["export-tokenizer", str(tmp_path / "mine"), str(path), "--format", "tiktoken"]) == 0
    opened: dict[str, Any] = {}
    snippet = capsys.readouterr().out.split("\n\n")[1].replace("tiktoken.Encoding", "theirs = tiktoken.Encoding")
    exec(snippet.replace("import tiktoken", "import tiktoken.load"), opened)
    assert opened["theirs"].encode(TEXTS[1]) == trained.encode(TEXTS[1])
    assert main(["export-tokenizer", str(tmp_path / "mine"), str(tmp_path / "hf")]) == 0
    assert main(["import-tokenizer", str(tmp_path / "hf"), str(tmp_path / "back")]) == 0
    assert same(Tokenizer.from_folder(tmp_path / "back"), trained)
    for name in ("mine", "hf"):
        assert main(["export-tokenizer", str(tmp_path / "mine"), str(tmp_path / name)]) == 2
        assert "is there already" in capsys.readouterr().err
    ids = json.dumps(trained.special_ids, ensure_ascii=False)
    assert main(["import-tokenizer", str(path), str(tmp_path / "ranks"), "--special_tokens", ids]) == 0
    assert same(Tokenizer.from_folder(tmp_path / "ranks"), trained)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["back", "hf", "mine", "mine.tiktoken", "ranks"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalizer": {"type": "NFC"}}, "the normalizer is NFC"),
        ({"pre_tokenizer": {"type": "Metaspace"}}, "the pre_tokenizer is Metaspace"),
        ({"pre_tokenizer": None}, "the pre_tokenizer is None"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "add_prefix_space"),
        ({"post_processor": {"type": "TemplateProcessing"}}, "the post_processor is TemplateProcessing"),
        ({"model": {"type": "Unigram"}}, "the model is Unigram"),
        ({"model": {"byte_fallback": True}}, "model.byte_fallback is True"),
        ({"model": {"vocab": {"Ġof": 900}}}, "no merge makes token b' of' (id 900)"),
        ({"model": {"vocab": None}}, "is not a tokenizer.json of Hugging Face"),
        ({"added_tokens": [{"content": "<x>", "id": 900, "lstrip": True}]}, "added token '<x>' has lstrip"),
        ({"added_tokens": [{"content": "<x>", "id": 65}]}, "both have the id 65"),
        ({"added_tokens": [{"content": "<x>", "id": 900}, {"content": "<y>", "id": 900}]}, "both have the id 900"),
        ({"added_tokens": [{"content": "<x>", "id": None}]}, "special token '<x>' has the id None"),
        (
            {
                "pre_tokenizer": {
                    "type": "Sequence",
                    "pretokenizers": [
                        {"type": "Split", "pattern": {"Regex": r"\d"}, "behavior": "Isolated"},
                        {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
                    ],
                }
            },
            "text is split by '\\\\d'",
        ),
    ],
)
def test_what_does_not_fit_is_named(trained: Tokenizer, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    export_huggingface(trained, tmp_path / "hf")
    path = tmp_path / "hf" / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    for key, value in change.items():
        if key == "model" and isinstance(value.get("vocab"), dict):
            value = {"vocab": content["model"]["vocab"] | value["vocab"]}
        if key == "added_tokens":
            value = [*content[key], *value]
        content[key] = content[key] | value if key == "model" else value
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match="tokenizer.json") as caught:
        read_tokenizer(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_gpt2_split_spelled_out_is_taken(trained: Tokenizer, tmp_path: Path) -> None:
    export_huggingface(trained, tmp_path / "hf")
    path = tmp_path / "hf" / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": GPT2_PATTERN}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        ],
    }
    content["model"]["merges"] = [merge.split(" ") for merge in content["model"]["merges"]]
    path.write_text(json.dumps(content), encoding="utf-8")
    assert same(read_tokenizer(path), trained)


def test_merges_in_another_order_are_no_rank_file(tmp_path: Path) -> None:
    vocab = {i: bytes([i]) for i in range(256)} | {256: b"ab", 257: b"bc", 258: b"abc"}
    merges = [(b"b", b"c"), (b"a", b"b"), (b"a", b"bc")]
    with pytest.raises(ValueError, match="this tokenizer's merges are ordered otherwise"):
        export_tiktoken(Tokenizer(vocab, merges), tmp_path / "x.tiktoken")
    assert not list(tmp_path.iterdir())


def test_special_token_that_reads_like_another_is_refused(tmp_path: Path) -> None:
    vocab = {i: bytes([i]) for i in range(256)} | {256: b" a"}
    with pytest.raises(ValueError, match="special token 'Ġa' reads like another token"):
        export_huggingface(Tokenizer(vocab, [(b" ", b"a")], ["Ġa"]), tmp_path / "hf")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["not base64!"], "line 257: not a token in base64"),
        ([base64.b64encode(b"abc").decode() + " 300"], r"no two tokens of lower rank make token b'abc' \(rank 300\)"),
        ([base64.b64encode(b"ab").decode() + " 65"], "1 ranks are given to two tokens"),
    ],
)
def test_damaged_rank_files(tmp_path: Path, lines: list[str], message: str) -> None:
    path = tmp_path / "x.tiktoken"
    single = [f"{base64.b64encode(bytes([i])).decode()} {i}" for i in range(256)]
    path.write_text("\n".join(single + lines), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_tokenizer(path)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no tokenizer\.json, vocab\.json or rank file"):
        read_tokenizer(tmp_path)
