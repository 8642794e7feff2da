"""Counts of the pre-tokens of files, by threads with tables of their own, added up.

Files are read in blocks, so memory is bounded by the tables.
"""

import hashlib
import json
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Lock, Thread

import numpy as np
from tqdm import tqdm

from lm.tokenizer.blocks import BlockReader, Bytes, SpecialArrays, new_table
from lm.tokenizer.layout import (
    ARENA_USED,
    ENTRY,
    LONG_USED,
    MORE_ROOM,
    NUM_USED,
    PADDING,
    SHORT_BYTES,
    SHORT_USED,
    STARTS,
    STATUS,
)
from lm.tokenizer.native import kernels
from lm.tokenizer.pretokenize import SPAN, Errors, Span, SpecialTokens

FIRST_SIZE = 1 << 14  # entries of a new table
FIRST_ARENA = 1 << 20
SPANS_A_THREAD = 8  # so that threads are done at about the same time


class Counts:
    """Counts of pre-tokens (the tables are described in lm.tokenizer.layout)."""

    def __init__(self, shorts: int = 0, longs: int = 0, num_bytes: int = 0) -> None:
        """Empty tables with room for so many pre-tokens, and so many bytes of those above 16."""
        self._short, self._long = new_table(_entries(shorts)), new_table(_entries(longs))
        self._arena = np.empty(max(num_bytes, FIRST_ARENA) + PADDING, np.uint8)
        self._used = np.zeros(NUM_USED, np.int64)

    def _make_room(self, shorts: int, longs: int, num_bytes: int) -> None:
        """Room for so many more, and as many again as there are."""
        used = self._used
        counts = Counts(
            2 * int(used[SHORT_USED]) + shorts, 2 * int(used[LONG_USED]) + longs, 2 * int(used[ARENA_USED]) + num_bytes
        )
        counts._add(*self.words())
        self.__dict__ = counts.__dict__

    def _add(self, flat: Bytes, starts: np.ndarray, counts: np.ndarray) -> None:
        kernels().add_words(flat, starts, counts, self._short, self._long, self._arena, self._used)

    def add(self, flat: Bytes, starts: np.ndarray, counts: np.ndarray) -> None:
        """Add what `words` returned."""
        self._make_room(len(counts), len(counts), len(flat))
        self._add(flat, starts, counts)

    def __len__(self) -> int:
        return int(self._used[SHORT_USED] + self._used[LONG_USED])

    @property
    def total(self) -> int:
        """How many pre-tokens were counted."""
        return int(self._short[2::ENTRY].sum() + self._long[2::ENTRY].sum())

    def words(self) -> tuple[Bytes, np.ndarray, np.ndarray]:
        """Pre-tokens as bytes in one array, where each begins (and the last ends), and counts: (N,), (W + 1,), (W,).

        The array of bytes is longer than they are, so that compiled code can read beyond them.
        """
        shorts, longs, arena = (int(self._used[place]) for place in (SHORT_USED, LONG_USED, ARENA_USED))
        flat = np.empty(SHORT_BYTES * shorts + arena + PADDING, np.uint8)
        starts, counts = np.empty(shorts + longs + 1, np.int64), np.empty(shorts + longs, np.uint64)
        kernels().list_words(self._short, self._long, self._arena, flat, starts, counts)
        return flat, starts, counts

    def save(self, path: Path, special_tokens: list[str]) -> None:
        """Write the counts into a file, which appears whole; any order of counting gives the same bytes.

        A line of JSON, then the pre-tokens in order and one after the other, the size of each, and their counts.
        """
        flat, starts, counts = self.words()
        words = [flat[i:j].tobytes() for i, j in pairwise(starts.tolist())]
        order = sorted(range(len(words)), key=words.__getitem__)
        sizes = np.diff(starts)[order].astype("<u8")
        body = b"".join(words[i] for i in order) + sizes.tobytes() + counts[order].astype("<u8").tobytes()
        header = {
            "words": len(words),
            "special_tokens": sorted(special_tokens),
            "sha256": hashlib.sha256(body).hexdigest(),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            temporary.write_bytes(json.dumps(header).encode() + b"\n" + body)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def load(self, path: Path, special_tokens: list[str]) -> None:
        """Add the counts of a file that `save` wrote.

        Raises:
            ValueError: it is no such file, or was counted with other special tokens.
        """
        head, _, body = path.read_bytes().partition(b"\n")
        try:
            header = json.loads(head)
            number, counted_with, digest = header["words"], header["special_tokens"], header["sha256"]
        except (ValueError, KeyError, TypeError):
            number, counted_with, digest = 0, [], ""
        if digest != hashlib.sha256(body).hexdigest():
            raise ValueError(f"{path} is damaged or no file of counts; make it again with `count`")
        if counted_with != sorted(special_tokens):
            raise ValueError(
                f"{path} was counted with the special tokens {counted_with}, not with {sorted(special_tokens)}; "
                "count again, or train with the same"
            )
        text_size = len(body) - 16 * number
        words = np.frombuffer(body[:text_size] + bytes(PADDING), np.uint8)
        sizes, counts = np.frombuffer(body[text_size:], "<u8").reshape(2, number)
        self.add(words, np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64), counts.astype(np.uint64))

    def count_span(
        self,
        span: Span,
        specials: SpecialArrays,
        stop: Event,
        progress: Callable[[int], object],
        errors: Errors = "strict",
    ) -> None:
        """Count a span of a file, unless told to stop. Raises ValueError if it is not UTF-8."""
        starts, keys = np.empty(STARTS, np.int64), np.empty(2 * STARTS, np.uint64)
        slots = np.empty(STARTS, np.int64)
        at = 0
        with BlockReader(span, errors) as block:
            while not (block.is_final or stop.is_set()):
                got, at = block.read(at), 0
                while True:
                    at = kernels().count_block(
                        block.data, at, block.filled, block.is_final, specials.longest, kernels().kinds,
                        specials.firsts, specials.bytes, specials.starts, starts, keys, slots,
                        self._short, self._long, self._arena, self._used,
                    )  # fmt: skip
                    if self._used[STATUS] != MORE_ROOM:
                        break
                    self._make_room(STARTS, STARTS, block.filled)
                progress(got)


