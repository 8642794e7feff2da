"""Text, tokenizers and token files."""

from pathlib import Path
from typing import Literal

from lm.data.sources import SourceName, StoryCorpus
from lm.terminal import printable_json, say
from lm.tokenizer import END_OF_TEXT


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
) -> None:
    """Make what `fit` needs, without training: the text, the tokenizer and the token files.

    Args:
        source: stories (embedded generator), tinystories or openwebtext (downloaded), or text (your files).
        train_text: UTF-8 training text for source text; documents separated by lines <|endoftext|>.
        valid_text: UTF-8 validation text for source text.
        vocab_size: ids of a newly trained tokenizer.
        tokenizer: folder of a tokenizer to use, trained there first if the folder is missing.
        data_dir: folder for text and token files.
        tokenizers_dir: folder for trained tokenizers.
        stories: size and seeds of source stories.
        workers: processes for counting and encoding; by default one a core.
    """
    from lm.data.prepare import prepare as prepare_data
    from lm.data.tokens import TokenFiles

    prepared = prepare_data(
        source, train_text, valid_text, vocab_size, tokenizer, data_dir, tokenizers_dir, stories, workers
    )
    meta = TokenFiles(prepared.tokens).meta
    say(f"tokenizer: {prepared.tokenizer} ({meta.vocab_size:,} ids)")
    for name, split in (("train", meta.train), ("valid", meta.valid)):
        line = f"{name}: {prepared.tokens / name}.npy ({split.tokens:,} tokens, {split.bytes_per_token:.3f} bytes each)"
        if split.irreducible is not None:
            line += f", irreducible loss {split.irreducible:.4f} nats per token"
        say(line)
    if meta.overlap:
        say(meta.overlap)


def train_tokenizer(
    texts: list[str],
    output: Path,
    vocab_size: int = 10_000,
    special_tokens: list[str] | None = None,
    errors: Literal["strict", "replace"] = "strict",
    workers: int | None = None,
) -> None:
    """Train a byte-level BPE tokenizer and save vocab.json and merges.txt.

    Args:
        texts: UTF-8 texts, documents separated by lines <|endoftext|>; files of counts, made by `count`; or both.
        output: folder to write, for example tokenizers/mine; it must not hold a tokenizer yet.
        vocab_size: 256 bytes, the special tokens and the merges together.
        special_tokens: tokens that split the text and never merge; by default <|endoftext|>.
        errors: strict refuses bytes that are not UTF-8; replace puts U+FFFD in their place.
        workers: threads for counting; by default one a core.
    """
    from lm.tokenizer import Tokenizer, train_bpe
    from lm.tokenizer.pretokenize import text_file

    if (output / "vocab.json").exists():
        raise FileExistsError(f"{output} already holds a tokenizer; name another folder, or delete it first")
    specials = special_tokens or [END_OF_TEXT]
    paths = [text_file(text) for text in _named(texts)]
    if not any(path.stat().st_size for path in paths):
        raise ValueError(f"{paths[0]} is empty; give a file with text in it")
    vocab, merges = train_bpe(paths, vocab_size, specials, workers, progress=True, errors=errors)
    Tokenizer(vocab, merges, specials).save(output)
    longest = max(vocab.values(), key=len)
    say(f"{output}: {len(vocab):,} tokens, {len(merges):,} merges, longest {longest.decode(errors='replace')!r}")


def count(
    texts: list[str],
    output: Path,
    special_tokens: list[str] | None = None,
    errors: Literal["strict", "replace"] = "strict",
    shard: int = 0,
    shards: int = 1,
    workers: int | None = None,
) -> None:
    """Count the pre-tokens of texts, or of one shard of each, for `train-tokenizer`.

    Args:
        texts: UTF-8 texts; documents separated by lines <|endoftext|>.
        output: the file to write; it must end in .counts.
        special_tokens: as for `train-tokenizer`; by default <|endoftext|>.
        errors: strict refuses bytes that are not UTF-8; replace puts U+FFFD in their place.
        shard: which part of each text, from 0 on.
        shards: how many parts there are.
        workers: threads; by default one a core.
    """
    from lm.tokenizer.counting import count_files
    from lm.tokenizer.pretokenize import COUNTS, SpecialTokens, checked_workers, text_file

    if output.suffix != COUNTS:
        raise ValueError(f"the output {output} must end in {COUNTS}")
    specials = SpecialTokens(special_tokens or [END_OF_TEXT])
    paths = [text_file(text) for text in _named(texts)]
    counts = count_files(paths, specials, checked_workers(workers), True, (shard, shards), errors)
    counts.save(output, specials.tokens)
    say(f"{output}: {len(counts):,} different pre-tokens, {counts.total:,} in all")


def encode(
    tokenizer: Path,
    text: Path,
    output: Path,
    errors: Literal["strict", "replace"] = "strict",
    shard: int = 0,
    shards: int = 1,
    workers: int | None = None,
) -> None:
    """Turn a text file into a .npy file of token ids (uint16 up to 65,536 ids, else uint32).

    Args:
        tokenizer: folder with vocab.json and merges.txt.
        text: UTF-8 text.
        output: the .npy file to write.
        errors: strict refuses bytes that are not UTF-8; replace puts U+FFFD in their place.
        shard: which part of the text, from 0 on; `join-tokens` puts the parts together.
        shards: how many parts there are.
        workers: threads; by default one a core.
    """
    from lm.data.encode import encode_file
    from lm.tokenizer import Tokenizer

    if output.suffix != ".npy":
        raise ValueError(f"the output {output} must end in .npy")
    encoded = encode_file(Tokenizer.from_folder(tokenizer), text, output, workers, True, errors, (shard, shards))
    ratio = encoded.bytes / max(encoded.tokens, 1)
    say(f"{output}: {encoded.tokens:,} tokens, {encoded.documents:,} documents, {ratio:.3f} bytes per token")


def join_tokens(parts: list[str], output: Path) -> None:
    """Put the token files of a text's shards together, in the order given.

    Args:
        parts: .npy files that `encode --shard` wrote.
        output: the .npy file to write.
    """
    from lm.data.encode import join_token_files

    if output.suffix != ".npy":
        raise ValueError(f"the output {output} must end in .npy")
    say(f"{output}: {join_token_files([Path(part) for part in parts], output):,} tokens")


def tokenizer_stats(texts: list[str], tokenizers: Path = Path("tokenizers"), json: bool = False) -> None:
    """Bytes per token of tokenizers on texts, their longest tokens, and how fast they encode.

    Args:
        texts: UTF-8 texts; documents separated by lines <|endoftext|>.
        tokenizers: a folder of tokenizers, or a tokenizer.
        json: print JSON instead of a table.
    """
    from lm.data.tokenizer_stats import as_table, statistics

    found = statistics([Path(text) for text in _named(texts)], tokenizers)
    say(printable_json(found, indent=2) if json else as_table(found))


def _named(texts: list[str]) -> list[str]:
    if not texts:
        raise ValueError("no text is named; name at least one file")
    return texts
