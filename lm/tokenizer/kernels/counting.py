"""Counts of pre-tokens."""

from typing import Any

import numpy as np

from lm.tokenizer.kernels.bits import ONE, ZERO, U, inline, kernel
from lm.tokenizer.kernels.scanner import find_special, scan
from lm.tokenizer.kernels.tables import (
    enter_long,
    enter_short,
    find_long,
    find_or_enter,
    find_short,
    is_full,
    is_short,
    look_up_batch,
)
from lm.tokenizer.layout import (
    ARENA_USED,
    ENTRY,
    LONG_USED,
    LOOK_AHEAD,
    MORE_ROOM,
    MORE_TEXT,
    SHORT_USED,
    STATUS,
)


@kernel(
    "int64(uint8[::1], int64, int64, int64, int64, uint8[::1], uint8[::1], uint8[::1], int64[::1], int64[::1], "
    "uint64[::1], int64[::1], uint64[::1], uint64[::1], uint8[::1], int64[::1])"
)
def count_block(
    data: Any, at: Any, filled: Any, is_final: Any, longest: Any, kinds: Any, special_firsts: Any, special_bytes: Any,
    special_starts: Any, starts: Any, keys: Any, slots: Any, short: Any, long: Any, arena: Any, used: Any,
) -> Any:  # fmt: skip
    """Count pre-tokens from `at` on; returns where it stopped, and says in `used` for want of what."""
    # A special token that begins before the limit is seen whole, and so is a character.
    limit = filled if is_final else max(at, filled - longest - LOOK_AHEAD)
    while at < limit:
        end, special = find_special(data, at, limit, filled, special_firsts, special_bytes, special_starts)
        is_open = special < 0 and not is_final
        while at < end:
            number = scan(data, at, end, is_open, kinds, starts)
            if number == 0:
                used[STATUS] = MORE_TEXT
                return at
            after = starts[U(number)]
            if (
                is_full(short, used[SHORT_USED])
                or is_full(long, used[LONG_USED])
                or used[ARENA_USED] + after - at > arena.size
            ):
                used[STATUS] = MORE_ROOM
                return at
            look_up_batch(data, starts, number, short, long, keys, slots)
            for i in range(number):
                slot, key = slots[U(i)], keys[U(2 * i)]
                if slot >= 0:
                    key_2 = keys[U(2 * i + 1)]
                    entry = find_short(short, slot, key, key_2)
                    if short[U(entry)] == ZERO:
                        enter_short(short, used, entry, key, key_2)
                    short[U(entry + 2)] += ONE
                else:
                    begin = starts[U(i)]
                    size = starts[U(i + 1)] - begin
                    entry = find_long(long, -1 - slot, key, data, begin, size, arena)
                    if long[U(entry + 3)] == ZERO:
                        enter_long(long, used, entry, key, data, begin, size, arena)
                    long[U(entry + 2)] += ONE
            at = after
        if special >= 0:
            at += special_starts[special + 1] - special_starts[special]
    used[STATUS] = MORE_TEXT
    return at


@kernel("int64(uint8[::1], int64[::1], uint64[::1], uint64[::1], uint64[::1], uint8[::1], int64[::1])")
def add_words(flat: Any, starts: Any, counts: Any, short: Any, long: Any, arena: Any, used: Any) -> Any:
    """Add pre-tokens, one after the other in `flat`, to tables that have room for them."""
    for word in range(counts.size):
        at = starts[U(word)]
        size = starts[U(word + 1)] - at
        short_one = is_short(flat, at, size)
        entry = find_or_enter(flat, at, size, short, long, arena, used, short_one)
        if short_one:
            short[U(entry + 2)] += counts[U(word)]
        else:
            long[U(entry + 2)] += counts[U(word)]
    return counts.size


@inline
def write_bytes(key: Any, flat: Any, at: Any) -> Any:
    """Write a number's bytes up to the last that is not zero; returns how many."""
    size = np.int64(0)
    while key != ZERO:
        flat[U(at + size)] = np.uint8(key & U(0xFF))
        key >>= U(8)
        size += 1
    return size


@kernel("int64(uint64[::1], uint64[::1], uint8[::1], uint8[::1], int64[::1], uint64[::1])")
def list_words(short: Any, long: Any, arena: Any, flat: Any, starts: Any, counts: Any) -> Any:
    """Write all pre-tokens one after the other, where each begins, and their counts; returns their bytes."""
    word, at = np.int64(0), np.int64(0)
    starts[0] = 0
    for entry in range(0, short.size, ENTRY):
        key, key_2 = short[U(entry)], short[U(entry + 1)]
        if key == ZERO:
            continue
        size = write_bytes(key, flat, at)
        if key_2 != ZERO:
            while size < 8:  # the first 8 bytes end with zeros
                flat[U(at + size)] = 0
                size += 1
            size += write_bytes(key_2, flat, at + 8)
        at += size
        counts[U(word)] = short[U(entry + 2)]
        word += 1
        starts[U(word)] = at
    for entry in range(0, long.size, ENTRY):
        begin, size = np.int64(long[U(entry + 1)]), np.int64(long[U(entry + 3)])
        if size == 0:
            continue
        for offset in range(size):
            flat[U(at + offset)] = arena[U(begin + offset)]
        at += size
        counts[U(word)] = long[U(entry + 2)]
        word += 1
        starts[U(word)] = at
    return at
