"""Tokenizers in other tools' files: Hugging Face's tokenizer.json, tiktoken's rank file, GPT-2's two files.

tokenizer.json holds GPT-2's two files in one, with the special tokens written as they are. A rank file holds the
tokens alone: the merges follow from their order, as tiktoken joins whatever makes the token of lowest rank.
"""

import base64
import binascii
import json
import tempfile
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from lm.export.files import new_folder, read_json, require_free, write_json, write_new_file
from lm.tokenizer import END_OF_TEXT, Tokenizer
from lm.tokenizer.files import MERGES, VERSION, VOCAB

TOKENIZER_JSON = "tokenizer.json"
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# The order of the contractions does not matter, as none begins another.
_GPT2_PATTERNS = (GPT2_PATTERN, r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


def write_huggingface(tokenizer: Tokenizer, folder: Path, context_length: int | None = None) -> None:
    """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json into an existing folder.

    Args:
        tokenizer: what to write.
        folder: takes the three files.
        context_length: most tokens that the model takes, if there is a model.

    Raises:
        ValueError: a special token reads like another token in GPT-2's printable form.
    """
    end = END_OF_TEXT if END_OF_TEXT in tokenizer.special_ids else None
    special = {} if end is None else {"bos_token": end, "eos_token": end, "pad_token": end}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special,
        "add_bos_token": False,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        **({} if context_length is None else {"model_max_length": context_length}),
    }
    write_json(folder / TOKENIZER_JSON, _tokenizer_json(tokenizer))
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "special_tokens_map.json", special)


def export_huggingface(tokenizer: Tokenizer, output: Path) -> None:
    """Make a folder that `AutoTokenizer.from_pretrained` opens.

    Raises:
        FileExistsError: the output is there already.
        ValueError: as `write_huggingface`.
    """
    with new_folder(output) as folder:
        write_huggingface(tokenizer, folder)


def export_tiktoken(tokenizer: Tokenizer, output: Path) -> None:
    """Write a rank file as `tiktoken.load.load_tiktoken_bpe` reads it; special tokens have no place in it.

    Raises:
        FileExistsError: the output is there already.
        ValueError: the merges do not follow from the ids, as tiktoken needs it.
    """
    require_free(output)
    special_ids = set(tokenizer.special_ids.values())
    ranks = {token: id_ for id_, token in sorted(tokenizer.vocab.items()) if id_ not in special_ids}
    if _merges_of(ranks) != tokenizer.merges:
        raise ValueError(
            "tiktoken merges by the order of the ids, and this tokenizer's merges are ordered otherwise; "
            "export it as huggingface"
        )
    lines = [base64.b64encode(token) + b" " + str(id_).encode() + b"\n" for token, id_ in ranks.items()]
    write_new_file(output, b"".join(lines))


def read_tokenizer(source: Path, special_tokens: Mapping[str, int] | None = None) -> Tokenizer:
    """A tokenizer out of other tools' files.

    Args:
        source: tokenizer.json, a folder with it or with vocab.json and merges.txt, or a rank file.
        special_tokens: ids of the special tokens of a rank file, which has none; by default <|endoftext|> with the
            first free id.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or what it describes is not byte-level BPE as GPT-2's.
    """
    if source.is_dir():
        source = next((source / name for name in (TOKENIZER_JSON, VOCAB) if (source / name).exists()), source)
    if not source.is_file():
        raise FileNotFoundError(f"there is no {TOKENIZER_JSON}, {VOCAB} or rank file at {source}; check the path")
    if source.suffix != ".json":
        return _read_ranks(source, special_tokens)
    if special_tokens:
        raise ValueError(f"special_tokens are for rank files; {source} brings its own, leave the option out")
    return Tokenizer.from_folder(source.parent) if source.name == VOCAB else _read_tokenizer_json(source)


def _tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        tokenizer.save(folder := Path(name) / "gpt2")
        text_of = {id_: text for text, id_ in json.loads((folder / VOCAB).read_text(encoding="utf-8")).items()}
        merges = (folder / MERGES).read_text(encoding="utf-8").split("\n")[1:-1]
    text_of |= {id_: text for text, id_ in tokenizer.special_ids.items()}
    vocab = {text: id_ for id_, text in text_of.items()}
    if len(vocab) < len(text_of):
        doubled = next(text for id_, text in text_of.items() if vocab[text] != id_)
        raise ValueError(f"special token {doubled!r} reads like another token in GPT-2's form; rename it")
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": id_,
                "content": text,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for text, id_ in sorted(tokenizer.special_ids.items(), key=lambda item: item[1])
        ],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": merges,
        },
    }


