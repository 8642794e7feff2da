"""Checkpoint files: every changed byte is found, and a save that fails changes nothing."""

import errno
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from lm.training.files import SaveError, check_digest, write_checkpoint

CHECKPOINT = {"state_dict": {"weight": torch.arange(3000.0)}, "step": 3}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoints" / "last.ckpt"
    write_checkpoint(CHECKPOINT, path)
    return path


def test_torch_and_zip_read_it(path: Path) -> None:
    for mmap in (False, True):
        loaded = torch.load(path, weights_only=True, mmap=mmap)
        assert torch.equal(loaded["state_dict"]["weight"], torch.arange(3000.0))
    assert zipfile.ZipFile(path).comment.startswith(b"sha256:")
    check_digest(path)


def test_any_flipped_byte_is_found(path: Path) -> None:
    whole = path.read_bytes()
    for at in [*range(0, len(whole) - 71, 997), len(whole) - 72, len(whole) - 1]:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(ValueError, match="sha256 differs"):
            check_digest(path)


def test_files_of_plain_torch_have_no_digest_to_check(tmp_path: Path) -> None:
    torch.save(CHECKPOINT, tmp_path / "plain.ckpt")
    check_digest(tmp_path / "plain.ckpt")


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_failing_save_leaves_the_file_before_it(path: Path, failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = path.read_bytes()
    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(
        SaveError, match=r"last\.ckpt \(No space left on device\); the one before it is whole.*--resume"
    ):
        write_checkpoint({**CHECKPOINT, "step": 4}, path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"]
    with pytest.raises(SaveError, match=r"best\.ckpt .*there is none before it.* then go on with --resume"):
        write_checkpoint(CHECKPOINT, path.with_name("best.ckpt"))
    path.unlink()
    with pytest.raises(SaveError, match=r"last\.ckpt .*there is none before it.* then start again"):
        write_checkpoint(CHECKPOINT, path)
