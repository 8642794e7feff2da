"""Ids against the definition and against tiktoken: python -m benchmarks.bpe_exact --tokenizer FOLDER [--texts FILE ...]

A million random texts with every category of character, script and contraction in every neighbourhood, encoded by
compiled code and by the short reference in plain Python; and whole files against tiktoken with the same vocabulary.
"""

import argparse
import random
import unicodedata
from collections import defaultdict
from pathlib import Path

import numpy as np
import tiktoken
from tqdm import tqdm

from benchmarks.machine import save
from lm.export.tokenizer_formats import GPT2_PATTERN
from lm.tokenizer import Tokenizer

CONTRACTIONS = ["'s", "'t", "'ll", "'ve", "'re", "'d", "'m", "'S", "''", " '", "\n\t's", "\n't", "\t'll", "\u00a0's"]
SPECIAL = ["<|endoftext|>", "<|endoftext", "|>"]
PIECES = [*CONTRACTIONS, *SPECIAL, "\r\n", "  ", " \n ", "don't", "\x00", "x" * 8, "x" * 17, "12", "3.5"]


def pools() -> list[list[str]]:
    """Characters by category, and by the first word of their names, which mostly is the script."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for code in [*range(0xD800), *range(0xE000, 0x110000)]:
        character = chr(code)
        found[unicodedata.category(character)].append(character)
        if name := unicodedata.name(character, ""):
            found[name.split()[0]].append(character)
    return list(found.values())


def random_text(rng: random.Random, characters: list[list[str]]) -> str:
    parts = []
    for _ in range(rng.randint(1, 8)):
        chance = rng.random()
        if chance < 0.35:
            parts.append(rng.choice(PIECES))
        elif chance < 0.5:
            parts.append("".join(rng.choices("abcXYZ '\n\t.,019", k=rng.randint(1, 12))))
        else:
            parts.append("".join(rng.choices(rng.choice(characters), k=rng.randint(1, 4))))
    return "".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder with vocab.json and merges.txt")
    parser.add_argument("--texts", type=Path, nargs="*", default=[])
    parser.add_argument("--number", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("bench/bpe_exact.json"))
    options = parser.parse_args()
    tokenizer = Tokenizer.from_folder(options.tokenizer)
    compiled = tokenizer.encoders(1 << 30)
    assert compiled is not None
    special = set(tokenizer.special_ids.values())
    ranks = {token: id_ for id_, token in tokenizer.vocab.items() if id_ not in special}
    rival = tiktoken.Encoding(
        "exact", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens=tokenizer.special_ids
    )
    results: dict[str, int] = {}
    for text in options.texts:
        content = text.read_text(encoding="utf-8")
        ids = compiled.encode(content.encode())
        expected = rival.encode_to_numpy(content, allowed_special="all")
        differing = len(ids) != len(expected) or int((ids != expected).sum())
        results[text.name] = int(differing)
        print(f"{text.name}: {len(ids):,} ids, {int(differing)} differ from tiktoken's", flush=True)
    rng, characters = random.Random(options.seed), pools()
    differing = 0
    for _ in tqdm(range(options.number)):
        text = random_text(rng, characters)
        if not np.array_equal(compiled.encode(text.encode()), np.array(tokenizer.encode(text))):
            differing += 1
            print(f"differs: {text!r}")
    results["random texts"] = options.number
    results["random texts that differ from the reference"] = differing
    print(f"{options.number:,} random texts: {differing} differ from the reference")
    save(options.output, results)
    raise SystemExit(1 if any(value for name, value in results.items() if name != "random texts") else 0)


if __name__ == "__main__":
    main()
