"""Encoding of large texts by compiled code; gives exactly what `Tokenizer.encode` defines in plain Python."""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from itertools import takewhile
from queue import SimpleQueue
from threading import Event, Lock, Thread

import numpy as np
import numpy.typing as npt

from lm.tokenizer.blocks import BlockReader, SpecialArrays, new_table
from lm.tokenizer.bpe import PreTokenEncoder
from lm.tokenizer.layout import (
    ARENA_USED,
    DOCUMENTS,
    ENTRY,
    IN_DOCUMENT,
    LONG_USED,
    LONGEST_KEPT,
    LONGEST_MERGED,
    MANY_USED,
    MORE_ROOM,
    MORE_TEXT,
    NO_PAIR,
    NUM_USED,
    OUT_USED,
    PADDING,
    SHORT_USED,
    STARTS,
    STATUS,
    TEXT_BYTES,
    WORD_END,
)
from lm.tokenizer.native import kernels
from lm.tokenizer.pretokenize import END_OF_TEXT, EncodedChunk, Errors, Span

FIRST_SHORT, MOST_SHORT = 1 << 16, 1 << 20  # entries; what fills the largest tables is forgotten
FIRST_LONG, MOST_LONG = 1 << 14, 1 << 18
GROWTH = 2
CHUNK = 1 << 20  # ids are handed on when there are about so many; numpy asks for large pages for more: they can stall


class Merges:
    """The merges of a vocabulary for compiled code, and the rest of what decides the ids of a text.

    Attributes:
        byte_ids: (256,) ids of the single bytes.
        pairs: an open-addressing table from two ids to the rank of their merge; a byte of the hash stands above it.
        pair_keys: the two ids of each rank, in one number.
        first_product: id of the first merge's token, if the others' follow; else -1.
        byte_ranks: (65536,) ranks of the merges of two bytes.
        products: ids of the merges' tokens, by rank.
        specials, special_ids: the special tokens, and their ids in the same order.
        end_of_text: index of the end-of-text token among them; -1 if there is none.
        wide: whether ids need 32 bits.
        merge: merges a pre-token of any length.
    """

    def __init__(self, plain: PreTokenEncoder, special_ids: dict[str, int], vocab_size: int) -> None:
        lefts, rights = np.array(list(plain.ranks), np.int32).reshape(-1, 2).T.copy()
        self.byte_ids = np.array(plain.byte_ids, np.int32)
        self.pairs = np.full(1 << (2 * len(plain.ranks) + 1).bit_length(), NO_PAIR, np.uint32)
        self.pair_keys = np.empty(len(plain.ranks), np.uint64)
        self.byte_ranks = np.empty(1 << 16, np.int32)
        kernels().fill_pairs(lefts, rights, self.byte_ids, self.pairs, self.pair_keys, self.byte_ranks)
        self.products = np.array(plain.products, np.int32)
        first = plain.products[0] if plain.products else 0
        in_order = plain.products == list(range(first, first + len(plain.products)))
        self.first_product = first if in_order else -1
        self.specials = SpecialArrays(list(special_ids))
        tokens = self.specials.tokens
        self.special_ids = np.array([special_ids[token] for token in tokens], np.int64)
        self.end_of_text = tokens.index(END_OF_TEXT) if END_OF_TEXT in tokens else -1
        self.wide = vocab_size > 1 << 16
        self.merge = plain.merge


