"""The GPT-2 pattern and special tokens over UTF-8 bytes.

It gives what `SpecialTokens.split` and `PRE_TOKEN.findall` give, without Python strings. ASCII text is cut 64 bytes at
a time, by masks that hold a bit for every byte; the rest, character by character.
"""

from typing import Any

import numpy as np

from lm.tokenizer.kernels.bits import (
    ALL,
    ONE,
    WINDOW,
    ZERO,
    U,
    apostrophes,
    ascii_controls,
    ascii_digits,
    ascii_letters,
    beyond_ascii,
    blanks,
    equal_bytes,
    inline,
    kernel,
    trailing_zeros,
)
from lm.tokenizer.layout import LETTER, LOOK_AHEAD, OTHER, SPACE

KIND = 3  # the bits of a character's kind; its width in bytes stands above them
WIDTH_SHIFT = 2
APOSTROPHE, BLANK = ord("'"), ord(" ")
D, E, L, M, R, S, T, V = b"delmrstv"


@inline
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


@inline
def letters_end(data: Any, at: Any, end: Any, kinds: Any) -> Any:
    while at < end:
        size = trailing_zeros(~ascii_letters(data, at))
        at += size
        if size == WINDOW:
            continue
        if at >= end or data[U(at)] < 0x80:
            break
        found = kind_and_width(data, at, kinds)
        if found & KIND != LETTER:
            break
        at += found >> WIDTH_SHIFT
    return min(at, end)


@inline
def run_end(data: Any, at: Any, end: Any, kinds: Any, kind: Any) -> Any:
    """Where characters of a kind end."""
    while at < end:
        found = kind_and_width(data, at, kinds)
        if found & KIND != kind:
            break
        at += found >> WIDTH_SHIFT
    return min(at, end)


@inline
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


@inline
def contraction_size(data: Any, at: Any, end: Any) -> Any:
    """Bytes of 's, 't, 'd, 'm, 'll, 've or 're at an apostrophe; 0 if none of them is there before `end`."""
    second = data[U(at + 1)]
    if at + 2 <= end and second in (S, T, D, M):
        return 2
    third = data[U(at + 2)]
    if at + 3 <= end and ((second == L and third == L) or (third == E and second in (V, R))):
        return 3
    return 0


@inline
def pre_token_end(data: Any, at: Any, end: Any, kinds: Any) -> Any:
    """Where the pre-token that begins at `at` ends, in text that ends at `end`."""
    if data[U(at)] == APOSTROPHE:
        size = contraction_size(data, at, end)
        return at + size if size else run_end(data, at, end, kinds, OTHER)
    body = at + np.int64(data[U(at)] == BLANK)
    if body >= end:
        return end
    kind = kind_and_width(data, body, kinds) & KIND
    if kind == LETTER:
        return letters_end(data, body, end, kinds)
    if kind == SPACE:
        return spaces_end(data, at, end, kinds)
    return run_end(data, body, end, kinds, kind)


@inline
def window_starts(data: Any, at: Any) -> Any:
    """Where pre-tokens begin in a window of ASCII text that begins with one; the last bit, and contractions, apart."""
    letters, digits, blank = ascii_letters(data, at), ascii_digits(data, at), blanks(data, at)
    spaces = blank | ascii_controls(data, at)
    others = ~(letters | digits | spaces)
    # A run begins where its kind does, unless a blank before it joins it.
    runs = (letters & ~(letters << ONE) | digits & ~(digits << ONE) | others & ~(others << ONE)) & ~(blank << ONE)
    # Of a run of spaces, the first and the last begin pre-tokens.
    return runs | spaces & ~((spaces << ONE) & (spaces >> ONE))


@inline
def with_contractions(data: Any, at: Any, size: Any, starts: Any) -> Any:
    """The starts of a window of so many bytes, with contractions as pre-tokens; ends before one that may reach out."""
    left = starts & apostrophes(data, at)
    while left != ZERO:
        place = trailing_zeros(left)
        left &= left - ONE
        if place + 5 > size:
            return starts & (ALL >> U(63 - place))
        contraction = contraction_size(data, at + place, at + size)
        if contraction:
            starts = starts & ~(ONE << U(place + 1)) | (ONE << U(place + contraction))
    return starts


@inline
def scan(data: Any, at: Any, end: Any, is_open: Any, kinds: Any, starts: Any) -> Any:
    """Cut text into pre-tokens.

    Args:
        at, end: the bytes of the text; a pre-token begins at `at`.
        is_open: whether the text goes on beyond `end`; pre-tokens that depend on it are left.
        starts: (N,) becomes the places where pre-tokens begin, and where the last ends.

    Returns:
        How many pre-tokens: all, or as many as `starts` has room for.
    """
    number = np.int64(0)
    starts[U(0)] = at
    most = starts.size - WINDOW
    while at < end and number < most:
        size = min(end - at, WINDOW, trailing_zeros(beyond_ascii(data, at)))
        found = ZERO
        if size > 2:
            # The window's last character may belong to what follows.
            found = with_contractions(data, at, size, window_starts(data, at) & (ALL >> U(WINDOW + 1 - size)))
            found &= ~ONE
        if found == ZERO:
            after = pre_token_end(data, at, end, kinds)
            if is_open and after + LOOK_AHEAD > end:
                break
            number += 1
            at = after
            starts[U(number)] = at
            continue
        while found != ZERO:
            number += 1
            starts[U(number)] = at + trailing_zeros(found)
            found &= found - ONE
        at = starts[U(number)]
    return number


@inline
def find_special(
    data: Any, at: Any, limit: Any, filled: Any, special_firsts: Any, special_bytes: Any, special_starts: Any
) -> Any:
    """Begin and number of the first special token that begins before `limit`; else `limit` and -1."""
    if special_firsts.size == 0:
        return limit, -1
    while at < limit:
        marks = ZERO
        for first in special_firsts:
            marks |= equal_bytes(data, at, first)
        if marks == ZERO:
            at += WINDOW
            continue
        at += trailing_zeros(marks)
        if at >= limit:
            break
        for token in range(special_starts.size - 1):
            begin, size = special_starts[token], special_starts[token + 1] - special_starts[token]
            same = at + size <= filled
            offset = 0
            while same and offset < size:
                same = data[U(at + offset)] == special_bytes[U(begin + offset)]
                offset += 1
            if same:
                return at, token
        at += 1
    return limit, -1


@kernel("int64(uint8[::1], int64, int64)")
def valid_until(data: Any, at: Any, filled: Any) -> Any:
    """Where the first character begins that is malformed or not all there; else `filled`. The Unicode Standard, 3.9."""
    while at < filled:
        ascii_size = trailing_zeros(beyond_ascii(data, at))
        at += ascii_size
        if ascii_size == WINDOW or at >= filled:
            continue
        lead = data[U(at)]
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
