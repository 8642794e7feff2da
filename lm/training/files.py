"""Checkpoint files: whole or not there, with a digest of their own."""

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import torch

_MARK = b"sha256:"
_COMMENT = len(_MARK) + 2 * hashlib.sha256().digest_size


class SaveError(OSError):
    """A checkpoint could not be written."""


def write_checkpoint(checkpoint: dict[str, Any], path: Path, part_of: Path | None = None) -> None:
    """Write tensors and primitives in torch's zip format; the zip's comment is the sha256 of all bytes before it.

    The bytes gather under a temporary name, reach the disk, and only then take the name: whatever was there before
    stays whole until the new file is.

    Args:
        checkpoint: what to write.
        path: the file.
        part_of: the checkpoint that the file is a part of, if it is not one itself.

    Raises:
        SaveError: the disk is full, the folder cannot be written, and the like.
    """
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    content = buffer.getbuffer()
    content[-2:] = _COMMENT.to_bytes(2, "little")  # a zip without a comment ends with its length, 0
    comment = _MARK + hashlib.sha256(content).hexdigest().encode()
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.write(comment)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        _remove(temporary)
        saved = part_of or path
        kept = "the one before it is whole" if saved.exists() else "there is none before it"
        then = "go on with --resume" if any(saved.parent.glob("*.ckpt")) else "start again"
        raise SaveError(
            f"cannot save the checkpoint {saved} ({error.strerror or error}); {kept}; make room for "
            f"{len(content) / 1e6:,.1f} MB in a folder that can be written, then {then}"
        ) from None


def check_digest(path: Path) -> None:
    """Raises ValueError where a checkpoint's bytes are not those that were written. Files without digest pass."""
    with path.open("rb") as file:
        left = max(0, path.stat().st_size - _COMMENT)
        digest = hashlib.sha256()
        while left and (block := file.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
        comment = file.read()
    if comment.startswith(_MARK) and comment != _MARK + digest.hexdigest().encode():
        raise ValueError("its bytes changed since it was written, the sha256 differs")


def _remove(temporary: Path) -> None:
    try:
        temporary.unlink(missing_ok=True)
    except OSError:
        return
