"""One text on many machines: counts and token files of shards are those of the whole."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

from lm.cli import main
from lm.data.stories import generate_stories
from lm.tokenizer import END_OF_TEXT, Tokenizer, train_bpe
from lm.tokenizer.counting import Counts, count_files
from lm.tokenizer.pretokenize import PRE_TOKEN, SpecialTokens


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shards") / "text.txt"
    generate_stories(path, 200_000, seed=0)
    with path.open("a", encoding="utf-8") as file:
        file.write("naïve\x00 \x00café a-very-long-word-of-more-than-16-bytes 中文字 " * 5 + "'" * 40)
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    code = main([str(argument) for argument in arguments])
    shown = capsys.readouterr()
    assert code == 0, shown.err
    return shown.out


def test_shards_train_and_encode_as_the_whole(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.txt"
    other.write_text("other words for another file " * 100)
    for shard in range(3):
        run(capsys, "count", text, tmp_path / f"{shard}.counts", "--shard", shard, "--shards", 3)
    counts = [tmp_path / f"{shard}.counts" for shard in range(3)]
    said = run(capsys, "train-tokenizer", *counts, other, tmp_path / "parts", "--vocab_size", 500)
    assert "parts: 500 tokens" in said
    run(capsys, "train-tokenizer", text, other, tmp_path / "whole", "--vocab_size", 500)
    for name in ("vocab.json", "merges.txt"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()

    documents = 0
    for shard in range(3):
        said = run(
            capsys, "encode", tmp_path / "whole", text, tmp_path / f"{shard}.npy", "--shard", shard, "--shards", 3
        )
        documents += int(said.split(" tokens, ")[1].split()[0].replace(",", ""))
    parts = [tmp_path / f"{shard}.npy" for shard in range(3)]
    run(capsys, "join-tokens", *parts, tmp_path / "joined.npy")
    said = run(capsys, "encode", tmp_path / "whole", text, tmp_path / "whole.npy")
    assert (tmp_path / "joined.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
    assert f" {documents:,} documents" in said


def test_counts_do_not_depend_on_how_they_were_made(text: Path, tmp_path: Path) -> None:
    specials = SpecialTokens([END_OF_TEXT])
    count_files([text], specials, 2, False).save(tmp_path / "once.counts", specials.tokens)
    total = Counts()
    for shard in range(4):
        count_files([text], specials, 1, False, (shard, 4)).save(tmp_path / "part.counts", specials.tokens)
        total.load(tmp_path / "part.counts", specials.tokens)
    total.save(tmp_path / "added.counts", specials.tokens)
    assert (tmp_path / "once.counts").read_bytes() == (tmp_path / "added.counts").read_bytes()
    parts = specials.split(text.read_text(encoding="utf-8"))[::2]
    pre_tokens = [token for part in parts for token in PRE_TOKEN.findall(part)]
    assert (total.total, len(total)) == (len(pre_tokens), len(set(pre_tokens)))


def test_bad_count_files(text: Path, tmp_path: Path) -> None:
    specials = SpecialTokens([END_OF_TEXT])
    path = tmp_path / "a.counts"
    count_files([text], specials, 1, False).save(path, specials.tokens)
    with pytest.raises(ValueError, match="counted with the special tokens .*endoftext.*, not with .*x"):
        train_bpe([path], 300, ["<|x|>"])
    whole = path.read_bytes()
    rng = random.Random(0)
    flipped = bytearray(whole)
    flipped[rng.randrange(len(whole) // 2, len(whole))] ^= 1
    for damage in (whole[:100], b"", b"text", whole[:-30], b"[]\n", bytes(flipped)):
        path.write_bytes(damage)
        with pytest.raises(ValueError, match="is damaged or no file of counts"):
            train_bpe([path], 300, [END_OF_TEXT])


def test_bad_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "narrow.npy", np.zeros(3, np.uint16))
    np.save(tmp_path / "wide.npy", np.zeros(3, np.uint32))
    (tmp_path / "text.npy").write_text("text")
    for parts, message in (
        (["narrow", "wide"], "holds uint32 in 1 dimensions, not ids as"),
        (["text"], "is damaged or no .npy file"),
        (["gone"], "there is no file"),
        ([], "there are no parts"),
    ):
        arguments = [str(tmp_path / f"{part}.npy") for part in parts]
        assert main(["join-tokens", *arguments, str(tmp_path / "out.npy")]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out.npy").exists()


def test_statistics(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "tokenizer"
    Tokenizer(*train_bpe(text, 400, [END_OF_TEXT]), [END_OF_TEXT]).save(folder)
    (row,) = json.loads(run(capsys, "tokenizer-stats", text, "--tokenizers", folder, "--json"))
    tokenizer = Tokenizer.from_folder(folder)
    ids = tokenizer.encode(text.read_text(encoding="utf-8"))
    plain = text.read_text(encoding="utf-8").replace(END_OF_TEXT, "")
    assert row["tokens"] == len(ids)
    assert row["bytes_per_token"] == pytest.approx(len(plain.encode()) / len(ids))
    longest = max(
        (token for id_, token in tokenizer.vocab.items() if id_ not in tokenizer.special_ids.values()), key=len
    )
    assert row["longest_tokens"][0] == longest.decode()
    table = run(capsys, "tokenizer-stats", text, "--tokenizers", folder)
    assert f"{row['bytes_per_token']:.3f}" in table


def test_counts_with_replacement(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = b"caf\xe9 " * 40
    (tmp_path / "bad.txt").write_bytes(raw)
    (tmp_path / "good.txt").write_text(raw.decode(errors="replace"), encoding="utf-8")
    run(capsys, "count", tmp_path / "bad.txt", tmp_path / "bad.counts", "--errors", "replace")
    run(capsys, "count", tmp_path / "good.txt", tmp_path / "good.counts")
    assert (tmp_path / "bad.counts").read_bytes() == (tmp_path / "good.counts").read_bytes()
    for name in ("bad", "good"):
        options = ["--vocab_size", 262, "--errors", "replace"]
        run(capsys, "train-tokenizer", tmp_path / f"{name}.txt", tmp_path / name, *options)
    assert (tmp_path / "bad" / "merges.txt").read_bytes() == (tmp_path / "good" / "merges.txt").read_bytes()
