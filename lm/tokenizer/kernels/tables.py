"""Open-addressing tables from pre-tokens to a number; their layout is described in lm.tokenizer.layout."""

from typing import Any

import numpy as np

from lm.tokenizer.kernels.bits import ZERO, U, inline, load8, prefetch, trailing_zeros
from lm.tokenizer.layout import ARENA_USED, ENTRY, LONG_USED, SHORT_BYTES, SHORT_USED, STARTS

# Odd numbers without a pattern: Knuth's from the golden ratio, and one of xxHash's primes.
MULTIPLIER, MULTIPLIER_2 = U(0x9E3779B97F4A7C15), U(0xC2B2AE3D27D4EB4F)
MIX = U(29)
# What to keep of the first and of the second 8 bytes of a pre-token, by its size.
FIRST = np.array([(1 << 8 * min(size, 8)) - 1 for size in range(SHORT_BYTES + 1)], np.uint64)
SECOND = np.array([(1 << 8 * max(size - 8, 0)) - 1 for size in range(SHORT_BYTES + 1)], np.uint64)


@inline
def is_short(data: Any, at: Any, size: Any) -> Any:
    return size <= SHORT_BYTES and data[U(at)] != 0 and data[U(at + size - 1)] != 0


@inline
def is_full(table: Any, taken: Any) -> Any:
    """Whether another batch could take more than three quarters of a table."""
    return 4 * ENTRY * (taken + STARTS) > 3 * table.size


@inline
def shift_for(table: Any) -> Any:
    """How far a hash is shifted so that its upper bits are an entry's number."""
    return U(64) - U(trailing_zeros(U(table.size // ENTRY)))


@inline
def short_slot(key: Any, key_2: Any, shift: Any) -> Any:
    """The entry where the search for a short pre-token begins."""
    hashed = (key ^ (key_2 * MULTIPLIER_2)) * MULTIPLIER
    return np.int64((hashed ^ (hashed >> MIX)) * MULTIPLIER >> shift)


@inline
def hash_bytes(data: Any, at: Any, size: Any) -> Any:
    """A hash of bytes, at least one."""
    hashed = U(size)
    while size > 8:
        hashed = (hashed ^ load8(data, at)) * MULTIPLIER
        hashed ^= hashed >> MIX
        at += 8
        size -= 8
    hashed = (hashed ^ (load8(data, at) & FIRST[U(size)])) * MULTIPLIER
    return hashed ^ (hashed >> MIX)


@inline
def long_slot(hashed: Any, shift: Any) -> Any:
    """The entry where the search for a long pre-token begins."""
    return np.int64(hashed * MULTIPLIER_2 >> shift)


@inline
def look_up_batch(data: Any, starts: Any, number: Any, short: Any, long: Any, keys: Any, slots: Any) -> None:
    """Keys of the pre-tokens between `starts`, and the entries where their search begins, asked into the cache.

    `keys` holds two numbers a pre-token, for long ones the hash alone. A slot is of the table for short ones; below
    zero, it is -1 less that of the other.
    """
    shift, long_shift = shift_for(short), shift_for(long)
    for i in range(number):
        at = starts[U(i)]
        size = starts[U(i + 1)] - at
        kept = min(size, SHORT_BYTES)
        key, key_2 = load8(data, at) & FIRST[U(kept)], load8(data, at + 8) & SECOND[U(kept)]
        slot = short_slot(key, key_2, shift)
        prefetch(short, ENTRY * slot)
        if not is_short(data, at, size):
            key = hash_bytes(data, at, size)
            slot = long_slot(key, long_shift)
            prefetch(long, ENTRY * slot)
            slot = -1 - slot
        keys[U(2 * i)], keys[U(2 * i + 1)] = key, key_2
        slots[U(i)] = slot


@inline
def find_short(table: Any, slot: Any, key: Any, key_2: Any) -> Any:
    """From a slot on, where the pre-token's entry begins, or the free one where it would go."""
    mask = table.size // ENTRY - 1
    while True:
        entry = ENTRY * slot
        if (table[U(entry)] == key and table[U(entry + 1)] == key_2) or table[U(entry)] == ZERO:
            return entry
        slot = (slot + 1) & mask


@inline
def find_long(table: Any, slot: Any, hashed: Any, data: Any, at: Any, size: Any, arena: Any) -> Any:
    """The same for a long one."""
    mask = table.size // ENTRY - 1
    while True:
        entry = ENTRY * slot
        if table[U(entry + 3)] == ZERO:
            return entry
        if table[U(entry)] == hashed and table[U(entry + 3)] == U(size):
            begin = np.int64(table[U(entry + 1)])
            offset = 0
            while offset < size and arena[U(begin + offset)] == data[U(at + offset)]:
                offset += 1
            if offset == size:
                return entry
        slot = (slot + 1) & mask


@inline
def enter_short(table: Any, used: Any, entry: Any, key: Any, key_2: Any) -> None:
    """Take a free entry."""
    table[U(entry)], table[U(entry + 1)] = key, key_2
    used[SHORT_USED] += 1


@inline
def enter_long(table: Any, used: Any, entry: Any, hashed: Any, data: Any, at: Any, size: Any, arena: Any) -> None:
    """Take a free entry, and keep the bytes in the arena."""
    begin = used[ARENA_USED]
    for offset in range(size):
        arena[U(begin + offset)] = data[U(at + offset)]
    table[U(entry)], table[U(entry + 1)], table[U(entry + 3)] = hashed, U(begin), U(size)
    used[ARENA_USED] += size
    used[LONG_USED] += 1


@inline
def find_or_enter(
    data: Any, at: Any, size: Any, short: Any, long: Any, arena: Any, used: Any, is_short_one: Any
) -> Any:
    """The entry of a pre-token in its table; a new one has the value 0."""
    if is_short_one:
        key, key_2 = load8(data, at) & FIRST[U(size)], load8(data, at + 8) & SECOND[U(size)]
        entry = find_short(short, short_slot(key, key_2, shift_for(short)), key, key_2)
        if short[U(entry)] == ZERO:
            enter_short(short, used, entry, key, key_2)
        return entry
    hashed = hash_bytes(data, at, size)
    entry = find_long(long, long_slot(hashed, shift_for(long)), hashed, data, at, size, arena)
    if long[U(entry + 3)] == ZERO:
        enter_long(long, used, entry, hashed, data, at, size, arena)
    return entry
