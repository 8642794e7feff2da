"""BPE training against rivals: python -m benchmarks.bpe_train --tinystories FILE --web FILE

In a warm process (the first training of each process is not counted), and as a whole process from start to files on
disk, in turns. What takes a minute, HF tokenizers, is trained once, in a fresh process. tiktoken has no trainer for
more than a lesson. Prints how many times faster than the fastest rival we are, and where its merges first part from
ours: all rivals break ties in their own way, so equal rules show in equal merges up to a tie.
`pip install -e ".[bench]"` installs the rivals.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.machine import median, ratio_to_fastest, save
from benchmarks.texts import resampled

END_OF_TEXT = "<|endoftext|>"
Merges = list[tuple[bytes, bytes]]


def ours(text: str, vocab_size: int, threads: int) -> Callable[[], Merges]:
    from lm.tokenizer import train_bpe

    _, merges = train_bpe(text, vocab_size, [END_OF_TEXT], num_workers=threads)
    return lambda: merges


def gigatoken(text: str, vocab_size: int, threads: int) -> Callable[[], Merges]:
    rival: Any = import_module("gigatoken")

    source = rival.TextFileSource([text], separator=END_OF_TEXT)
    _, merges = rival.train_bpe(source, vocab_size, [END_OF_TEXT], separator=END_OF_TEXT.encode())
    return lambda: merges


def gigabpe(text: str, vocab_size: int, threads: int) -> Callable[[], Merges]:
    rival: Any = import_module("gigabpe")

    _, merges = rival.train_bpe(
        [text], vocab_size, special_tokens=[END_OF_TEXT], pretokenizer="bytelevel", threads=threads
    )
    return lambda: _from_printable(merges)


def huggingface(text: str, vocab_size: int, threads: int) -> Callable[[], Merges]:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train([text], trainer)
    return lambda: _from_printable(json.loads(tokenizer.to_str())["model"]["merges"])


def _from_printable(pairs: list[tuple[str, str]]) -> Merges:
    from lm.tokenizer.files import read_merges

    with TemporaryDirectory() as folder:
        path = Path(folder) / "merges.txt"
        path.write_text("".join(f"{left} {right}\n" for left, right in pairs), encoding="utf-8")
        return read_merges(path)


# Each trains, and returns what gives its merges.
TRAINERS: dict[str, Callable[[str, int, int], Callable[[], Merges]]] = {
    "lm": ours, "gigatoken": gigatoken, "gigabpe": gigabpe, "HF tokenizers": huggingface,
}  # fmt: skip
INSTALLED_AS: dict[str, str] = {"HF tokenizers": "tokenizers"}
SLOW = {"HF tokenizers"}
# Whole processes, as a user would write them: OUT is a folder.
SCRIPTS = {
    "lm": "import sys; from lm.cli import main; sys.exit(main(['train-tokenizer', TEXT, OUT + '/tokenizer', "
    "'--vocab_size', str(VOCAB), '--workers', str(THREADS)]))",
    "gigatoken": "import json, gigatoken as g; v, m = g.train_bpe(g.TextFileSource([TEXT], separator='<|endoftext|>'), "
    "VOCAB, ['<|endoftext|>'], separator=b'<|endoftext|>'); "
    "json.dump({t.decode('latin-1'): i for i, t in v.items()}, open(OUT + '/vocab.json', 'w')); "
    "open(OUT + '/merges.txt', 'w').write('\\n'.join(f'{a.hex()} {b.hex()}' for a, b in m))",
    "gigabpe": "import gigabpe; gigabpe.train_tokenizer([TEXT], VOCAB, OUT + '/tokenizer.json', "
    "special_tokens=['<|endoftext|>'], pretokenizer='bytelevel', threads=THREADS)",
}


def environment(threads: int) -> dict[str, str]:
    return {
        **os.environ,
        "RAYON_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "true" if threads > 1 else "false",
    }


def warm(name: str, text: Path, vocab_size: int, threads: int, repeats: int) -> tuple[list[float], float, Merges]:
    """Seconds of each training but the first of a process (unless it is slow), its peak memory in MB, and merges."""
    with TemporaryDirectory() as folder:
        out = Path(folder) / "merges.json"
        arguments = [name, str(text), str(vocab_size), str(threads), str(repeats), str(out)]
        command = [sys.executable, "-m", "benchmarks.bpe_train", "--worker", *arguments]
        subprocess.run(command, env=environment(threads), check=True, capture_output=True)
        seconds, peak, merges = json.loads(out.read_text())
    return seconds, peak, [(bytes.fromhex(left), bytes.fromhex(right)) for left, right in merges]


def work(name: str, text: str, vocab_size: str, threads: str, repeats: str, out: str) -> None:
    seconds = []
    merges: Callable[[], Merges] = list
    for _ in range(1 if name in SLOW else int(repeats) + 1):
        start = time.perf_counter()
        merges = TRAINERS[name](text, int(vocab_size), int(threads))
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    pairs = [(left.hex(), right.hex()) for left, right in merges()]
    Path(out).write_text(json.dumps([seconds[1:] or seconds, peak, pairs]))


def whole_process(name: str, text: Path, vocab_size: int, threads: int) -> float:
    with TemporaryDirectory() as folder:
        names = f"TEXT, OUT, VOCAB, THREADS = {str(text)!r}, {folder!r}, {vocab_size}, {threads}\n"
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-c", names + SCRIPTS[name]], env=environment(threads), check=True, capture_output=True
        )
        return time.perf_counter() - start


def parting(text: Path, ours: Merges, theirs: Merges) -> str:
    """Where two lists of merges part, and how often each one's next pair is in the text at that point."""
    same = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    if same == len(ours) == len(theirs):
        return "equal"
    if same in (len(ours), len(theirs)):
        return f"equal as far as merge {same}, where one ends"
    from lm.tokenizer.bpe import PreTokenEncoder
    from lm.tokenizer.counting import count_files
    from lm.tokenizer.pretokenize import SpecialTokens

    tokens = [bytes([byte]) for byte in range(256)] + [left + right for left, right in ours[:same]]
    encoder = PreTokenEncoder({token: id_ for id_, token in enumerate(tokens)}, ours[:same], 0)
    flat, starts, counts = count_files([text], SpecialTokens([END_OF_TEXT]), 1, False).words()
    frequencies: Counter[tuple[bytes, bytes]] = Counter()
    for (start, end), count in zip(pairwise(starts.tolist()), counts.tolist(), strict=True):
        for left, right in pairwise(encoder.merge(flat[start:end].tobytes())):
            frequencies[tokens[left], tokens[right]] += count
    our_count, their_count = frequencies[ours[same]], frequencies[theirs[same]]
    if our_count == their_count:
        return f"equal up to a tie at merge {same + 1}"
    return f"another rule: at merge {same + 1} ours is in the text {our_count:,} times, theirs {their_count:,} times"


