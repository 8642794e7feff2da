"""Open-addressing tables from pre-tokens to a number; their layout is described in lm.tokenizer.layout."""

from typing import Any

import numpy as np

from lm.tokenizer.kernels.bits import ZERO, U, inline, load8, prefetch, trailing_zeros
from lm.tokenizer.layout import KEY_BYTES, LONG, SHORT, SHORT_BYTES

# Odd numbers without a pattern: Knuth's from the golden ratio, and one of xxHash's primes.
MULTIPLIER, MULTIPLIER_2 = U(0x9E3779B97F4A7C15), U(0xC2B2AE3D27D4EB4F)
MIX = U(29)
MASKS = np.array([(1 << 8 * size) - 1 for size in range(9)], np.uint64)  # the first `size` bytes of a word


@inline
def first_bytes(data: Any, at: Any, size: Any) -> Any:
    """Up to 8 bytes as a number."""
    return load8(data, at) & MASKS[U(size)]


@inline
def shift_for(table: Any, entry_size: Any) -> Any:
    """How far a hash is shifted so that its upper bits are an entry's number."""
    return U(64) - U(trailing_zeros(U(table.size // entry_size)))


@inline
def short_hash(key: Any) -> Any:
    return key * MULTIPLIER


@inline
def long_hash(key: Any, key_2: Any, size: Any) -> Any:
    hashed = (key ^ (key_2 * MULTIPLIER_2) ^ U(size)) * MULTIPLIER
    return (hashed ^ (hashed >> MIX)) * MULTIPLIER_2


@inline
def hash_bytes(data: Any, at: Any, size: Any) -> Any:
    hashed = U(size)
    while size > SHORT_BYTES:
        hashed = (hashed ^ load8(data, at)) * MULTIPLIER
        hashed ^= hashed >> MIX
        at += SHORT_BYTES
        size -= SHORT_BYTES
    hashed = (hashed ^ first_bytes(data, at, size)) * MULTIPLIER
    return hashed ^ (hashed >> MIX)


@inline
def is_short(data: Any, at: Any, size: Any) -> Any:
    return size <= SHORT_BYTES and data[U(at + size - 1)] != 0


@inline
def look_up_batch(data: Any, starts: Any, number: Any, short: Any, long: Any, keys: Any, slots: Any) -> None:
    """Keys of the pre-tokens between `starts`, and the entries where their search begins, asked into the cache.

    `keys` holds two numbers a pre-token. A slot is of the short table; below zero, it is -1 less that of the long one.
    """
    short_shift, long_shift = shift_for(short, SHORT), shift_for(long, LONG)
    for i in range(number):
        at = starts[U(i)]
        size = starts[U(i + 1)] - at
        if is_short(data, at, size):
            key = first_bytes(data, at, size)
            slot = np.int64(short_hash(key) >> short_shift)
            prefetch(short, SHORT * slot)
            keys[U(2 * i)] = key
            slots[U(i)] = slot
            continue
        if size <= SHORT_BYTES:
            key, key_2 = first_bytes(data, at, size), ZERO
        elif size <= KEY_BYTES:
            key, key_2 = load8(data, at), first_bytes(data, at + SHORT_BYTES, size - SHORT_BYTES)
        else:
            key, key_2 = hash_bytes(data, at, size), ZERO
        slot = np.int64(long_hash(key, key_2, size) >> long_shift)
        prefetch(long, LONG * slot)
        keys[U(2 * i)], keys[U(2 * i + 1)] = key, key_2
        slots[U(i)] = -1 - slot


@inline
def find_short(table: Any, slot: Any, key: Any) -> Any:
    """From a slot on, where the key is, or the free entry where it would go."""
    mask = table.size // SHORT - 1
    while table[U(SHORT * slot)] != key and table[U(SHORT * slot)] != ZERO:
        slot = (slot + 1) & mask
    return SHORT * slot


@inline
def find_long(table: Any, slot: Any, key: Any, key_2: Any, size: Any) -> Any:
    """The same for up to 16 bytes."""
    mask = table.size // LONG - 1
    while True:
        entry = LONG * slot
        held = table[U(entry + 3)]
        if held == ZERO or (table[U(entry)] == key and table[U(entry + 1)] == key_2 and held == U(size)):
            return entry
        slot = (slot + 1) & mask


@inline
def find_bytes(table: Any, slot: Any, hashed: Any, data: Any, at: Any, size: Any, arena: Any) -> Any:
    """The same for more than 16 bytes, which the arena holds."""
    mask = table.size // LONG - 1
    while True:
        entry = LONG * slot
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
