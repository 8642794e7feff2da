"""Files of token ids: what `Tokenizer.encode` gives, whole or not at all."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lm.data import encode
from lm.data.encode import EncodedFile, encode_file
from lm.tokenizer import END_OF_TEXT, Tokenizer, blocks, encoder

BYTES = {i: bytes([i]) for i in range(256)}
MERGES = [(b"t", b"h"), (b"th", b"e"), (b" ", b"the"), (b"\xc3", b"\xa9"), (b"\n", b"\n")]
VOCAB = {**BYTES, **{256 + i: left + right for i, (left, right) in enumerate(MERGES)}}


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer(VOCAB, MERGES, [END_OF_TEXT, "<|pad|>"])


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8", newline="")
    return path


def test_encodes_the_raw_text(tokenizer: Tokenizer, tmp_path: Path) -> None:
    text = f"the café\r\n{END_OF_TEXT}\n\n{END_OF_TEXT}\nthen<|pad|>the end's \n{END_OF_TEXT}\n"
    encoded = encode_file(tokenizer, write(tmp_path / "text.txt", text), tmp_path / "new" / "ids.npy")
    ids = np.load(tmp_path / "new" / "ids.npy", mmap_mode="r")
    assert ids.tolist() == tokenizer.encode(text)
    assert ids.dtype == np.uint16
    plain = text.replace(END_OF_TEXT, "").replace("<|pad|>", "")
    assert encoded == EncodedFile(tokens=len(ids), bytes=len(plain.encode()), documents=2)
    assert sorted(p.name for p in tmp_path.rglob("*.*")) == ["ids.npy", "text.txt"]


def test_an_older_result_is_replaced(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for text in ("the end", "then"):
        encode_file(tokenizer, write(tmp_path / "text.txt", text), tmp_path / "ids.npy")
    assert np.load(tmp_path / "ids.npy").tolist() == tokenizer.encode("then")


@pytest.mark.parametrize(
    ("text", "documents"),
    [
        (" \n", 0),
        (END_OF_TEXT, 0),
        ("a", 1),
        (f"a{END_OF_TEXT}b", 2),
        (f"\n{END_OF_TEXT}\n{END_OF_TEXT}\na", 1),
        ("a<|pad|>b", 1),
    ],
)
def test_counts_documents(text: str, documents: int, tokenizer: Tokenizer, tmp_path: Path) -> None:
    encoded = encode_file(tokenizer, write(tmp_path / "text.txt", text), tmp_path / "ids.npy")
    assert encoded.documents == documents


def test_threads_and_compiled_code_encode_the_same(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(0)
    characters = [*"the café's\n", "<|pad|>"]
    documents = ["".join(rng.choices(characters, k=length)) for length in (0, 1, 30, 3000) for _ in range(50)]
    text = f"\n{END_OF_TEXT}\n".join(rng.choices(documents, k=2000))
    path = write(tmp_path / "text.txt", text)
    with monkeypatch.context() as patch:
        patch.setattr(tokenizer, "encoders", lambda num_bytes: None)
        plain = encode_file(tokenizer, path, tmp_path / "plain.npy")
        assert np.load(tmp_path / "plain.npy").tolist() == tokenizer.encode(text)
    assert plain.documents == sum(bool(part.strip()) for part in text.split(END_OF_TEXT))
    assert plain.bytes == len(text.replace(END_OF_TEXT, "").replace("<|pad|>", "").encode())
    assert tokenizer.encoders(1 << 30) is not None
    monkeypatch.setattr(encode, "SPAN", 100_000)
    monkeypatch.setattr(blocks, "BLOCK", 5000)
    monkeypatch.setattr(encoder, "CHUNK", 20_000)
    for number in (1, 3):
        assert encode_file(tokenizer, path, tmp_path / f"{number}.npy", num_workers=number) == plain
        assert (tmp_path / f"{number}.npy").read_bytes() == (tmp_path / "plain.npy").read_bytes()


@pytest.mark.parametrize("compiled", [True, False])
def test_malformed_text_can_be_replaced(compiled: bool, tokenizer: Tokenizer, tmp_path: Path) -> None:
    raw = b"the caf\xe9 \xf0\x9f " * 100_000 + b"end\xc3"
    (tmp_path / "text.txt").write_bytes(raw)
    if compiled:
        assert tokenizer.encoders(1 << 30) is not None
    else:
        tokenizer.encoders = lambda num_bytes: None
    encode_file(tokenizer, tmp_path / "text.txt", tmp_path / "ids.npy", errors="replace")
    assert np.load(tmp_path / "ids.npy").tolist() == tokenizer.encode(raw.decode(errors="replace"))


@pytest.mark.parametrize(("largest_id", "dtype"), [(65_535, np.uint16), (65_536, np.uint32)])
def test_large_vocabularies_need_four_bytes(largest_id: int, dtype: type, tmp_path: Path) -> None:
    tokenizer = Tokenizer({**BYTES, largest_id: b"<|x|>"}, [], ["<|x|>"])
    encode_file(tokenizer, write(tmp_path / "text.txt", "a<|x|>"), tmp_path / "ids.npy")
    ids = np.load(tmp_path / "ids.npy")
    assert (ids.tolist(), ids.dtype) == ([97, largest_id], dtype)


def test_without_an_end_of_text_token_the_file_is_one_document(tmp_path: Path) -> None:
    text = f"the\n{END_OF_TEXT}\nend"
    encoded = encode_file(Tokenizer(VOCAB, MERGES), write(tmp_path / "text.txt", text), tmp_path / "ids.npy")
    assert (encoded.documents, encoded.bytes) == (1, len(text))


def test_bad_text_leaves_the_old_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "ids.npy").write_text("old")
    text = tmp_path / "text.txt"
    with pytest.raises(FileNotFoundError, match="there is no file"):
        encode_file(tokenizer, text, tmp_path / "ids.npy")
    text.write_bytes(b"")
    with pytest.raises(ValueError, match="is empty"):
        encode_file(tokenizer, text, tmp_path / "ids.npy")
    text.write_bytes(b"caf\xe9 ")
    with pytest.raises(ValueError, match="not UTF-8: byte 0xe9 at offset 3;"):
        encode_file(tokenizer, text, tmp_path / "ids.npy")
    assert (tmp_path / "ids.npy").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ids.npy", "text.txt"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_leaves_no_file_and_no_process(number: signal.Signals, tmp_path: Path) -> None:
    text = write(tmp_path / "text.txt", f"the café's end, {END_OF_TEXT}" * 8_000_000)
    code = (
        "from lm.data.encode import encode_file\n"
        "from lm.tokenizer import Tokenizer\n"
        f"encode_file(Tokenizer({VOCAB!r}, {MERGES!r}, [{END_OF_TEXT!r}]), {str(text)!r}, 'ids.npy', num_workers=2)\n"
    )
    started = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    wait_until(lambda: any(p.stat().st_size > 1000 for p in tmp_path.glob(".ids.npy.*.tmp")))
    if number == signal.SIGINT:
        os.killpg(started.pid, number)  # as the terminal does
    else:
        started.kill()
    errors = started.communicate(timeout=20)[1]
    assert started.returncode == -number
    assert not (tmp_path / "ids.npy").exists()
    wait_until(lambda: not group_lives(started.pid))
    if number == signal.SIGINT:
        assert errors.strip().splitlines()[-1] == "KeyboardInterrupt"
        assert errors.count("Traceback") == 1
        assert [p.name for p in tmp_path.iterdir()] == ["text.txt"]


def test_terminated_leaves_no_file(tmp_path: Path) -> None:
    text = write(tmp_path / "text.txt", f"the café's end, {END_OF_TEXT}" * 8_000_000)
    Tokenizer(VOCAB, MERGES, [END_OF_TEXT]).save(tmp_path / "tokenizer")
    command = [sys.executable, "-m", "lm", "encode", "tokenizer", str(text), "ids.npy"]
    started = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE)
    wait_until(lambda: any(p.stat().st_size > 1000 for p in tmp_path.glob(".ids.npy.*.tmp")))
    started.terminate()
    errors = started.communicate(timeout=20)[1]
    assert started.returncode == 143
    assert b"Traceback" not in errors
    assert sorted(p.name for p in tmp_path.iterdir()) == ["text.txt", "tokenizer"]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