class Encoder:
    """Encodes text, and remembers the ids of its pre-tokens for what comes next. One thread at a time may use it."""

    def __init__(self, merges: Merges) -> None:
        self._merges = merges
        self._short, self._long = new_table(FIRST_SHORT), new_table(FIRST_LONG)
        self._arena, self._many = _arenas(FIRST_SHORT)
        self._used = np.zeros(NUM_USED, np.int64)
        self._scratch = (
            np.empty(STARTS, np.int64), np.empty(2 * STARTS, np.uint64), np.empty(STARTS, np.int64),
            *(np.empty(LONGEST_MERGED, np.int32) for _ in range(2)),
        )  # fmt: skip

    def copy(self) -> "Encoder":
        """Another that remembers the same."""
        other = Encoder(self._merges)
        other._short, other._long = (new_table(len(table) // ENTRY) for table in (self._short, self._long))
        other._short[:], other._long[:] = self._short, self._long
        other._arena, other._many = self._arena.copy(), self._many.copy()
        other._used[:] = self._used
        return other

    def encode_text(self, text: bytes) -> npt.NDArray[np.unsignedinteger]:
        """Ids of valid UTF-8."""
        data = np.zeros(len(text) + PADDING, np.uint8)
        data[: len(text)] = np.frombuffer(text, np.uint8)
        self._begin()
        out = self._room(len(text))
        self._encode(data, len(text), True, out)
        return self._ids(out)

    def encode_span(self, span: Span, errors: Errors = "strict") -> Iterator[EncodedChunk]:
        """Ids of a span of a file. Raises ValueError if it is not UTF-8."""
        self._begin()
        self._used[IN_DOCUMENT] = span.start > 0  # cut within one, or before an end-of-text token, which says so
        used = self._used
        at = num_bytes = 0
        out = self._room(0)
        with BlockReader(span, errors) as block:
            while not block.is_final:
                num_bytes += block.read(at)
                if used[OUT_USED] + block.filled * self._width + PADDING > len(out):
                    if used[OUT_USED]:
                        yield self._chunk(out, num_bytes)
                        num_bytes = 0
                    out = self._room(max(block.filled, CHUNK))
                at = self._encode(block.data, block.filled, block.is_final, out)
            yield self._chunk(out, num_bytes)

    def _chunk(self, out: np.ndarray, num_bytes: int) -> EncodedChunk:
        used = self._used
        chunk = EncodedChunk(self._ids(out), num_bytes, int(used[TEXT_BYTES]), int(used[DOCUMENTS]))
        used[[OUT_USED, TEXT_BYTES, DOCUMENTS]] = 0
        return chunk

    @property
    def _width(self) -> int:
        return 4 if self._merges.wide else 2

    def _begin(self) -> None:
        self._used[[OUT_USED, TEXT_BYTES, DOCUMENTS, IN_DOCUMENT]] = 0

    def _room(self, num_bytes: int) -> np.ndarray:
        """A buffer for the ids of so many bytes of text, each an id at worst."""
        return np.empty(num_bytes * self._width + PADDING, np.uint8)

    def _ids(self, out: np.ndarray) -> npt.NDArray[np.unsignedinteger]:
        return out[: self._used[OUT_USED]].view("<u4" if self._merges.wide else "<u2")

    def _encode(self, data: np.ndarray, filled: int, is_final: bool, out: np.ndarray) -> int:
        merges, used, at = self._merges, self._used, 0
        specials = merges.specials
        while True:
            at = kernels().encode_block(
                data, at, filled, is_final, specials.longest, kernels().kinds, specials.firsts, specials.bytes,
                specials.starts, merges.special_ids, merges.end_of_text, merges.byte_ids, merges.byte_ranks,
                merges.pairs, merges.pair_keys, merges.first_product, merges.products, *self._scratch,
                self._short, self._long, self._arena, self._many, out, merges.wide, used,
            )  # fmt: skip
            if used[STATUS] == MORE_TEXT:
                return at
            if used[STATUS] == MORE_ROOM:
                self._make_room()
            else:
                word = data[at : used[WORD_END]].tobytes()
                ids = np.array(merges.merge(word), "<u4" if merges.wide else "<u2").view(np.uint8)
                out[used[OUT_USED] : used[OUT_USED] + len(ids)] = ids
                used[OUT_USED] += len(ids)
                at = int(used[WORD_END])

    def _make_room(self) -> None:
        """Larger tables, or empty ones where they are at their largest."""
        used, short, long = self._used, self._short, self._long
        if len(short) >= ENTRY * MOST_SHORT or len(long) >= ENTRY * MOST_LONG:
            short[:] = long[:] = 0
            used[[SHORT_USED, LONG_USED, ARENA_USED, MANY_USED]] = 0
            return
        self._short, self._long = (new_table(GROWTH * len(table) // ENTRY) for table in (short, long))
        kernels().move_entries(short, long, self._short, self._long)
        arena, many = self._arena, self._many
        self._arena, self._many = _arenas(len(self._short) // ENTRY)
        self._arena[: used[ARENA_USED]] = arena[: used[ARENA_USED]]
        self._many[: used[MANY_USED]] = many[: used[MANY_USED]]


def _arenas(num_entries: int) -> tuple[np.ndarray, np.ndarray]:
    """Room for the bytes of long pre-tokens, and for ids, for a table of so many entries."""
    batch = LONGEST_KEPT * STARTS
    return np.empty(4 * num_entries + batch + PADDING, np.uint8), np.empty(num_entries + batch, np.int32)


class EncoderPool:
    """Encoders of one tokenizer, for any number of threads; what they remember stays for the next text.

    They begin with the vocabulary's own tokens, most of which come up as pre-tokens.
    """

    def __init__(self, plain: PreTokenEncoder, special_ids: dict[str, int], vocab: dict[int, bytes]) -> None:
        self._fresh = Encoder(Merges(plain, special_ids, max(vocab) + 1))
        tokens = filter(bytes.isascii, vocab.values())
        self._fresh.encode_text(b"".join([token if token.startswith(b" ") else b"\n" + token for token in tokens]))
        self._idle = [self._fresh.copy()]
        self._lock = Lock()

    @contextmanager
    def _encoder(self) -> Iterator[Encoder]:
        with self._lock:
            encoder = self._idle.pop() if self._idle else self._fresh.copy()
        try:
            yield encoder
        finally:
            with self._lock:
                self._idle.append(encoder)

    def encode(self, text: bytes) -> npt.NDArray[np.unsignedinteger]:
        """Ids of valid UTF-8: uint16 up to 65,536 ids, else uint32."""
        with self._encoder() as encoder:
            return encoder.encode_text(text)

    def encode_spans(
        self, spans: list[Span], num_threads: int, errors: Errors = "strict"
    ) -> Generator[EncodedChunk, None, None]:
        """Ids of spans of files, in order; holds a few spans' at a time.

        Raises:
            ValueError: a file is not UTF-8.
        """
        if num_threads == 1 or len(spans) == 1:
            for span in spans:
                with self._encoder() as encoder:
                    yield from encoder.encode_span(span, errors)
            return
        tasks: SimpleQueue[tuple[int, Span] | None] = SimpleQueue()
        done: SimpleQueue[tuple[int, list[EncodedChunk] | Exception]] = SimpleQueue()
        stop = Event()

        def work() -> None:
            while (task := tasks.get()) and not stop.is_set():
                index, span = task
                try:
                    with self._encoder() as encoder:
                        chunks = takewhile(lambda _: not stop.is_set(), encoder.encode_span(span, errors))
                        done.put((index, list(chunks)))
                except Exception as error:
                    done.put((index, error))

        threads = [Thread(target=work, daemon=True) for _ in range(num_threads)]
        for thread in threads:
            thread.start()
        early: dict[int, list[EncodedChunk] | Exception] = {}
        ahead = 2 * num_threads
        try:
            for task in enumerate(spans[:ahead]):
                tasks.put(task)
            for index in range(len(spans)):
                while index not in early:
                    found, result = done.get()
                    early[found] = result
                result = early.pop(index)
                if isinstance(result, Exception):
                    raise result  # from here, so that the traceback ends in our own code
                if index + ahead < len(spans):
                    tasks.put((index + ahead, spans[index + ahead]))
                yield from result
        finally:
            stop.set()
            for _ in threads:
                tasks.put(None)
            for thread in threads:
                thread.join()
