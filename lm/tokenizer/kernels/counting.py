"""Counts of pre-tokens."""

from typing import Any

import numpy as np

from lm.tokenizer.kernels.bits import ONE, ZERO, U, inline, kernel
from lm.tokenizer.kernels.scanner import find_special, scan
from lm.tokenizer.kernels.tables import (
    find_bytes,
    find_long,
    find_short,
    hash_bytes,
    long_hash,
    look_up_batch,
    shift_for,
    short_hash,
)
from lm.tokenizer.layout import (
    ARENA_USED,
    KEY_BYTES,
    LONG,
    LONG_USED,
    LOOK_AHEAD,
    MORE_ROOM,
    MORE_TEXT,
    SHORT,
    SHORT_USED,
    STARTS,
    STATUS,
)


@inline
def add_short(short: Any, used: Any, slot: Any, key: Any, count: Any) -> None:
    entry = find_short(short, slot, key)
    if short[U(entry)] == ZERO:
        short[U(entry)] = key
        used[SHORT_USED] += 1
    short[U(entry + 1)] += count


@inline
def add_long(
    long: Any, arena: Any, used: Any, slot: Any, key: Any, key_2: Any, data: Any, at: Any, size: Any, count: Any
) -> None:
    if size <= KEY_BYTES:
        entry = find_long(long, slot, key, key_2, size)
    else:
        entry = find_bytes(long, slot, key, data, at, size, arena)
    if long[U(entry + 3)] == ZERO:
        if size > KEY_BYTES:
            begin = used[ARENA_USED]
            for offset in range(size):
                arena[U(begin + offset)] = data[U(at + offset)]
            used[ARENA_USED] += size
            key_2 = U(begin)
        long[U(entry)], long[U(entry + 1)], long[U(entry + 3)] = key, key_2, U(size)
        used[LONG_USED] += 1
    long[U(entry + 2)] += count


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
                SHORT * 2 * (used[SHORT_USED] + STARTS) > short.size
                or LONG * 2 * (used[LONG_USED] + STARTS) > long.size
                or used[ARENA_USED] + after - at > arena.size
            ):
                used[STATUS] = MORE_ROOM
                return at
            look_up_batch(data, starts, number, short, long, keys, slots)
            for i in range(number):
                slot = slots[U(i)]
                if slot >= 0:
                    add_short(short, used, slot, keys[U(2 * i)], ONE)
                else:
                    begin = starts[U(i)]
                    size = starts[U(i + 1)] - begin
                    add_long(long, arena, used, -1 - slot, keys[U(2 * i)], keys[U(2 * i + 1)], data, begin, size, ONE)
            at = after
        if special >= 0:
            at += special_starts[special + 1] - special_starts[special]
    used[STATUS] = MORE_TEXT
    return at


@kernel("int64(uint64[::1], uint64[::1], uint8[::1], uint64[::1], uint64[::1], uint8[::1], int64[::1])")
def add_counts(from_short: Any, from_long: Any, from_arena: Any, short: Any, long: Any, arena: Any, used: Any) -> Any:
    """Add the counts of tables to others that have room for them."""
    short_shift, long_shift = shift_for(short, SHORT), shift_for(long, LONG)
    for entry in range(0, from_short.size, SHORT):
        key = from_short[U(entry)]
        if key != ZERO:
            slot = np.int64(short_hash(key) >> short_shift)
            add_short(short, used, slot, key, from_short[U(entry + 1)])
    for entry in range(0, from_long.size, LONG):
        size = np.int64(from_long[U(entry + 3)])
        if size:
            key, key_2, begin = from_long[U(entry)], from_long[U(entry + 1)], np.int64(0)
            if size > KEY_BYTES:
                key_2, begin = ZERO, np.int64(key_2)
            slot = np.int64(long_hash(key, key_2, size) >> long_shift)
            add_long(long, arena, used, slot, key, key_2, from_arena, begin, size, from_long[U(entry + 2)])
    return 0


@kernel("int64(uint8[::1], int64[::1], uint64[::1], uint64[::1], uint64[::1], uint8[::1], int64[::1])")
def add_words(flat: Any, starts: Any, counts: Any, short: Any, long: Any, arena: Any, used: Any) -> Any:
    """Add pre-tokens, one after the other in `flat`, to tables that have room for them."""
    short_shift, long_shift = shift_for(short, SHORT), shift_for(long, LONG)
    for word in range(counts.size):
        at = starts[word]
        size = starts[word + 1] - at
        key, key_2 = ZERO, ZERO
        if size <= KEY_BYTES:
            for offset in range(size):
                if offset < 8:
                    key |= U(flat[U(at + offset)]) << U(8 * offset)
                else:
                    key_2 |= U(flat[U(at + offset)]) << U(8 * offset - 64)
        else:
            key = hash_bytes(flat, at, size)
        if size <= 8 and flat[U(at + size - 1)] != 0:
            add_short(short, used, np.int64(short_hash(key) >> short_shift), key, counts[U(word)])
        else:
            slot = np.int64(long_hash(key, key_2, size) >> long_shift)
            add_long(long, arena, used, slot, key, key_2, flat, at, size, counts[U(word)])
    return 0


@inline
def write_bytes(key: Any, flat: Any, at: Any, size: Any) -> None:
    for offset in range(size):
        flat[U(at + offset)] = np.uint8(key & U(0xFF))
        key >>= U(8)


@kernel("int64(uint64[::1], uint64[::1], uint8[::1], uint8[::1], int64[::1], uint64[::1])")
def list_words(short: Any, long: Any, arena: Any, flat: Any, starts: Any, counts: Any) -> Any:
    """Write all pre-tokens one after the other, where each begins, and their counts; returns their bytes."""
    word = np.int64(0)
    at = np.int64(0)
    starts[0] = 0
    for entry in range(0, short.size, SHORT):
        key = short[U(entry)]
        if key != ZERO:
            size = np.int64(0)
            while key >> U(8 * size) != ZERO:
                size += 1
                if size == 8:
                    break
            write_bytes(key, flat, at, size)
            at += size
            counts[U(word)] = short[U(entry + 1)]
            word += 1
            starts[U(word)] = at
    for entry in range(0, long.size, LONG):
        size = np.int64(long[U(entry + 3)])
        if size:
            if size <= KEY_BYTES:
                write_bytes(long[U(entry)], flat, at, min(size, 8))
                write_bytes(long[U(entry + 1)], flat, at + 8, max(size - 8, 0))
            else:
                begin = np.int64(long[U(entry + 1)])
                for offset in range(size):
                    flat[U(at + offset)] = arena[U(begin + offset)]
            at += size
            counts[U(word)] = long[U(entry + 2)]
            word += 1
            starts[U(word)] = at
    return at
