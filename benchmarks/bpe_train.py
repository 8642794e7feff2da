"""BPE training against the fastest rivals: python -m benchmarks.bpe_train --tinystories FILE --web FILE

In a warm process (the first training of each process is not counted), and as a whole process from start to files on
disk. Each rival runs in processes of its own, in turns. `pip install -e ".[bench]"` installs the rivals.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.machine import median, save
from benchmarks.texts import resampled

END_OF_TEXT = "<|endoftext|>"


def ours(text: str, vocab_size: int, threads: int) -> object:
    from lm.tokenizer import train_bpe

    return train_bpe(text, vocab_size, [END_OF_TEXT], num_workers=threads)


def gigatoken(text: str, vocab_size: int, threads: int) -> object:
    rival: Any = import_module("gigatoken")

    source = rival.TextFileSource([text], separator=END_OF_TEXT)
    return rival.train_bpe(source, vocab_size, [END_OF_TEXT], separator=END_OF_TEXT.encode())


def gigabpe(text: str, vocab_size: int, threads: int) -> object:
    rival: Any = import_module("gigabpe")

    return rival.train_bpe([text], vocab_size, special_tokens=[END_OF_TEXT], threads=threads)


def huggingface(text: str, vocab_size: int, threads: int) -> object:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train([text], trainer)
    return tokenizer


TRAINERS: dict[str, Callable[[str, int, int], object]] = {
    "lm": ours, "gigatoken": gigatoken, "gigabpe": gigabpe, "HF tokenizers": huggingface,
}  # fmt: skip
INSTALLED_AS: dict[str, str] = {"HF tokenizers": "tokenizers"}
# Whole processes, as a user would write them: OUT is a folder.
SCRIPTS = {
    "lm": "import sys; from lm.cli import main; sys.exit(main(['train-tokenizer', TEXT, OUT + '/tokenizer', "
    "'--vocab_size', str(VOCAB), '--workers', str(THREADS)]))",
    "gigatoken": "import json, gigatoken as g; v, m = g.train_bpe(g.TextFileSource([TEXT], separator='<|endoftext|>'), "
    "VOCAB, ['<|endoftext|>'], separator=b'<|endoftext|>'); "
    "json.dump({t.decode('latin-1'): i for i, t in v.items()}, open(OUT + '/vocab.json', 'w')); "
    "open(OUT + '/merges.txt', 'w').write('\\n'.join(f'{a.hex()} {b.hex()}' for a, b in m))",
    "gigabpe": "import gigabpe; gigabpe.train_tokenizer([TEXT], VOCAB, OUT + '/tokenizer.json', "
    "special_tokens=['<|endoftext|>'], threads=THREADS)",
}


def environment(threads: int) -> dict[str, str]:
    return {
        **os.environ,
        "RAYON_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "true" if threads > 1 else "false",
    }


def warm(name: str, text: Path, vocab_size: int, threads: int, repeats: int) -> tuple[list[float], float]:
    """Seconds of each training but the first of a process, and the process's peak memory in MB."""
    arguments = [name, str(text), str(vocab_size), str(threads), str(repeats)]
    command = [sys.executable, "-m", "benchmarks.bpe_train", "--worker", *arguments]
    done = subprocess.run(command, env=environment(threads), check=True, capture_output=True, text=True)
    seconds, peak = json.loads(done.stdout.splitlines()[-1])
    return seconds, peak


def work(name: str, text: str, vocab_size: str, threads: str, repeats: str) -> None:
    seconds = []
    for _ in range(int(repeats) + 1):
        start = time.perf_counter()
        TRAINERS[name](text, int(vocab_size), int(threads))
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(json.dumps([seconds[1:], peak]))


def whole_process(name: str, text: Path, vocab_size: int, threads: int) -> float:
    with TemporaryDirectory() as folder:
        names = f"TEXT, OUT, VOCAB, THREADS = {str(text)!r}, {folder!r}, {vocab_size}, {threads}\n"
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-c", names + SCRIPTS[name]], env=environment(threads), check=True, capture_output=True
        )
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tinystories", type=Path, help="TinyStories text; trained to 10,000 ids")
    parser.add_argument("--web", type=Path, help="web text; trained to 32,000 ids")
    parser.add_argument("--megabytes", type=int, nargs="+", default=[50, 200])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--trainers", nargs="+", default=["lm", "gigatoken", "gigabpe"], choices=list(TRAINERS))
    parser.add_argument("--folder", type=Path, default=Path("bench"), help="for texts and results")
    parser.add_argument("--worker", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(*options.worker)
        return
    rows = []
    options.trainers = [name for name in options.trainers if find_spec(INSTALLED_AS.get(str(name), str(name)))]
    texts = [(options.tinystories, 10_000), (options.web, 32_000)]
    for source, vocab_size in [pair for pair in texts if pair[0]]:
        for size in options.megabytes:
            text = resampled(source, size * 1_000_000, options.folder)
            for threads in options.threads:
                for name in options.trainers:
                    seconds, peak = warm(name, text, vocab_size, threads, options.repeats)
                    row = {"text": text.name, "vocab_size": vocab_size, "threads": threads, "trainer": name,
                           "warm_s": median(seconds), "peak_MB": peak}  # fmt: skip
                    if name in SCRIPTS:
                        runs = [whole_process(name, text, vocab_size, threads) for _ in range(options.repeats)]
                        row["whole_process_s"] = median(runs)
                    rows.append(row)
                    print("  ".join(f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()), flush=True)
    save(options.folder / "bpe_train.json", rows)


if __name__ == "__main__":
    main()
