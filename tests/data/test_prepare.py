"""prepare(): whatever is missing is made, once; the rest is reused; what was cut off is done again."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lm.data.encode
import lm.data.locks
from lm.data.prepare import PreparedData, prepare
from lm.data.sources import StoryCorpus
from lm.data.stories import generate_stories
from lm.data.tokens import TokenFiles
from lm.tokenizer import END_OF_TEXT, Tokenizer, train_bpe

STORY = "Once there was a red cat. It sat on a mat and sang to the moon, the moon, the moon.\n<|endoftext|>\n"
VOCAB_SIZE = 270


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("train.txt").write_text(STORY * 50, encoding="utf-8")
    Path("valid.txt").write_text(STORY * 7 + "A café at the end", encoding="utf-8")
    return tmp_path


def prepare_text(**changes: Any) -> PreparedData:
    arguments = {"train_text": Path("train.txt"), "valid_text": Path("valid.txt"), "vocab_size": VOCAB_SIZE}
    return prepare("text", **{**arguments, **changes}, workers=1)


def made(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time of change and content of every file below `folder` but locks."""
    files = [p for p in folder.rglob("*") if p.is_file() and not p.name.endswith(".lock")]
    return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in files}


def test_second_call_changes_no_file(folder: Path) -> None:
    first = prepare_text()
    before = made(folder)
    assert prepare_text() == first
    assert made(folder) == before
    assert not [name for name in before if "tmp" in Path(name).name]


def test_what_is_prepared_may_be_read_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = StoryCorpus(20_000, 4_000)
    both = prepare_text(), prepare("stories", vocab_size=VOCAB_SIZE, stories=corpus, workers=1)
    Path("data/text-train/digests.json").unlink()
    before, access, replace = made(folder), os.access, os.replace

    def is_here(path: Any) -> bool:
        return Path(path).absolute().is_relative_to(folder)

    def refuse(source: Any, target: Any) -> None:
        if is_here(target):
            raise OSError("Read-only file system")
        replace(source, target)

    monkeypatch.setattr(os, "access", lambda path, mode: not is_here(path) and access(path, mode))
    monkeypatch.setattr(os, "replace", refuse)
    monkeypatch.setattr(lm.data.locks, "FileLock", lambda path: pytest.fail(f"locks {path}"))
    assert (prepare_text(), prepare("stories", vocab_size=VOCAB_SIZE, stories=corpus, workers=1)) == both
    assert made(folder) == before


def test_other_text_or_size_gets_folders_of_its_own(folder: Path) -> None:
    first = prepare_text()
    before = made(folder)
    larger = prepare_text(vocab_size=VOCAB_SIZE + 1)
    Path("valid.txt").write_text(STORY * 8, encoding="utf-8")
    other_valid = prepare_text()
    Path("train.txt").write_text(STORY * 51, encoding="utf-8")
    other_train = prepare_text()
    assert first.tokenizer == other_valid.tokenizer  # it comes from the training text alone
    assert len({first.tokenizer, larger.tokenizer, other_train.tokenizer}) == 3
    assert len({first.tokens, larger.tokens, other_valid.tokens, other_train.tokens}) == 4
    after = made(folder)
    kept = [name for name in before if Path(name).suffix == ".npy"]
    assert [after[name] for name in kept] == [before[name] for name in kept]


def test_text_changed_within_the_same_size_is_noticed(folder: Path) -> None:
    first = prepare_text()
    Path("train.txt").write_text(STORY.replace("cat", "dog") * 50, encoding="utf-8")
    assert prepare_text().tokens != first.tokens


def test_given_tokenizer_is_used_as_it_is(folder: Path) -> None:
    mine = folder / "mine"
    vocab, merges = train_bpe(Path("valid.txt"), 264, [END_OF_TEXT], num_workers=1)
    Tokenizer(vocab, merges, [END_OF_TEXT]).save(mine)
    before = made(mine)
    prepared = prepare_text(tokenizer=mine)
    assert prepared.tokenizer == mine
    assert made(mine) == before
    assert not Path("tokenizers").exists()
    files = TokenFiles(prepared.tokens)
    assert files.meta.tokenizer_digest == Tokenizer.from_folder(mine).digest
    assert files.meta.vocab_size == 264
    assert Tokenizer.from_folder(mine).decode(files.train.tolist()) == STORY * 50


def test_missing_tokenizer_is_trained_under_its_name(folder: Path) -> None:
    prepared = prepare_text(tokenizer=Path("mine"))
    expected, _ = train_bpe(Path("train.txt"), VOCAB_SIZE, [END_OF_TEXT], num_workers=1)
    assert prepared.tokenizer == Path("mine")
    assert Tokenizer.from_folder("mine").vocab == expected


