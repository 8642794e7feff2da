"""The GPT-2 pattern and special tokens as a compiled scanner over UTF-8 bytes.

It gives what `SpecialTokens.split` and `PRE_TOKEN.findall` give, without Python strings. Buffers come as `data` (bytes)
and `words` (at every byte the 8 bytes from there on as one little-endian number), and can be read PADDING bytes beyond
what is in use. Text is valid UTF-8, which `valid_until` sees to.
"""

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import regex

from lm.tokenizer.compiled import U, jit

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint64]

PADDING = 16
OTHER, LETTER, NUMBER, SPACE = range(4)
KIND = 3  # the bits of a character's kind; its width in bytes stands above them
WIDTH_SHIFT = 2
LOOK_AHEAD = 4  # bytes beyond a pre-token that decide where it ends

# Eight bytes at a time: each constant holds one byte eight times.
ONES = U(0x0101010101010101)
HIGH_BITS = U(0x8080808080808080)
LOW_BITS = U(0x7F7F7F7F7F7F7F7F)
LOWER = U(0x2020202020202020)  # makes ASCII letters small
FROM_A = U(0x1F1F1F1F1F1F1F1F)  # added to a 7-bit value, sets the high bit from "a" on
AFTER_Z = U(0x0505050505050505)  # the same from the character after "z" on
FIRST_BYTE, ZERO, ONE, TOP_BYTE = U(0xFF), U(0), U(1), U(56)
NOT_FIRST = ~FIRST_BYTE
MASKS = np.array([(1 << 8 * size) - 1 for size in range(9)], np.uint64)  # the first `size` bytes of a word

APOSTROPHE, BLANK = ord("'"), ord(" ")
D, E, L, M, R, S, T, V = b"delmrstv"


class Specials(NamedTuple):
    """Special tokens for the scanner, the longest first.

    Attributes:
        firsts: their distinct first bytes, each repeated in all of a word.
        bytes: all of them, one after the other.
        starts: where each begins in `bytes`, and the end of the last.
    """

    firsts: Words
    bytes: Bytes
    starts: npt.NDArray[np.int64]


def special_arrays(tokens: list[str]) -> Specials:
    """The special tokens as arrays, in the order in which they are tried: the longest first."""
    longest_first = sorted((token.encode() for token in tokens), key=len, reverse=True)
    firsts = sorted({token[0] for token in longest_first})
    starts = np.cumsum([0, *map(len, longest_first)], dtype=np.int64)
    repeated = np.array([int(ONES) * first for first in firsts], np.uint64)
    return Specials(repeated, np.frombuffer(b"".join(longest_first) + b"\0", np.uint8), starts)


@cache
def character_kinds() -> Bytes:
    """Kind by code point, of the `regex` package's own categories."""
    kinds = np.full(0x110000, OTHER, np.uint8)
    everything = "".join(map(chr, range(len(kinds))))
    for pattern, kind in ((r"\p{L}+", LETTER), (r"\p{N}+", NUMBER), (r"\s+", SPACE)):
        for match in regex.finditer(pattern, everything):
            kinds[match.start() : match.end()] = kind
    return kinds


def padded(size: int) -> tuple[Bytes, Words]:
    """An empty buffer for `size` bytes, as bytes and as the overlapping words of it."""
    data = np.zeros(size + PADDING, np.uint8)
    return data, np.ndarray((size + PADDING - 7,), np.dtype("<u8"), data, 0, (1,))


@jit
def first_marked(marks: Any) -> Any:
    """Index of the lowest byte whose high bit is set; there is one."""
    return np.int64(((~marks & (marks - ONE) & ONES) * ONES) >> TOP_BYTE) - 1


@jit
def non_letters(word: Any) -> Any:
    """High bits of the bytes that are no ASCII letters."""
    small = (word | LOWER) & LOW_BITS
    return ~((small + FROM_A) & ~(small + AFTER_Z) & ~word) & HIGH_BITS


@jit
def kind_and_width(data: Any, at: Any, kinds: Any) -> Any:
    """Of the character that begins there, as one number."""
    lead = np.int64(data[U(at)])
    if lead < 0x80:
        return np.int64(kinds[U(lead)]) | (1 << WIDTH_SHIFT)
    second = np.int64(data[U(at + 1)]) & 63
    if lead < 0xE0:
        return np.int64(kinds[U((lead & 31) << 6 | second)]) | (2 << WIDTH_SHIFT)
    third = np.int64(data[U(at + 2)]) & 63
    if lead < 0xF0:
        return np.int64(kinds[U((lead & 15) << 12 | second << 6 | third)]) | (3 << WIDTH_SHIFT)
    fourth = np.int64(data[U(at + 3)]) & 63
    return np.int64(kinds[U((lead & 7) << 18 | second << 12 | third << 6 | fourth)]) | (4 << WIDTH_SHIFT)