def _read_tokenizer_json(path: Path) -> Tokenizer:
    content = read_json(path)
    try:
        _require_gpt2(content)
        model = content["model"]
        special_ids = {token["content"]: token["id"] for token in content["added_tokens"]}
        vocab = {text: id_ for text, id_ in model["vocab"].items() if text not in special_ids}
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a tokenizer.json of Hugging Face ({error!r}); fetch it again") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    with tempfile.TemporaryDirectory() as name:
        write_json(Path(name) / VOCAB, vocab)
        (Path(name) / MERGES).write_text("\n".join([VERSION, *merges]) + "\n", encoding="utf-8", newline="\n")
        try:
            base = Tokenizer.from_files(Path(name) / VOCAB, Path(name) / MERGES)
        except ValueError as error:
            raise ValueError(str(error).replace(f"{name}/", f"{path}: ")) from None
    return _with_specials(path, base.vocab, base.merges, special_ids)


def _require_gpt2(content: dict[str, Any]) -> None:
    """Raises ValueError naming the first setting that our tokenizer has not got."""
    model = content["model"]
    if model["type"] != "BPE":
        raise ValueError(f"the model is {model['type']}; lm reads BPE only")
    for name in (
        "dropout",
        "unk_token",
        "continuing_subword_prefix",
        "end_of_word_suffix",
        "byte_fallback",
        "ignore_merges",
    ):
        if model.get(name):
            raise ValueError(f"model.{name} is {model[name]!r}; lm's BPE has none")
    if content.get("normalizer"):
        raise ValueError(f"the normalizer is {content['normalizer']['type']}; lm changes no text before it is split")
    _require_gpt2_split(content.get("pre_tokenizer"))
    post = content.get("post_processor")
    if post and post["type"] != "ByteLevel":
        raise ValueError(f"the post_processor is {post['type']}, which may add tokens; lm adds none")
    for token in content["added_tokens"]:
        for flag in ("single_word", "lstrip", "rstrip"):
            if token.get(flag):
                raise ValueError(f"added token {token['content']!r} has {flag}; lm's special tokens match anywhere")


def _require_gpt2_split(pre_tokenizer: dict[str, Any] | None) -> None:
    steps = [] if pre_tokenizer is None else pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    kinds = [step["type"] for step in steps]
    if kinds == ["Split", "ByteLevel"]:
        pattern = steps[0]["pattern"].get("Regex", steps[0]["pattern"])
        if pattern not in _GPT2_PATTERNS or steps[0]["behavior"] != "Isolated" or steps[0].get("invert"):
            raise ValueError(f"text is split by {pattern!r}; lm has GPT-2's pattern only")
    elif kinds != ["ByteLevel"]:
        raise ValueError(f"the pre_tokenizer is {' + '.join(kinds) or None}; lm has GPT-2's ByteLevel only")
    if steps[-1]["add_prefix_space"]:
        raise ValueError("the pre_tokenizer has add_prefix_space; lm adds no space before a text")
    if steps[-1].get("use_regex", True) != (len(steps) == 1):
        raise ValueError(
            f"the pre_tokenizer's use_regex is {steps[-1]['use_regex']}; lm splits by GPT-2's pattern once"
        )


def _read_ranks(path: Path, special_tokens: Mapping[str, int] | None) -> Tokenizer:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise ValueError(
                f"{path}, line {number}: not a token in base64 and its rank, as tiktoken writes them; fetch it again"
            ) from None
    vocab = {rank: token for token, rank in ranks.items()}
    if len(vocab) < len(ranks):
        raise ValueError(f"{path}: {len(ranks) - len(vocab)} ranks are given to two tokens; fetch it again")
    if special_tokens is None:
        special_tokens = {END_OF_TEXT: next(id_ for id_ in range(len(vocab) + 1) if id_ not in vocab)}
    return _with_specials(path, vocab, _merges_of(ranks), special_tokens)


def _with_specials(
    path: Path, vocab: dict[int, bytes], merges: list[tuple[bytes, bytes]], special_ids: Mapping[str, int]
) -> Tokenizer:
    """Special tokens at their ids, and a check that every other token is a byte or made by a merge."""
    reachable = {left + right for left, right in merges}
    for id_, token in vocab.items():
        if len(token) != 1 and token not in reachable:
            raise ValueError(f"{path}: no merge makes token {token!r} (id {id_}), and it is no special token")
    whole = dict(vocab)
    for text, id_ in special_ids.items():
        if not isinstance(text, str) or type(id_) is not int or id_ < 0:
            raise ValueError(f"{path}: special token {text!r} has the id {id_!r}; it must be a whole number from 0")
        if id_ in whole:
            raise ValueError(f"{path}: special token {text!r} and token {whole[id_]!r} both have the id {id_}")
        whole[id_] = text.encode()
    return Tokenizer(whole, merges, list(special_ids))


def _merges_of(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The merge behind each token of several bytes: the two tokens that those of lower rank join it to.

    Raises ValueError for a token that those of lower rank do not make.
    """
    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        if len(token) == 1:
            continue
        parts = [bytes([byte]) for byte in token]
        while len(parts) > 2:
            rank, at = min((ranks.get(a + b, ranks[token]), i) for i, (a, b) in enumerate(pairwise(parts)))
            if rank >= ranks[token]:
                break
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        if len(parts) != 2:
            raise ValueError(f"no two tokens of lower rank make token {token!r} (rank {ranks[token]})")
        merges.append((parts[0], parts[1]))
    return merges
