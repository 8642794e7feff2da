"""From a text file to a file of token ids."""

import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from lm.tokenizer import END_OF_TEXT, Tokenizer
from lm.tokenizer.pretokenize import SPAN, Span, SpecialTokens, read_text, text_file
from lm.tokenizer.workers import map_spans

MOST_UINT16_IDS = 1 << 16
CACHE_SIZE = 1 << 16  # pre-tokens that each process remembers; some 10 MB


@dataclass(frozen=True)
class EncodedFile:
    """What was encoded.

    Attributes:
        tokens: ids in the file.
        bytes: UTF-8 bytes of the text without its special tokens.
        documents: pieces between end-of-text tokens that hold more than whitespace.
    """

    tokens: int
    bytes: int
    documents: int


def encode_file(
    tokenizer: Tokenizer,
    text_path: str | Path,
    npy_path: str | Path,
    num_workers: int | None = None,
    progress: bool = False,
) -> EncodedFile:
    """Encode a UTF-8 file just as `tokenizer.encode` would encode its text, in bounded memory.

    Several processes share the file, cut at end-of-text tokens. The result appears under its name when it is whole.

    Args:
        tokenizer: if it lacks the end-of-text token, one process does all, and the file is one document.
        text_path: raw text; nothing is stripped, newlines stay as they are.
        npy_path: a one-dimensional array, uint16 up to 65,536 ids, else uint32.
        num_workers: by default one a core.
        progress: show a bar.

    Raises:
        FileNotFoundError: there is no such text.
        ValueError: the text is empty or not UTF-8.
    """
    text_path, npy_path = text_file(text_path), Path(npy_path)
    if not text_path.stat().st_size:
        raise ValueError(f"{text_path} is empty; give a file with text in it")
    specials = SpecialTokens(tokenizer.special_ids)
    spans = list(specials.spans(text_path, at={END_OF_TEXT} & set(specials.tokens)))
    caching = Tokenizer(tokenizer.vocab, tokenizer.merges, specials.tokens, CACHE_SIZE)
    label = "encoding" if progress else None
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= MOST_UINT16_IDS else "<u4")
    tokens = text_bytes = documents = 0
    npy_path.parent.mkdir(parents=True, exist_ok=True)
    temporary = npy_path.with_name(f".{npy_path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            # The number of ids comes last; numpy pads the header so that one of another length fits its place.
            start = _write_header(file, dtype, 0)
            with closing(map_spans(partial(_encode_span, caching, dtype), spans, num_workers, label)) as parts:
                for ids, part_bytes, part_documents in parts:
                    file.write(ids.tobytes())
                    tokens += len(ids)
                    text_bytes += part_bytes
                    documents += part_documents
            file.seek(0)
            assert _write_header(file, dtype, tokens) == start
        os.replace(temporary, npy_path)
    finally:
        temporary.unlink(missing_ok=True)
    return EncodedFile(tokens, text_bytes, documents)


def _write_header(file: BinaryIO, dtype: np.dtype[np.unsignedinteger], length: int) -> int:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(file, header)
    return file.tell()


def _encode_span(
    tokenizer: Tokenizer, dtype: np.dtype[np.unsignedinteger], span: Span
) -> Iterator[tuple[int, tuple[npt.NDArray[np.unsignedinteger], int, int]]]:
    """Ids, bytes and documents of a span that begins a document, about every SPAN bytes, with the bytes read."""
    specials = SpecialTokens(tokenizer.special_ids)
    arrays: list[npt.NDArray[np.unsignedinteger]] = []
    num_bytes = text_bytes = documents = 0
    in_document = False
    for piece in specials.stream(read_text(span)):
        arrays.append(np.array(tokenizer.encode(piece), dtype))
        num_bytes += len(piece.encode())
        for index, part in enumerate(specials.split(piece)):
            if part == END_OF_TEXT and index % 2:
                in_document = False
                continue
            if not in_document and part and not part.isspace():
                in_document = True
                documents += 1
            if index % 2 == 0:
                text_bytes += len(part.encode())
        if num_bytes >= SPAN:
            yield num_bytes, (np.concatenate(arrays), text_bytes, documents)
            arrays, num_bytes, text_bytes, documents = [], 0, 0, 0
    if arrays:
        yield num_bytes, (np.concatenate(arrays), text_bytes, documents)
