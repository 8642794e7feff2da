"""Documents in both texts are counted, whatever their size, place and the blocks that the files are read in."""

from pathlib import Path

import numpy as np
import pytest

from lm.data import overlap
from lm.data.overlap import document_digests, shared_documents
from lm.tokenizer import END_OF_TEXT


def write(path: Path, documents: list[str]) -> Path:
    path.write_text(END_OF_TEXT.join(documents), encoding="utf-8")
    return path


@pytest.mark.parametrize("block", [1, 7, 64, 1 << 20])
def test_shared_documents_are_those_of_sets(tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "BLOCK", block)
    monkeypatch.setattr(overlap, "BATCH", 3)
    rng = np.random.default_rng(0)
    words = [" ".join(rng.choice(["a", "b", "ca", "<|", "\n", "<|endoftext|", ""], size=4)) for _ in range(60)]
    train, valid = words[:40], [*words[30:], " \n ", f"  {words[0]}\n", words[0]]
    expected = [document for document in valid if document.strip() in {t.strip() for t in train} - {""}]
    assert 5 < len(expected) < len(valid)
    assert shared_documents(write(tmp_path / "t", train), write(tmp_path / "v", valid)) == len(expected)
    assert len(list(document_digests(tmp_path / "v"))) == len([v for v in valid if v.strip()])


def test_texts_without_shared_or_any_documents(tmp_path: Path) -> None:
    some, none = write(tmp_path / "some", ["a", "b"]), write(tmp_path / "none", ["c", " "])
    blank = write(tmp_path / "blank", ["", "\n"])
    assert shared_documents(some, none) == shared_documents(some, blank) == shared_documents(blank, some) == 0