def test_tokenizers_that_do_not_fit_are_refused(folder: Path) -> None:
    prepare_text(tokenizer=Path("mine"))
    with pytest.raises(ValueError, match=r"mine has 270 ids, vocab_size is 260; set vocab_size to at least 270"):
        prepare_text(tokenizer=Path("mine"), vocab_size=260)
    Tokenizer({i: bytes([i]) for i in range(256)}, [], []).save(folder / "bare")
    with pytest.raises(ValueError, match=r"bare has no <\|endoftext\|> token"):
        prepare_text(tokenizer=Path("bare"))


def test_meta_states_what_the_files_hold(folder: Path) -> None:
    prepared = prepare_text()
    files = TokenFiles(prepared.tokens)
    tokenizer = Tokenizer.from_folder(prepared.tokenizer)
    for split, array, documents in (("train", files.train, 50), ("valid", files.valid, 8)):
        text = Path(f"{split}.txt").read_bytes().decode()
        stated = getattr(files.meta, split)
        assert array.tolist() == tokenizer.encode(text)
        assert stated.tokens == len(array)
        assert stated.bytes == len(text.replace(END_OF_TEXT, "").encode())
        assert stated.documents == documents
        assert stated.irreducible is None
    assert files.train.dtype == np.uint16


def test_irreducible_loss_is_the_storys_information_per_token(folder: Path) -> None:
    corpus = StoryCorpus(train_bytes=20_000, valid_bytes=5_000, train_seed=3, valid_seed=4)
    prepared = prepare("stories", vocab_size=VOCAB_SIZE, stories=corpus, workers=1)
    files = TokenFiles(prepared.tokens)
    nats = generate_stories(folder / "again.txt", 5_000, 4)
    assert files.meta.valid.nats == nats
    assert files.meta.valid.irreducible == pytest.approx(nats / len(files.valid))
    text = (folder / "again.txt").read_text(encoding="utf-8")
    perfect_bits = nats / math.log(2) / len(text.replace(END_OF_TEXT, "").encode())
    assert files.meta.valid.bits_per_byte(nats / len(files.valid)) == pytest.approx(perfect_bits)


def test_cut_off_encoding_leaves_no_meta_and_is_done_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode_file = lm.data.encode.encode_file

    def cut_off(tokenizer: Tokenizer, text: Path, *arguments: Any, **options: Any) -> Any:
        if text.name == "valid.txt":
            raise KeyboardInterrupt
        return encode_file(tokenizer, text, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr("lm.data.prepare.encode_file", cut_off)
        with pytest.raises(KeyboardInterrupt):
            prepare_text()
    assert list(folder.glob("data/*/tokens-*/train.npy"))
    assert not list(folder.rglob("meta.json"))
    next(folder.glob("data/*/tokens-*")).joinpath(".train.npy.99999.tmp").touch()  # as kill -9 leaves it
    prepared = prepare_text()
    assert not list(folder.rglob("*.tmp"))
    assert TokenFiles(prepared.tokens).meta.valid.documents == 8


def test_shared_documents_are_counted_and_said(folder: Path) -> None:
    overlap = TokenFiles(prepare_text().tokens).meta.overlap
    assert overlap is not None
    assert overlap.startswith("7 of 8 validation documents are in the training text too")
    Path("valid.txt").write_text("Another story.", encoding="utf-8")
    assert TokenFiles(prepare_text().tokens).meta.overlap is None


def test_damaged_memory_of_digests_is_made_anew(folder: Path) -> None:
    first = prepare_text()
    (memory,) = folder.rglob("digests.json")
    good = json.loads(memory.read_text())
    memory.write_text("{")
    assert prepare_text() == first
    assert json.loads(memory.read_text()) == good


PREPARE = """
import logging, sys, time
from pathlib import Path
import lm.data.prepare
train_bpe = lm.data.prepare.train_bpe
def slow(*arguments, **options):
    time.sleep(0.5)  # long enough for the others to come
    return train_bpe(*arguments, **options)
lm.data.prepare.train_bpe = slow
logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stdout)
prepared = lm.data.prepare.prepare("text", Path("train.txt"), Path("valid.txt"), 270, workers=1)
print(prepared.tokenizer, prepared.tokens)
"""


def test_processes_that_start_together_do_the_work_once(folder: Path) -> None:
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    started = [subprocess.Popen([sys.executable, "-c", PREPARE], text=True, **pipes) for _ in range(3)]
    outputs = [process.communicate(timeout=60) for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], outputs
    shown = [out for out, _ in outputs]
    assert sum(out.count("training a tokenizer") for out in shown) == 1
    assert sum(out.count("encoding") for out in shown) == 2  # train and valid
    assert len({out.splitlines()[-1] for out in shown}) == 1