def compare(text: Path, vocab_size: int, threads: int, trainers: list[str], repeats: int) -> dict[str, Any]:
    """One cell of the table; prints it."""
    cell: dict[str, Any] = {"text": text.name, "vocab_size": vocab_size, "threads": threads, "trainers": {}}
    print(f"{text.name} to {vocab_size:,} ids, {threads} threads", flush=True)
    measured = {name: warm(name, text, vocab_size, threads, repeats) for name in trainers}
    whole: dict[str, list[float]] = {name: [] for name in trainers if name in SCRIPTS}
    for _ in range(repeats):
        for name in whole:
            whole[name].append(whole_process(name, text, vocab_size, threads))
    for name, (seconds, peak, merges) in measured.items():
        row: dict[str, Any] = {"warm_s": median(seconds), "peak_MB": peak}
        shown = f"  {name:<14} warm {row['warm_s']:7.3f} s, {peak:5.0f} MB"
        if name in whole:
            row["whole_process_s"] = median(whole[name])
            shown += f", whole process {row['whole_process_s']:7.3f} s"
        if name != "lm" and "lm" in measured:
            row["merges"] = parting(text, measured["lm"][2], merges)
            shown += f"; merges {row['merges']}"
        cell["trainers"][name] = row
        print(shown, flush=True)
    cell["warm_ratio"] = ratio_to_fastest({name: median(seconds) for name, (seconds, _, _) in measured.items()})
    cell["whole_process_ratio"] = ratio_to_fastest({name: median(seconds) for name, seconds in whole.items()})
    print(f"  ratio to the fastest rival: warm {cell['warm_ratio']}, whole process {cell['whole_process_ratio']}")
    return cell


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tinystories", type=Path, help="TinyStories text; trained to 10,000 ids")
    parser.add_argument("--web", type=Path, help="web text; trained to 32,000 ids")
    parser.add_argument("--megabytes", type=int, nargs="+", default=[50, 200])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--trainers", nargs="+", default=list(TRAINERS), choices=list(TRAINERS))
    parser.add_argument("--folder", type=Path, default=Path("bench"), help="for texts and results")
    parser.add_argument("--worker", nargs=6, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(*options.worker)
        return
    trainers = [name for name in options.trainers if find_spec(INSTALLED_AS.get(str(name), str(name)))]
    texts = [(options.tinystories, 10_000), (options.web, 32_000)]
    cells = [
        compare(resampled(source, size * 1_000_000, options.folder), vocab_size, threads, trainers, options.repeats)
        for source, vocab_size in texts
        if source
        for size in options.megabytes
        for threads in options.threads
    ]
    save(options.folder / "bpe_train.json", cells)


if __name__ == "__main__":
    main()
