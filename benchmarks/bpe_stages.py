"""The write-up's table of stages on one text: python -m benchmarks.bpe_stages --text FILE [--vocab_size 10000]

Each stage trains on the same text and must give the same merges: merging by looking at all words again for every merge;
merging with incremental pair counts; compiled code on one thread, and on all. Peak memory is of a process of its own.
"""

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

from benchmarks.machine import save

END_OF_TEXT = "<|endoftext|>"
Merges = list[tuple[bytes, bytes]]


def naive(text: Path, vocab_size: int) -> Merges:
    """The definition: count all pairs of all words anew for every merge."""
    from lm.tokenizer.pretokenize import PRE_TOKEN

    counts = Counter(
        token for part in text.read_text(encoding="utf-8").split(END_OF_TEXT) for token in PRE_TOKEN.findall(part)
    )
    words = [([bytes([byte]) for byte in token.encode()], count) for token, count in counts.items()]
    merges: Merges = []
    while len(merges) < vocab_size - 257:
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for word, count in words:
            for pair in pairwise(word):
                pairs[pair] += count
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        for word, _ in words:
            place = 0
            while place < len(word) - 1:
                if (word[place], word[place + 1]) == best:
                    word[place : place + 2] = [best[0] + best[1]]
                place += 1
    return merges


def incremental(text: Path, vocab_size: int) -> Merges:
    from lm.tokenizer import layout, train

    train.LOAD_FROM = layout.LOAD_FROM = 1 << 62  # never the compiled way
    return train.train_bpe(text, vocab_size, [END_OF_TEXT])[1]


def compiled(text: Path, vocab_size: int, threads: int | None) -> Merges:
    from lm.tokenizer import train_bpe
    from lm.tokenizer.native import kernels

    kernels()  # compiling, once a machine, is not counted; loading is
    return train_bpe(text, vocab_size, [END_OF_TEXT], num_workers=threads)[1]


STAGES = {
    "naive merging": naive,
    "incremental merging": incremental,
    "compiled, 1 thread": lambda text, size: compiled(text, size, 1),
    "compiled, all cores": lambda text, size: compiled(text, size, None),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--vocab_size", type=int, default=10_000)
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--output", type=Path, default=Path("bench/bpe_stages.json"))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        start = time.perf_counter()
        merges = STAGES[options.worker](options.text, options.vocab_size)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        print(
            json.dumps(
                {"seconds": seconds, "peak_MB": peak, "merges": hashlib.sha256(repr(merges).encode()).hexdigest()}
            )
        )
        return
    rows = []
    for stage in options.stages:
        arguments = ["--text", str(options.text), "--vocab_size", str(options.vocab_size), "--worker", stage]
        command = [sys.executable, "-m", "benchmarks.bpe_stages", *arguments]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows.append({"stage": stage, **json.loads(done.stdout)})
        print(f"{stage:<22} {rows[-1]['seconds']:9.3f} s {rows[-1]['peak_MB']:7.0f} MB", flush=True)
    same = len({row["merges"] for row in rows}) == 1
    print("the same merges" if same else "THE MERGES DIFFER")
    save(options.output, rows)
    raise SystemExit(0 if same else 1)


if __name__ == "__main__":
    main()
