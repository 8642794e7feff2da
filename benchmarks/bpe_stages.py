"""The write-up's table of stages on one text: python -m benchmarks.bpe_stages --text FILE [--vocab_size 10000]

Each stage trains on the same text and must give the same merges: merging by looking at all words again for every merge;
merging with incremental pair counts; counting by several processes, each with its share of the text in memory;
counting by several processes that stream; compiled code on one thread, and on all. Each stage runs by itself; its peak
memory is that of all its processes together, each at its own peak.
"""

import argparse
import hashlib
import json
import multiprocessing
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path

from benchmarks.machine import save
from lm.tokenizer.pretokenize import PRE_TOKEN, Span, SpecialTokens, checked_workers, read_text

END_OF_TEXT = "<|endoftext|>"
SPECIALS = SpecialTokens([END_OF_TEXT])
Merges = list[tuple[bytes, bytes]]
Counts = Counter[str]


def pre_tokens(pieces: Iterable[str]) -> Counts:
    return Counter(
        token for piece in pieces for part in SPECIALS.split(piece)[::2] for token in PRE_TOKEN.findall(part)
    )


def held(span: Span) -> Counts:
    """Pre-tokens of a span that is in memory as a whole."""
    return pre_tokens(["".join(read_text(span))])


def streamed(span: Span) -> Counts:
    """Pre-tokens of a span of which a few thousand characters are in memory at a time."""
    return pre_tokens(SPECIALS.stream(read_text(span)))


def by_processes(count: Callable[[Span], Counts], spans: Iterable[Span]) -> Counts:
    total: Counts = Counter()
    with multiprocessing.get_context("spawn").Pool(checked_workers(None)) as pool:
        for counts in pool.imap_unordered(count, spans):
            total.update(counts)
        pool.close()
        pool.join()  # so that the system knows the processes' peaks
    return total


def naive(counts: Counts, vocab_size: int) -> Merges:
    """The definition: count all pairs of all words anew for every merge."""
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


def incremental(counts: Counts, vocab_size: int) -> Merges:
    from lm.tokenizer.train import _merge

    tokens = [bytes([byte]) for byte in range(256)] + [END_OF_TEXT.encode()]
    return _merge(counts, tokens, vocab_size, progress=False)


def compiled(text: Path, vocab_size: int, threads: int | None) -> Merges:
    from lm.tokenizer import train_bpe

    return train_bpe(text, vocab_size, [END_OF_TEXT], num_workers=threads)[1]


def whole(text: Path) -> Span:
    return SPECIALS.shard(text)


def shares(text: Path) -> list[Span]:
    """A share of the text for each process."""
    number = checked_workers(None)
    return [SPECIALS.shard(text, index, number) for index in range(number)]


STAGES: dict[str, Callable[[Path, int], Merges]] = {
    "naive merging": lambda text, size: naive(held(whole(text)), size),
    "incremental merging": lambda text, size: incremental(held(whole(text)), size),
    "several processes": lambda text, size: incremental(by_processes(held, shares(text)), size),
    "bounded memory": lambda text, size: incremental(by_processes(streamed, SPECIALS.spans(whole(text))), size),
    "compiled, 1 thread": lambda text, size: compiled(text, size, 1),
    "compiled, all cores": lambda text, size: compiled(text, size, None),
}


def peak_memory() -> float:
    """In MB, of this process and of those it had, if any."""
    own, largest = (resource.getrusage(who).ru_maxrss / 1e3 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own + checked_workers(None) * largest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--vocab_size", type=int, default=10_000)
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--output", type=Path, default=Path("bench/bpe_stages.json"))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        if options.worker.startswith("compiled"):
            from lm.tokenizer.native import kernels

            kernels()  # compiling, once a machine, is not counted
        start = time.perf_counter()
        merges = STAGES[options.worker](options.text, options.vocab_size)
        seconds = time.perf_counter() - start
        digest = hashlib.sha256(repr(merges).encode()).hexdigest()
        print(json.dumps({"seconds": seconds, "peak_MB": peak_memory(), "merges": digest}))
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
