"""Raw text → tokenizer → token files: does whatever is missing, once, and reuses the rest.

Folders are named by what they hold (a digest of the text and of the tokenizer), so changed text or another
vocabulary never meets stale files.
"""

import hashlib
import json
import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path

from lm.data.digests import file_sha256, sampled_sha256
from lm.data.encode import encode_file
from lm.data.locks import is_writable, locked
from lm.data.overlap import shared_documents
from lm.data.sources import SourceName, StoryCorpus, TextFiles, resolve_source
from lm.data.tokens import FORMAT, SplitMeta, TokenFiles, TokenMeta, largest_id
from lm.tokenizer import END_OF_TEXT, Tokenizer, train_bpe

log = logging.getLogger("lm")


@dataclass(frozen=True)
class PreparedData:
    """Where the prepared pieces lie."""

    tokenizer: Path
    tokens: Path


def prepare(
    source: SourceName = "stories",
    train_text: Path | None = None,
    valid_text: Path | None = None,
    vocab_size: int = 10_000,
    tokenizer: Path | None = None,
    data_dir: Path = Path("data"),
    tokenizers_dir: Path = Path("tokenizers"),
    stories: StoryCorpus = StoryCorpus(),
    workers: int | None = None,
) -> PreparedData:
    """Make the tokenizer and the token files of a source, if they are not there yet.

    Where they are, the folders may be read-only; then a text's digest is worked out anew each time.

    Args:
        source: stories (embedded generator), tinystories or openwebtext (downloaded), or text (your files).
        train_text: UTF-8 training text for source text; documents separated by lines `<|endoftext|>`.
        valid_text: UTF-8 validation text for source text.
        vocab_size: ids of a newly trained tokenizer: 256 bytes, the end-of-text token and the merges.
        tokenizer: folder of a tokenizer to use, trained there first if the folder is missing; by default a folder
            of tokenizers_dir named after the source, the size and the text.
        data_dir: where text and token files are kept.
        tokenizers_dir: where trained tokenizers are kept.
        stories: size and seeds of source stories.
        workers: processes for counting and encoding; by default one a core.

    Raises:
        ValueError, OSError: the source, the text or the tokenizer cannot be used.
    """
    text = resolve_source(source, data_dir, train_text, valid_text, stories)
    folder = data_dir / text.name
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock", folder):
        digests = {split: _file_digest(path, folder) for split, path in text.splits.items()}
        if tokenizer is None:
            tokenizer = tokenizers_dir / f"{text.name}-{vocab_size}-{digests['train'][:8]}"
        trained = _tokenizer(tokenizer, text, vocab_size, workers)
        key = hashlib.sha256("".join([*digests.values(), trained.digest, str(FORMAT)]).encode()).hexdigest()[:8]
        tokens = folder / f"tokens-{trained.vocab_size}-{key}"
        if not (tokens / "meta.json").is_file():
            _encode(trained, tokenizer, text, digests, tokens, workers)
    return PreparedData(tokenizer, tokens)


def _tokenizer(folder: Path, text: TextFiles, vocab_size: int, workers: int | None) -> Tokenizer:
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.parent / f".{folder.name}.lock", folder.parent):
            if not folder.exists():
                log.info("training a tokenizer of %d ids on %s", vocab_size, text.splits["train"])
                vocab, merges = train_bpe(
                    text.splits["train"], vocab_size, [END_OF_TEXT], num_workers=workers, progress=True
                )
                Tokenizer(vocab, merges, [END_OF_TEXT]).save(folder)
    tokenizer = Tokenizer.from_folder(folder)
    if END_OF_TEXT not in tokenizer.special_ids:
        raise ValueError(
            f"the tokenizer in {folder} has no {END_OF_TEXT} token; train one with it, or add it to vocab.json"
        )
    if tokenizer.vocab_size > vocab_size:
        raise ValueError(
            f"the tokenizer in {folder} has {tokenizer.vocab_size} ids, vocab_size is {vocab_size}; "
            f"set vocab_size to at least {tokenizer.vocab_size}"
        )
    return tokenizer


def _encode(
    tokenizer: Tokenizer,
    tokenizer_folder: Path,
    text: TextFiles,
    digests: dict[str, str],
    folder: Path,
    workers: int | None,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for left_behind in folder.glob(".*.tmp"):  # by a process that was killed
        left_behind.unlink()
    splits = {}
    for split, path in text.splits.items():
        log.info("encoding %s", path)
        npy = folder / f"{split}.npy"
        encoded = encode_file(tokenizer, path, npy, num_workers=workers, progress=True)
        if not encoded.bytes:
            raise ValueError(f"{path} holds special tokens and no text; put documents between them")
        splits[split] = SplitMeta(
            tokens=encoded.tokens,
            bytes=encoded.bytes,
            documents=encoded.documents,
            source_sha256=digests[split],
            sha256=file_sha256(npy),
            sampled_sha256=sampled_sha256(npy),
            largest_id=largest_id(npy),
            nats=text.nats[split] if text.nats else None,
        )
    shared = shared_documents(text.splits["train"], text.splits["valid"])
    meta = TokenMeta(text.name, str(tokenizer_folder), tokenizer.digest, tokenizer.vocab_size, **splits)
    replace(meta, valid_in_train=shared).save(folder)
    TokenFiles(folder).check_ids(tokenizer.vocab_size)


def _file_digest(path: Path, folder: Path) -> str:
    """sha256 of a file, remembered in `folder` for as long as its size and time of change stay the same."""
    memory = folder / "digests.json"
    try:
        known: dict[str, list[str]] = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    stat = path.stat()
    stamp = f"{stat.st_size} {stat.st_mtime_ns}"
    name = str(path.resolve())
    if name in known and known[name][0] == stamp:
        return known[name][1]
    digest = file_sha256(path)
    if not is_writable(folder):
        return digest
    temporary = memory.with_suffix(".tmp")
    temporary.write_text(json.dumps({**known, name: [stamp, digest]}, indent=1), encoding="utf-8")
    os.replace(temporary, memory)
    return digest