def _entries(number: int) -> int:
    """Entries of a table that stays at most half full with so many, beside a batch."""
    return max(FIRST_SIZE, 1 << (2 * (number + STARTS) - 1).bit_length())


def count_files(
    paths: list[Path],
    specials: SpecialTokens,
    num_threads: int,
    progress: bool,
    shard: tuple[int, int] = (0, 1),
    errors: Errors = "strict",
) -> Counts:
    """Pre-tokens of text files, or of a shard (its index, and how many there are) of each, by several threads.

    Raises:
        ValueError: a file is not UTF-8, or there is no such shard.
    """
    whole = [specials.shard(path, *shard) for path in paths]
    total = sum(span.size for span in whole)
    size = max(SPAN, total // (num_threads * SPANS_A_THREAD))
    spans = [part for span in whole for part in specials.spans(span, size)]
    lock = Lock()
    with tqdm(total=total, desc="counting", unit="B", unit_scale=True, disable=not progress) as bar:

        def advance(num_bytes: int) -> None:
            with lock:
                bar.update(num_bytes)

        return count_spans(spans, specials.tokens, num_threads, advance, errors)


def count_spans(
    spans: list[Span],
    special_tokens: list[str],
    num_threads: int,
    progress: Callable[[int], object],
    errors: Errors = "strict",
) -> Counts:
    """Pre-tokens of spans of files, by several threads.

    Raises:
        ValueError: a file is not UTF-8.
    """
    specials = SpecialArrays(special_tokens)
    kernels()  # loaded or compiled by one thread
    waiting: SimpleQueue[Span] = SimpleQueue()
    for span in spans:
        waiting.put(span)
    stop = Event()
    parts: list[Counts] = []
    failures: list[BaseException] = []

    def work() -> None:
        counts = Counts()
        try:
            while not stop.is_set():
                counts.count_span(waiting.get_nowait(), specials, stop, progress, errors)
        except Empty:
            parts.append(counts)
        except BaseException as error:
            stop.set()
            failures.append(error)

    threads = [Thread(target=work) for _ in range(min(num_threads, len(spans)))]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        stop.set()
    if failures:
        raise failures[0]
    total = parts.pop() if parts else Counts()
    for part in parts:
        total.add(*part.words())
    return total
