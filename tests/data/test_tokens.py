"""Token files and their meta.json: what is damaged is named, with the way out."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from lm.data.digests import SAMPLE_BYTES, SAMPLES, file_sha256, sampled_sha256
from lm.data.tokens import SplitMeta, TokenFiles, TokenMeta, largest_id

TRAIN, VALID = np.arange(100, dtype=np.uint16), np.arange(40, dtype=np.uint16)
SPLIT = SplitMeta(
    tokens=100, bytes=400, documents=3, source_sha256="ab", sha256="", sampled_sha256="", largest_id=99, nats=50.0
)
META = TokenMeta("cats", "tokenizers/cats", "cd", 300, SPLIT, replace(SPLIT, tokens=40, largest_id=39, nats=None))


def describe(folder: Path) -> TokenMeta:
    """META with the digests of the files in a folder."""
    parts = {}
    for split in ("train", "valid"):
        path = folder / f"{split}.npy"
        digests = {"sha256": file_sha256(path), "sampled_sha256": sampled_sha256(path)}
        parts[split] = replace(getattr(META, split), largest_id=largest_id(path), **digests)
    return replace(META, **parts)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    np.save(tmp_path / "train.npy", TRAIN)
    np.save(tmp_path / "valid.npy", VALID)
    describe(tmp_path).save(tmp_path)
    return tmp_path


def test_files_open_memory_mapped_as_they_were_saved(folder: Path) -> None:
    files = TokenFiles(folder)
    assert files.meta == describe(folder)
    assert isinstance(files.train, np.memmap)
    np.testing.assert_array_equal(files.train, TRAIN)
    np.testing.assert_array_equal(files.valid, VALID)
    assert not files.train.flags.writeable
    assert {p.name for p in folder.iterdir()} == {"train.npy", "valid.npy", "meta.json"}


@pytest.mark.parametrize("name", ["train.npy", "valid.npy", "meta.json"])
def test_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        TokenFiles(folder)


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        (b"", "damaged"),
        (b"no array", "damaged"),
        ((lambda file: file[:-10]), "damaged"),
        ((lambda file: file[:40]), "damaged"),
        ((lambda file: file.replace(b"}", b"(")), "damaged"),
    ],
    ids=["empty", "noise", "truncated", "truncated header", "header that does not parse"],
)
def test_damaged_array(folder: Path, damaged: object, message: str) -> None:
    path = folder / "train.npy"
    path.write_bytes(damaged(path.read_bytes()) if callable(damaged) else damaged)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=rf"train\.npy.*{message}.*delete .* and run again") as caught:
        TokenFiles(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (TRAIN.astype(np.int64), "int64"),
        (TRAIN.astype(np.float32), "float32"),
        (TRAIN[:99], "99.*100 tokens"),
        (np.arange(101, dtype=np.uint16), "101.*100 tokens"),
        (TRAIN.reshape(10, 10), "10, 10"),
    ],
)
def test_array_that_disagrees_with_meta(folder: Path, array: np.ndarray, message: str) -> None:
    np.save(folder / "train.npy", array)
    with pytest.raises(ValueError, match=rf"train\.npy.*{message}"):
        TokenFiles(folder)


def test_pickled_array_is_never_loaded(folder: Path) -> None:
    np.save(folder / "train.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"train\.npy"):
        TokenFiles(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "format 99, this version reads 2"),
        ({"train": None}, "cannot be read"),
        ({"surplus": 1}, "surplus"),
        ({"valid": asdict(SPLIT) | {"tokens": None}}, "tokens of a text is None; it must be a whole number from 1"),
        ({"valid": asdict(SPLIT) | {"bytes": 0}}, "bytes of a text is 0"),
        ({"valid": asdict(SPLIT) | {"nats": "1"}}, "nats of a text is '1'; it must be a number from 0"),
    ],
)
def test_meta_of_another_kind(folder: Path, change: dict[str, object], message: str) -> None:
    path = folder / "meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"meta\.json.*{message}"):
        TokenFiles(folder)


@pytest.mark.parametrize("text", ["", "{", "[1]", "7"])
def test_meta_that_is_no_record(folder: Path, text: str) -> None:
    (folder / "meta.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"meta\.json cannot be read .*delete the folder"):
        TokenFiles(folder)


def test_ids_beyond_the_vocabulary_are_found_in_either_file(folder: Path) -> None:
    files = TokenFiles(folder)
    files.check_ids(100)
    with pytest.raises(ValueError, match=r"train\.npy holds token id 99, .* ends at 98; .*at least 100"):
        files.check_ids(99)
    np.save(folder / "valid.npy", np.where(VALID == 7, 5000, VALID).astype(np.uint16))
    describe(folder).save(folder)
    with pytest.raises(ValueError, match=r"valid\.npy holds token id 5000"):
        TokenFiles(folder).check_ids(100)


def test_bits_per_byte_by_hand() -> None:
    # 100 tokens for 400 bytes: 2 ln 2 nats a token are 2 bits a token, over 4 bytes.
    assert SPLIT.bytes_per_token == 4
    assert SPLIT.bits_per_byte(2 * math.log(2)) == pytest.approx(0.5)
    assert SPLIT.irreducible == pytest.approx(0.5)
    assert META.valid.irreducible is None


def test_flipped_bit_is_found_before_anything_is_read(folder: Path) -> None:
    TokenFiles(folder).verify()
    changed = TRAIN.copy()
    changed[50] ^= 1
    np.save(folder / "train.npy", changed)
    with pytest.raises(ValueError, match=r"train\.npy changed since it was written.*delete .* and run again"):
        TokenFiles(folder)


def test_swapped_files_of_one_length_are_found(folder: Path) -> None:
    np.save(folder / "valid.npy", TRAIN + 1)
    replace(describe(folder), valid=replace(describe(folder).valid, tokens=100)).save(folder)
    TokenFiles(folder)
    train, valid = folder / "train.npy", folder / "valid.npy"
    train.rename(folder / "other.npy")
    valid.rename(train)
    (folder / "other.npy").rename(valid)
    with pytest.raises(ValueError, match=r"train\.npy changed"):
        TokenFiles(folder)


def test_size_counts_where_samples_are_the_same(tmp_path: Path) -> None:
    digests = set()
    for size in (17 << 20, 18 << 20):
        with (tmp_path / "zeros").open("wb") as file:
            file.truncate(size)
        digests.add(sampled_sha256(tmp_path / "zeros"))
    assert len(digests) == 2


def test_large_files_are_sampled_and_verified_whole_on_request(folder: Path) -> None:
    size = SAMPLES * SAMPLE_BYTES
    np.save(folder / "train.npy", np.zeros(size, np.uint16))  # twice what is read of it
    meta = describe(folder)
    replace(meta, train=replace(meta.train, tokens=size)).save(folder)
    files = TokenFiles(folder)
    files.verify()
    with (folder / "train.npy").open("r+b") as file:
        file.seek(SAMPLE_BYTES + SAMPLE_BYTES // 2)  # between the first two samples
        file.write(b"x")
    with pytest.raises(ValueError, match=r"train\.npy changed"):
        TokenFiles(folder).verify()
    for place in (0, -1):  # the first and the last byte are always sampled
        with (folder / "train.npy").open("r+b") as file:
            file.seek(place, 2 if place else 0)
            before = file.read(1)
            file.seek(place, 2 if place else 0)
            file.write(b"y")
        with pytest.raises(ValueError, match=r"train\.npy (changed|is damaged)"):
            TokenFiles(folder)
        with (folder / "train.npy").open("r+b") as file:
            file.seek(place, 2 if place else 0)
            file.write(before)
