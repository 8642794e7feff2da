"""Digests of files, whole or of samples."""

import hashlib
import os
from pathlib import Path

import numpy as np

SAMPLES = 64
SAMPLE_BYTES = 1 << 18


def file_sha256(path: Path) -> str:
    """sha256 of a whole file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sampled_sha256(path: Path) -> str:
    """sha256 of a file's size and of 64 blocks of 256 KiB, evenly spread from its first byte to its last.

    A file of up to 16 MiB is read whole; of a larger one, changes between the blocks go unnoticed.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        digest.update(f"{size} ".encode())
        whole = size <= SAMPLES * SAMPLE_BYTES
        starts = [0] if whole else np.linspace(0, size - SAMPLE_BYTES, SAMPLES).astype(np.int64).tolist()
        for start in starts:
            file.seek(start)
            digest.update(file.read(size if whole else SAMPLE_BYTES))
    return digest.hexdigest()
