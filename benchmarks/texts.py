"""Texts of a chosen size for benchmarks: documents of a file, drawn again and again."""

import random
from pathlib import Path

SEPARATOR = b"<|endoftext|>"


def resampled(source: Path, num_bytes: int, folder: Path, seed: int = 0) -> Path:
    """A file of at least `num_bytes` bytes of documents of `source`, drawn with replacement; made once."""
    path = folder / f"{source.stem}-{num_bytes // 1_000_000}MB-{seed}.txt"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    documents = source.read_bytes().split(SEPARATOR)
    rng = random.Random(seed)
    temporary, written = path.with_suffix(".tmp"), 0
    with temporary.open("wb") as file:
        while written < num_bytes:
            written += file.write(rng.choice(documents) + SEPARATOR)
    temporary.rename(path)
    return path
