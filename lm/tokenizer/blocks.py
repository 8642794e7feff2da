"""Spans of files as bytes in a buffer that slides along, checked to be UTF-8."""

import mmap
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import numpy.typing as npt

from lm.tokenizer.layout import ENTRY, LOOK_AHEAD, PADDING
from lm.tokenizer.native import kernels
from lm.tokenizer.pretokenize import Errors, Span, read_text

Bytes = npt.NDArray[np.uint8]
LARGE_PAGE = 2 << 20  # bytes
BLOCK = 1 << 20  # bytes of text in a buffer: they stay in the processor's cache while they are worked on


def new_table(num_entries: int) -> npt.NDArray[np.uint64]:
    """An empty table, in large pages where the system has them: tables are read all over."""
    size = 8 * ENTRY * num_entries
    if size < LARGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return np.zeros(ENTRY * num_entries, np.uint64)
    memory = mmap.mmap(-1, size + LARGE_PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    table = np.frombuffer(memory, np.uint64)
    start = -table.ctypes.data % LARGE_PAGE // 8
    return table[start : start + ENTRY * num_entries]


class SpecialArrays:
    """Special tokens for the scanner, the longest first.

    Attributes:
        tokens: the tokens in this order.
        firsts: their distinct first bytes.
        bytes: all of them, one after the other.
        starts: where each begins in `bytes`, and the end of the last.
        longest: bytes of the longest.
    """

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = sorted(tokens, key=lambda token: len(token.encode()), reverse=True)
        encoded = [token.encode() for token in self.tokens]
        self.firsts = np.array(sorted({token[0] for token in encoded}), np.uint8)
        self.bytes = np.frombuffer(b"".join(encoded) + b"\0", np.uint8)
        self.starts = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        self.longest = max(map(len, encoded), default=0)


class BlockReader:
    """A span of a file, a block at a time.

    Attributes:
        data: the buffer; PADDING bytes can be read beyond what is filled.
        filled: bytes of text in it.
        is_final: whether they are the span's last.
    """

    def __init__(self, span: Span, errors: Errors = "strict") -> None:
        self._span = span
        self._blocks = None if errors == "strict" else (t.encode() for t in read_text(span, errors) if t)
        self._file = None if self._blocks else span.path.open("rb", buffering=0)
        if self._file:
            self._file.seek(span.start)
        self._position = span.start
        self._checked = 0
        self.data = np.zeros(min(BLOCK, span.size) + PADDING, np.uint8)
        self.filled = 0
        self.is_final = False

    def __enter__(self) -> "BlockReader":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file:
            self._file.close()

    def read(self, done: int) -> int:
        """Drop the first `done` bytes and fill up; returns how many bytes of the file were read.

        Raises:
            ValueError: the bytes are not UTF-8; names the file and the offset.
        """
        left = self.filled - done
        if done:
            self.data[:left] = self.data[done : self.filled].copy()
        elif left > (len(self.data) - PADDING) // 2:
            self._grow(2 * len(self.data))  # a pre-token as long as the buffer
        self.filled, self._checked = left, max(self._checked - done, 0)
        if self._blocks:
            return self._read_replaced(self._blocks)
        assert self._file is not None
        room = min(len(self.data) - PADDING - left, self._span.end - self._position)
        got = self._file.readinto(memoryview(self.data.data)[left : left + room]) or 0
        self._position += got
        self.filled += got
        self.is_final = self._position >= self._span.end or not got
        self._checked = kernels().valid_until(self.data, self._checked, self.filled)
        if self._checked < self.filled and (self.is_final or self.filled - self._checked >= LOOK_AHEAD):
            for _ in read_text(self._span):
                pass
            raise AssertionError("the scanner and Python differ on UTF-8")
        return got

    def _read_replaced(self, blocks: Iterator[bytes]) -> int:
        text = next(blocks, b"")
        if self.filled + len(text) + PADDING > len(self.data):
            self._grow(self.filled + len(text) + PADDING)
        self.data[self.filled : self.filled + len(text)] = np.frombuffer(text, np.uint8)
        self.filled += len(text)
        self.is_final = not text
        return len(text)

    def _grow(self, size: int) -> None:
        longer = np.zeros(size, np.uint8)
        longer[: self.filled] = self.data[: self.filled]
        self.data = longer
