"""Counts of the pre-tokens of files, by threads with a table each, added up.

Files are read in blocks, so memory is bounded by the tables.
"""

from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Any

import numpy as np

from lm.tokenizer.compiled import U, compiling, jit
from lm.tokenizer.pretokenize import Span, read_text
from lm.tokenizer.scanner import (
    LOOK_AHEAD,
    MASKS,
    PADDING,
    Bytes,
    Specials,
    Words,
    character_kinds,
    find_special,
    padded,
    pre_token_end,
    special_arrays,
    valid_until,
)
from lm.tokenizer.tables import ARENA, LONG, SHORT, add_long, add_short, add_tables, hash_bytes, list_words

BLOCK = 1 << 20  # bytes of text in a buffer: they stay in the processor's cache while they are scanned
SPANS_A_THREAD = 8  # so that threads are done at about the same time
FIRST_SIZE = 1 << 14  # entries of a new table
MORE_TEXT, MORE_ROOM = range(2)


@jit
def count_block(
    data: Any, words: Any, filled: Any, final: Any, start: Any, longest: Any, kinds: Any, specials: Any, masks: Any,
    short: Any, table: Any, arena: Any, used: Any,
) -> Any:  # fmt: skip
    """Count from `start` on; returns where it stopped, and for want of what."""
    # A special token that begins before the limit is seen whole, and so is a character.
    limit = filled if final else max(start, filled - longest - LOOK_AHEAD)
    at = start
    while at < limit:
        end, special_size = find_special(data, words, at, limit, filled, specials)
        open_end = special_size == 0 and not final
        while at < end:
            after = pre_token_end(data, words, at, end, kinds)
            size = after - at
            if open_end and after + LOOK_AHEAD > end:
                return at, MORE_TEXT
            if 4 * used[SHORT] > short.size or 8 * used[LONG] > table.size or used[ARENA] + size > arena.size:
                return at, MORE_ROOM
            if size <= 8 and data[U(after - 1)] != 0:
                add_short(short, used, words[U(at)] & masks[U(size)], U(1))
            else:
                add_long(table, arena, used, hash_bytes(words, at, size, masks), data, at, size, U(1))
            at = after
        at += special_size
    return at, MORE_TEXT


class Counts:
    """Counts of pre-tokens."""

    def __init__(self) -> None:
        self.short = np.zeros(2 * FIRST_SIZE, np.uint64)
        self.long = np.zeros(4 * FIRST_SIZE, np.uint64)
        self.arena = np.empty(BLOCK, np.uint8)
        self.used = np.zeros(3, np.int64)

    def make_room(self, shorts: int, longs: int, num_bytes: int) -> None:
        """Room for so many more, with tables at most half full."""
        room = Counts.__new__(Counts)
        short_size, long_size = len(self.short) // 2, len(self.long) // 4
        while short_size < 2 * (self.used[SHORT] + shorts):
            short_size *= 2
        while long_size < 2 * (self.used[LONG] + longs):
            long_size *= 2
        arena_size = len(self.arena)
        while arena_size < self.used[ARENA] + num_bytes:
            arena_size *= 2
        room.short, room.long = np.zeros(2 * short_size, np.uint64), np.zeros(4 * long_size, np.uint64)
        room.arena, room.used = np.empty(arena_size, np.uint8), np.zeros(3, np.int64)
        add_tables(self.short, self.long, self.arena, room.short, room.long, room.arena, room.used)
        self.__dict__ = room.__dict__

    def add(self, other: "Counts") -> None:
        """Add another's counts."""
        self.make_room(*map(int, other.used))
        add_tables(other.short, other.long, other.arena, self.short, self.long, self.arena, self.used)

    def words(self) -> tuple[Bytes, np.ndarray, np.ndarray]:
        """Pre-tokens as bytes in one array, where each begins (and the last ends), and counts: (N,), (W + 1,), (W,)."""
        return list_words(self.short, self.long, self.arena, self.used)

    def count_span(
        self, span: Span, kinds: Bytes, specials: Specials, stop: Event, progress: Callable[[int], object]
    ) -> None:
        """Count a span of a file. Raises ValueError if it is not UTF-8."""
        longest = int(np.diff(specials.starts).max(initial=0))
        size = BLOCK
        data, words = padded(size)
        held = checked = 0
        position = span.start
        with span.path.open("rb", buffering=0) as file:
            file.seek(position)
            while not stop.is_set():
                block = memoryview(data.data)[held : min(size, held + span.end - position)]
                got = file.readinto(block) or 0
                position += got
                filled, final = held + got, position >= span.end or not got
                checked = valid_until(data, words, checked, filled)
                if checked < filled and (final or filled - checked >= LOOK_AHEAD):
                    _raise_malformed(span)
                at = self._count(data, words, filled, final, longest, kinds, specials)
                progress(got)
                if final:
                    return
                if at == 0 and filled == size:
                    # A pre-token longer than the buffer.
                    size *= 2
                    longer = padded(size)
                    longer[0][:filled] = data[:filled]
                    data, words = longer
                else:
                    data[: filled - at] = data[at:filled].copy()
                held, checked = filled - at, checked - at

    def _count(
        self, data: Bytes, words: Words, filled: int, final: bool, longest: int, kinds: Bytes, specials: Specials
    ) -> int:
        at, wanted = 0, MORE_ROOM
        while wanted == MORE_ROOM:
            at, wanted = count_block(
                data, words, filled, final, at, longest, kinds, specials, MASKS,
                self.short, self.long, self.arena, self.used,
            )  # fmt: skip
            if wanted == MORE_ROOM:
                self.make_room(int(self.used[SHORT]), int(self.used[LONG]), filled)
        return at


def _raise_malformed(span: Span) -> None:
    for _ in read_text(span):
        pass
    raise AssertionError("the scanner and Python differ on UTF-8")


def count_spans(
    spans: list[Span], special_tokens: list[str], num_threads: int, progress: Callable[[int], object]
) -> Counts:
    """Pre-tokens of spans of files, by several threads.

    Raises:
        ValueError: a file is not UTF-8.
    """
    kinds, specials = character_kinds(), special_arrays(special_tokens)
    with compiling():
        _load(kinds, specials)
    waiting: SimpleQueue[Span] = SimpleQueue()
    for span in spans:
        waiting.put(span)
    stop = Event()
    parts: list[Counts] = []
    errors: list[BaseException] = []

    def work() -> None:
        counts = Counts()
        try:
            while not stop.is_set():
                counts.count_span(waiting.get_nowait(), kinds, specials, stop, progress)
        except Empty:
            parts.append(counts)
        except BaseException as error:
            stop.set()
            errors.append(error)

    threads = [Thread(target=work) for _ in range(min(num_threads, len(spans)))]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        stop.set()
    if errors:
        raise errors[0]
    total = parts.pop() if parts else Counts()
    for part in parts:
        total.add(part)
    return total


def _load(kinds: Bytes, specials: Specials) -> None:
    """Have everything compiled, by one thread."""
    counts = Counts()
    data, words = padded(PADDING)
    valid_until(data, words, 0, 0)
    counts._count(data, words, 0, True, 0, kinds, specials)
    counts.add(Counts())
    counts.words()
