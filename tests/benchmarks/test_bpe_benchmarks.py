"""The benchmarks of the tokenizer: equal rules show, other ones too, and every stage gives the same merges."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from benchmarks import bpe_encode, bpe_stages, bpe_train
from benchmarks.machine import ratio_to_fastest
from lm.data.stories import generate_stories
from lm.export.tokenizer_formats import export_huggingface
from lm.tokenizer import END_OF_TEXT, Tokenizer, train_bpe


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bpe") / "text.txt"
    generate_stories(path, 50_000, seed=0)
    return path


def test_where_merges_part(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("ab ab ab cd cd cd ef")
    _, ours = train_bpe(text, 256 + 1 + 4, [END_OF_TEXT])
    assert bpe_train.parting(text, ours, ours) == "equal"
    assert bpe_train.parting(text, ours, ours[:2]) == "equal as far as merge 2, where one ends"
    assert ours[0] == (b"c", b"d")
    assert bpe_train.parting(text, ours, [(b" ", b"c"), *ours[1:]]) == "equal up to a tie at merge 1"
    said = bpe_train.parting(text, ours, [(b"e", b"f"), *ours[1:]])
    assert said == "another rule: at merge 1 ours is in the text 3 times, theirs 1 times"


def test_ratio() -> None:
    assert ratio_to_fastest({"lm": 2.0, "slow": 9.0, "fast": 3.0}) == "1.50 (fast)"
    assert ratio_to_fastest({"lm": 2.0}) == ratio_to_fastest({"fast": 2.0}) == "-"


def test_stages_agree(text: Path) -> None:
    expected = train_bpe(text, 300, [END_OF_TEXT])[1]
    for stage, train in bpe_stages.STAGES.items():
        assert train(text, 300) == expected, stage


@pytest.mark.parametrize("threads", [1, 2])
def test_every_encoder_writes_our_ids(text: Path, tmp_path: Path, threads: int) -> None:
    tokenizer = Tokenizer(*train_bpe(text, 300, [END_OF_TEXT]), [END_OF_TEXT])
    export_huggingface(tokenizer, tmp_path / "tokenizer")
    tokenizer.save(tmp_path / "tokenizer")
    for name, encoder in bpe_encode.ENCODERS.items():
        if find_spec(bpe_encode.INSTALLED_AS.get(name, name)):
            encoder(tmp_path / "tokenizer", threads)(text, tmp_path / "ids.npy")
            ids = np.load(tmp_path / "ids.npy")
            assert ids.dtype == np.uint16, name
            assert ids.tolist() == tokenizer.encode(text.read_text(encoding="utf-8")), name
