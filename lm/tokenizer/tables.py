"""Open-addressing tables from pre-tokens to counts, compiled.

Pre-tokens of up to 8 bytes are their own key in `short` (key, count). Longer ones, and those that end with a zero byte,
are in `long` (hash, offset, size, count), with their bytes in `arena`. `used` says how many entries or bytes of each
are taken. The caller sees to it that there is room; at most half of a table's entries may be taken.
"""

from typing import Any

import numpy as np

from lm.tokenizer.compiled import U, jit
from lm.tokenizer.scanner import ZERO

SHORT, LONG, ARENA = range(3)  # places in `used`

MULTIPLIER = U(0x9E3779B97F4A7C15)  # Knuth's, from the golden ratio
MIX = U(29)


@jit
def short_slot(table: Any, key: Any) -> Any:
    """Where the key is, or where it would go; twice the entry's number."""
    mask = U(table.size // 2 - 1)
    slot = ((key * MULTIPLIER) >> U(32)) & mask
    while table[2 * slot] != key and table[2 * slot] != ZERO:
        slot = (slot + U(1)) & mask
    return 2 * slot


@jit
def hash_bytes(words: Any, at: Any, size: Any, masks: Any) -> Any:
    hashed = U(size)
    while size > 8:
        hashed = (hashed ^ words[U(at)]) * MULTIPLIER
        hashed ^= hashed >> MIX
        at += 8
        size -= 8
    hashed = (hashed ^ (words[U(at)] & masks[U(size)])) * MULTIPLIER
    return hashed ^ (hashed >> MIX)


@jit
def long_slot(table: Any, arena: Any, hashed: Any, data: Any, at: Any, size: Any) -> Any:
    """Where the bytes' entry is, or where it would go; four times its number."""
    mask = U(table.size // 4 - 1)
    slot = hashed & mask
    while table[4 * slot + 3] != ZERO:
        if table[4 * slot] == hashed and table[4 * slot + 2] == U(size):
            begin = table[4 * slot + 1]
            same = True
            offset = 0
            while same and offset < size:
                same = arena[begin + U(offset)] == data[U(at + offset)]
                offset += 1
            if same:
                break
        slot = (slot + U(1)) & mask
    return 4 * slot


@jit
def add_short(short: Any, used: Any, key: Any, count: Any) -> None:
    slot = short_slot(short, key)
    if short[slot] == ZERO:
        short[slot] = key
        used[SHORT] += 1
    short[slot + U(1)] += count


@jit
def add_long(table: Any, arena: Any, used: Any, hashed: Any, data: Any, at: Any, size: Any, count: Any) -> None:
    slot = long_slot(table, arena, hashed, data, at, size)
    if table[slot + U(3)] == ZERO:
        table[slot], table[slot + U(1)], table[slot + U(2)] = hashed, U(used[ARENA]), U(size)
        arena[used[ARENA] : used[ARENA] + size] = data[at : at + size]
        used[ARENA] += size
        used[LONG] += 1
    table[slot + U(3)] += count


@jit
def add_tables(
    source_short: Any, source_long: Any, source_arena: Any, short: Any, table: Any, arena: Any, used: Any
) -> None:
    """Add the counts of the source to a table that has room for them."""
    for entry in range(0, source_short.size, 2):
        if source_short[entry] != ZERO:
            add_short(short, used, source_short[entry], source_short[entry + 1])
    for entry in range(0, source_long.size, 4):
        if source_long[entry + 3] != ZERO:
            hashed, begin, size = source_long[entry], np.int64(source_long[entry + 1]), np.int64(source_long[entry + 2])
            add_long(table, arena, used, hashed, source_arena, begin, size, source_long[entry + 3])


@jit
def list_words(short: Any, table: Any, arena: Any, used: Any) -> Any:
    """All pre-tokens one after the other, where each begins, and their counts."""
    sizes = used[ARENA] + 8 * used[SHORT]
    flat = np.empty(sizes, np.uint8)
    starts = np.zeros(used[SHORT] + used[LONG] + 1, np.int64)
    counts = np.empty(used[SHORT] + used[LONG], np.int64)
    word = at = 0
    for entry in range(0, short.size, 2):
        key = short[entry]
        if key != ZERO:
            while key != ZERO:
                flat[at] = np.uint8(key & U(0xFF))
                at += 1
                key >>= U(8)
            counts[word] = short[entry + 1]
            word += 1
            starts[word] = at
    for entry in range(0, table.size, 4):
        if table[entry + 3] != ZERO:
            begin, size = np.int64(table[entry + 1]), np.int64(table[entry + 2])
            flat[at : at + size] = arena[begin : begin + size]
            at += size
            counts[word] = table[entry + 3]
            word += 1
            starts[word] = at
    return flat[:at], starts, counts
