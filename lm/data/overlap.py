"""Documents of the validation text that the training text holds too."""

import hashlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lm.tokenizer import END_OF_TEXT

BLOCK = 1 << 20
BATCH = 1 << 16  # documents looked up at once


def shared_documents(train: Path, valid: Path) -> int:
    """How many documents of `valid` are also in `train`, byte for byte but for whitespace around them.

    Memory: 8 bytes a document of `valid`, whatever the sizes of documents and files.
    """
    wanted, counts = np.unique(np.fromiter(document_digests(valid), np.uint64), return_counts=True)
    if not len(wanted):
        return 0
    found = np.zeros(len(wanted), dtype=bool)
    for digests in _batches(document_digests(train)):
        places = np.searchsorted(wanted, digests).clip(max=len(wanted) - 1)
        found[places[wanted[places] == digests]] = True
    return int(counts[found].sum())


def document_digests(path: Path) -> Iterator[int]:
    """A 64-bit digest of each document that holds more than whitespace; end-of-text tokens stand between them."""
    separator = END_OF_TEXT.encode()
    with path.open("rb") as file:
        document, rest = _Document(), b""
        while block := file.read(BLOCK):
            *ended, rest = (rest + block).split(separator)
            for piece in ended:
                document.add(piece)
                if document.filled:
                    yield document.digest()
                document = _Document()
            certain = max(0, len(rest) - len(separator) + 1)  # what follows may be part of a separator
            document.add(rest[:certain])
            rest = rest[certain:]
        document.add(rest)
        if document.filled:
            yield document.digest()


class _Document:
    """Hashes a document as its pieces come in, without the whitespace around it."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=8)
        self._whitespace = b""
        self.filled = False

    def add(self, piece: bytes) -> None:
        piece = self._whitespace + piece if self.filled else piece.lstrip()
        text = piece.rstrip()
        self._hash.update(text)
        self._whitespace = piece[len(text) :]
        self.filled = self.filled or bool(text)

    def digest(self) -> int:
        return int.from_bytes(self._hash.digest(), "little")


def _batches(digests: Iterator[int]) -> Iterator[npt.NDArray[np.uint64]]:
    while len(batch := np.fromiter(islice(digests, BATCH), np.uint64)):
        yield batch