@jit
def letters_end(data: Any, words: Any, at: Any, end: Any, kinds: Any) -> Any:
    while at < end:
        marks = non_letters(words[U(at)])
        if marks == ZERO:
            at += 8
            continue
        at += first_marked(marks)
        if at >= end or data[U(at)] < 0x80:
            break
        found = kind_and_width(data, at, kinds)
        if found & KIND != LETTER:
            break
        at += found >> WIDTH_SHIFT
    return min(at, end)


@jit
def run_end(data: Any, at: Any, end: Any, kinds: Any, kind: Any) -> Any:
    """Where characters of a kind end."""
    while at < end:
        found = kind_and_width(data, at, kinds)
        if found & KIND != kind:
            break
        at += found >> WIDTH_SHIFT
    return min(at, end)


@jit
def spaces_end(data: Any, at: Any, end: Any, kinds: Any) -> Any:
    """The run of spaces without its last, which goes to what follows, unless nothing follows or it is the only one."""
    begin = last = at
    while at < end:
        found = kind_and_width(data, at, kinds)
        if found & KIND != SPACE:
            return last if last > begin else at
        last = at
        at += found >> WIDTH_SHIFT
    return min(at, end)


@jit
def pre_token_end(data: Any, words: Any, at: Any, end: Any, kinds: Any) -> Any:
    """Where the pre-token that begins at `at` ends, in text that ends at `end`."""
    word = words[U(at)]
    # Most are a blank and a few ASCII letters, with something that is neither within the same eight bytes.
    blank = np.int64(word & FIRST_BYTE == U(BLANK))
    marks = non_letters(word)
    if blank:
        marks &= NOT_FIRST
    if marks != ZERO:
        size = first_marked(marks)
        if size > blank and data[U(at + size)] < 0x80 and at + size <= end:
            return at + size
    if data[U(at)] == APOSTROPHE:
        if at + 2 <= end:
            second = data[U(at + 1)]
            if second in (S, T, D, M):
                return at + 2
            third = data[U(at + 2)]
            if at + 3 <= end and (
                (second == L and third == L) or (second == V and third == E) or (second == R and third == E)
            ):
                return at + 3
        return run_end(data, at, end, kinds, OTHER)
    body = at + blank
    if body >= end:
        return end
    kind = kind_and_width(data, body, kinds) & KIND
    if kind == LETTER:
        return letters_end(data, words, body, end, kinds)
    if kind == SPACE:
        return spaces_end(data, at, end, kinds)
    return run_end(data, body, end, kinds, kind)


@jit
def find_special(data: Any, words: Any, at: Any, limit: Any, filled: Any, specials: Any) -> Any:
    """Begin and size of the first special token that begins before `limit`; else `limit` and 0."""
    firsts, special_bytes, starts = specials
    if firsts.size == 0:
        return limit, 0
    while at < limit:
        word = words[U(at)]
        marks = ZERO
        for repeated in firsts:
            # High bits where bytes are equal; besides, at most, above such a one, which is looked at first.
            differing = word ^ repeated
            marks |= (differing - ONES) & ~differing & HIGH_BITS
        if marks == ZERO:
            at += 8
            continue
        at += first_marked(marks)
        if at >= limit:
            break
        for token in range(starts.size - 1):
            begin, size = starts[token], starts[token + 1] - starts[token]
            same = at + size <= filled
            offset = 0
            while same and offset < size:
                same = data[U(at + offset)] == special_bytes[U(begin + offset)]
                offset += 1
            if same:
                return at, size
        at += 1
    return limit, 0


@jit
def valid_until(data: Any, words: Any, at: Any, filled: Any) -> Any:
    """Where the first character begins that is malformed or not all there; else `filled`. The Unicode Standard, 3.9."""
    while at < filled:
        if words[U(at)] & HIGH_BITS == ZERO:
            at += 8
            continue
        lead = data[U(at)]
        if lead < 0x80:
            at += 1
            continue
        least, most, width = 0x80, 0xBF, 2
        if lead < 0xC2 or lead > 0xF4:
            return at
        if lead >= 0xF0:
            width = 4
            if lead == 0xF0:
                least = 0x90
            elif lead == 0xF4:
                most = 0x8F
        elif lead >= 0xE0:
            width = 3
            if lead == 0xE0:
                least = 0xA0
            elif lead == 0xED:
                most = 0x9F
        if at + width > filled or data[U(at + 1)] < least or data[U(at + 1)] > most:
            return at
        for offset in range(2, width):
            if data[U(at + offset)] & 0xC0 != 0x80:
                return at
        at += width
    return filled
