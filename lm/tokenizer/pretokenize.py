"""From text to pre-tokens: special tokens, the GPT-2 pattern, and cuts of long texts and files that change neither.

Merges never cross a pre-token, so everything else (counting, encoding, several processes) works on the pieces made
here. All of it is defined by two functions on a whole text: `SpecialTokens.split`, then `PRE_TOKEN.findall` on what
lies between the special tokens. The cuts below only choose places where both sides, taken alone, give the same.
"""

import codecs
import os
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import regex

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

END_OF_TEXT = "<|endoftext|>"

# GPT-2's pattern ("Language Models are Unsupervised Multitask Learners", section 2.2).
PRE_TOKEN = regex.compile(r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")

BLANK = regex.compile(r"\s*")  # its whitespace, which is not quite that of str.isspace

# Two characters between which a pre-token always ends, whatever stands around them: no alternative of PRE_TOKEN holds
# both, and the lookahead is not involved, as the first is no whitespace. The apostrophe may begin a contraction.
# Searched from the end: `(?r)`.
BOUNDARY = regex.compile(r"(?r)\p{L}\P{L}|\p{N}\P{N}|[^\s\p{L}\p{N}'][\s\p{L}\p{N}]")

WORD_END = rb"(?<=[A-Za-z0-9])[ \n]"  # a place where files are cut: the same for bytes, and the commonest

WINDOW = 8192  # characters a stream holds while pre-tokens are short: small, so that memory stays well below 1 MB
BLOCK = 1 << 18  # bytes read from a file at a time
Errors = Literal["strict", "replace"]
COUNTS = ".counts"  # ending of files of counted pre-tokens
SPAN = 2 << 20  # bytes of a file that one thread takes at a time


class Span(NamedTuple):
    """Bytes `start` to `end` of a file."""

    path: Path
    start: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.start


class EncodedChunk(NamedTuple):
    """A part of an encoded text.

    Attributes:
        ids: uint16 up to 65,536 ids, else uint32.
        num_bytes: bytes of text read for it.
        text_bytes: UTF-8 bytes of the text without its special tokens.
        documents: documents that begin in it.
    """

    ids: "npt.NDArray[np.unsignedinteger]"
    num_bytes: int
    text_bytes: int
    documents: int


class SpecialTokens:
    """Finds special tokens in text: from left to right, the longest where several begin at one place.

    Args:
        tokens: the special tokens, in any order.

    Raises:
        ValueError: a token is empty, or given twice.
    """

    def __init__(self, tokens: Iterable[str]) -> None:
        self.tokens = list(tokens)
        if "" in self.tokens:
            raise ValueError("a special token is empty; leave it out")
        for first, second in pairwise(sorted(self.tokens)):
            if first == second:
                raise ValueError(f"special token {first!r} is given twice; leave one out")
        # An alternation takes the first that fits, hence the longest first.
        longest_first = sorted(self.tokens, key=len, reverse=True)
        self._longest = len(longest_first[0]) if longest_first else 0
        alternatives = "|".join(map(regex.escape, longest_first))
        self._pattern = regex.compile(f"({alternatives})") if longest_first else None

    def split(self, text: str) -> list[str]:
        """Text before, between and after the special tokens (even indices), and these themselves (odd indices)."""
        return self._pattern.split(text) if self._pattern else [text]

    def stream(self, chunks: Iterable[str]) -> Iterator[str]:
        """Cut a text that comes in chunks into pieces that can be pre-tokenized each by itself.

        The chunks may end anywhere, inside a pre-token or a special token too. Holds a few thousand characters, or
        twice the longest pre-token.
        """
        parts: list[str] = []
        held, wanted = 0, WINDOW
        for chunk in chunks:
            for start in range(0, len(chunk), WINDOW):
                parts.append(chunk[start : start + WINDOW])
                held += len(parts[-1])
                if held < wanted:
                    continue
                text = "".join(parts)
                cut = self._safe_cut(text)
                if cut:
                    yield text[:cut]
                parts = [text[cut:]]
                held = len(parts[0])
                # What could not be cut is looked at again when it has doubled, so the work stays linear.
                wanted = max(WINDOW, 2 * held)
        if held:
            yield "".join(parts)

    def _safe_cut(self, text: str) -> int:
        """The last place where the beginning of a longer text can be cut; 0 if there is none."""
        # A special token that begins before `limit` is seen whole, so it is known to be none longer.
        limit = len(text) - max(self._longest - 1, 0)
        after_special = 0
        if self._pattern:
            for match in self._pattern.finditer(text):
                if match.start() >= limit:
                    break
                after_special = match.end()
        boundary = BOUNDARY.search(text, after_special, limit + 1) if after_special < limit else None
        return boundary.start() + 1 if boundary else after_special

    def spans(self, whole: Span, size: int = SPAN) -> Iterator[Span]:
        """Cut a span of a UTF-8 file into spans of at least `size` bytes that can be pre-tokenized each by itself."""
        start = whole.start
        while start < whole.end:
            end = self._next_cut(whole.path, start + size, whole.end)
            yield Span(whole.path, start, end)
            start = end

    def shard(self, path: Path, index: int = 0, number: int = 1) -> Span:
        """The span that is one of `number` shards of a file, of about equal size; the whole file as one.

        Raises:
            ValueError: index is not one of 0 to number - 1.
        """
        if not 0 <= index < number:
            raise ValueError(f"shard {index} of {number} does not exist; shards are 0 to {number - 1}")
        total = path.stat().st_size
        start, end = (self._next_cut(path, total * i // number, total) if i else 0 for i in (index, index + 1))
        return Span(path, start, end)

    def _next_cut(self, path: Path, at: int, end: int) -> int:
        """The first byte from `at` on before which a pre-token ends for certain, and outside special tokens."""
        tokens = sorted((token.encode() for token in self.tokens), key=len, reverse=True)
        special = b"|".join(map(regex.escape, tokens))
        special_pattern = regex.compile(special) if tokens else None
        place_pattern = regex.compile(WORD_END + (b"|" + special if tokens else b""))
        overlap = max(map(len, tokens), default=1)
        with path.open("rb") as file:
            while at < end:
                # `overlap` bytes on either side show every token that may reach into, or out of, the block.
                first = max(at - overlap, 0)
                file.seek(first)
                block = file.read(at - first + BLOCK + overlap)
                for match in place_pattern.finditer(block, at - first, overlapped=True):
                    place = match.start()
                    if first + place >= at + BLOCK:
                        break
                    begin = max(place - overlap, 0)
                    around = block[begin : place + overlap]
                    specials = special_pattern.finditer(around, overlapped=True) if special_pattern else ()
                    if not any(found.start() < place - begin < found.end() for found in specials):
                        return first + place
                at += BLOCK
        return end


def read_text(span: Span, errors: Errors = "strict") -> Iterator[str]:
    """The text of a span of a UTF-8 file, in blocks; newlines stay as they are.

    Args:
        errors: replace puts U+FFFD where the bytes are not UTF-8.

    Raises:
        ValueError: the bytes are not UTF-8; names the file and the offset.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors)
    position = span.start
    with span.path.open("rb") as file:
        file.seek(position)
        while block := file.read(min(BLOCK, span.end - position)):
            position += len(block)
            try:
                yield decoder.decode(block, final=position == span.end)
            except UnicodeDecodeError as error:
                # `error.object` also holds the bytes of a character begun in the block before.
                offset = position - len(error.object) + error.start
                raise ValueError(
                    f"{span.path} is not UTF-8: byte 0x{error.object[error.start]:02x} at offset {offset}; "
                    "convert the file to UTF-8, for example with iconv (with --errors replace, train-tokenizer, count "
                    "and encode put U+FFFD there)"
                ) from None


def checked_workers(num_workers: int | None) -> int:
    """The number of threads asked for, by default one a core. Raises ValueError if it is below 1."""
    if num_workers is None:
        num_workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if num_workers < 1:
        raise ValueError(f"{num_workers} workers are too few; give at least 1")
    return num_workers


def text_file(path: str | Path) -> Path:
    """The path, checked. Raises FileNotFoundError if it is no file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; check the path")
    return path
