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


class Packed:
    """A checkpoint as the bytes of its file: torch's zip format, whose comment is the sha256 of all bytes before it.

    The memory that it takes up is used again by the next `pack`.
    """

    def __init__(self) -> None:
        self._bytes = io.BytesIO()
        self._comment: bytes | None = None

    def pack(self, checkpoint: dict[str, Any]) -> None:
        """Take the place of what was packed before."""
        self._comment = None
        self._bytes.seek(0)
        torch.save(checkpoint, self._bytes)
        self._bytes.truncate()
        self._bytes.seek(-2, io.SEEK_END)
        self._bytes.write(_COMMENT.to_bytes(2, "little"))  # a zip without a comment ends with its length, 0

    def write(self, path: Path, part_of: Path | None = None) -> None:
        """Write the file; arguments and errors as in `write_checkpoint`."""
        content = self._bytes.getbuffer()
        self._comment = self._comment or _MARK + hashlib.sha256(content).hexdigest().encode()
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(content)
                file.write(self._comment)
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
        finally:
            content.release()


def write_checkpoint(checkpoint: dict[str, Any], path: Path, part_of: Path | None = None) -> None:
    """Write tensors and primitives as `Packed` does.

    The bytes gather under a temporary name, reach the disk, and only then take the name: whatever was there before
    stays whole until the new file is.

    Args:
        checkpoint: what to write.
        path: the file.
        part_of: the checkpoint that the file is a part of, if it is not one itself.

    Raises:
        SaveError: the disk is full, the folder cannot be written, and the like.
    """
    packed = Packed()
    packed.pack(checkpoint)
    packed.write(path, part_of)


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
