"""Encoding files against rivals: python -m benchmarks.bpe_encode --tokenizers FOLDER ... --texts FILE ...

Cold: one pass in a fresh process, from a text file to a file of uint16 ids with an end-of-text id for each separator;
loading the tokenizer is not counted. Steady: in a process that has encoded the first half of a text, its second half;
or, with `--unseen`, other texts after the whole of the first ones. Every encoder runs in processes of its own, in
turns (HF tokenizers, which take a minute, once), and what it wrote is compared with ours. Prints how many times faster
than the fastest rival we are. `pip install -e ".[bench]"` installs the rivals; `python -m lm export-tokenizer` makes
the tokenizer.json that most of them read.
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

import numpy as np

from benchmarks.machine import median, ratio_to_fastest, save

END_OF_TEXT = "<|endoftext|>"
Encode = Callable[[Path, Path], object]  # from a text file to a token file


def ours(folder: Path, threads: int) -> Encode:
    from lm.data.encode import encode_file
    from lm.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_folder(folder)
    tokenizer.encoders(1 << 30)
    return lambda text, out: encode_file(tokenizer, text, out, num_workers=threads)


def _end_of_text_id(folder: Path) -> int:
    return json.loads((folder / "vocab.json").read_text(encoding="utf-8"))[END_OF_TEXT]


def _with_separators(ids: np.ndarray, sizes: np.ndarray, end_of_text: int, out: Path) -> None:
    """Write documents' ids with an end-of-text id between two of them."""
    ends = np.cumsum(sizes)[:-1]
    whole = np.empty(len(ids) + len(ends), np.uint16)
    separators = ends + np.arange(len(ends))
    ordinary = np.ones(len(whole), bool)
    ordinary[separators] = False
    whole[separators] = end_of_text
    whole[ordinary] = ids
    np.save(out, whole)


def gigatoken(folder: Path, threads: int) -> Encode:
    awkward: Any = import_module("awkward")
    rival: Any = import_module("gigatoken")

    tokenizer = rival.Tokenizer(str(folder / "tokenizer.json"))
    end_of_text = _end_of_text_id(folder)

    def alone(text: Path, out: Path) -> None:
        np.save(out, tokenizer.encode(text.read_bytes()).astype(np.uint16))

    def together(text: Path, out: Path) -> None:
        source = rival.TextFileSource([str(text)], separator=END_OF_TEXT)
        documents = tokenizer.encode_files(source, parallel=True)
        ids, sizes = awkward.to_numpy(awkward.flatten(documents)), awkward.to_numpy(awkward.num(documents))
        _with_separators(ids, sizes, end_of_text, out)

    return alone if threads == 1 else together


def snaptokens(folder: Path, threads: int) -> Encode:
    tokenizer: Any = import_module("snaptokens").Tokenizer.from_file(str(folder / "tokenizer.json"))
    end_of_text = _end_of_text_id(folder)

    def encode(text: Path, out: Path) -> None:
        documents = text.read_text(encoding="utf-8").split(END_OF_TEXT)
        ids, offsets = tokenizer.encode_batch_flat(documents)
        width = np.uint32 if len(offsets) == 4 * (len(documents) + 1) else np.uint64
        sizes = np.diff(np.frombuffer(offsets, width).astype(np.int64))
        _with_separators(np.frombuffer(ids, np.uint32), sizes, end_of_text, out)

    return encode


def fastokens(folder: Path, threads: int) -> Encode:
    tokenizer: Any = import_module("fastokens").Tokenizer.from_file(str(folder / "tokenizer.json"))
    end_of_text = _end_of_text_id(folder)

    def encode(text: Path, out: Path) -> None:
        documents = text.read_text(encoding="utf-8").split(END_OF_TEXT)
        found = [np.asarray(encoding.ids, np.uint32) for encoding in tokenizer.encode_batch(documents)]
        _with_separators(np.concatenate(found), np.array([len(ids) for ids in found]), end_of_text, out)

    return encode


def tiktoken(folder: Path, threads: int) -> Encode:
    import tiktoken as rival

    from lm.export.tokenizer_formats import GPT2_PATTERN
    from lm.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_folder(folder)
    special_id = tokenizer.special_ids[END_OF_TEXT]
    ranks = {token: id_ for id_, token in tokenizer.vocab.items() if id_ != special_id}
    encoding = rival.Encoding(
        "benchmark", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens=tokenizer.special_ids
    )

    def alone(text: Path, out: Path) -> None:
        ids = encoding.encode_to_numpy(text.read_text(encoding="utf-8"), allowed_special="all")
        np.save(out, ids.astype(np.uint16))

    def together(text: Path, out: Path) -> None:
        documents = text.read_text(encoding="utf-8").split(END_OF_TEXT)
        batch = encoding.encode_ordinary_batch(documents, num_threads=threads)
        found = [np.array(ids, np.uint16) for ids in batch]
        _with_separators(np.concatenate(found), np.array([len(ids) for ids in found]), special_id, out)

    return alone if threads == 1 else together


def huggingface(folder: Path, threads: int) -> Encode:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    end_of_text = _end_of_text_id(folder)

    def encode(text: Path, out: Path) -> None:
        documents = text.read_text(encoding="utf-8").split(END_OF_TEXT)
        found = [np.array(encoding.ids, np.uint16) for encoding in tokenizer.encode_batch(documents)]
        _with_separators(np.concatenate(found), np.array([len(ids) for ids in found]), end_of_text, out)

    return encode


ENCODERS: dict[str, Callable[[Path, int], Encode]] = {
    "lm": ours, "gigatoken": gigatoken, "fastokens": fastokens, "snaptokens": snaptokens, "tiktoken": tiktoken,
    "HF tokenizers": huggingface,
}  # fmt: skip
INSTALLED_AS: dict[str, str] = {"HF tokenizers": "tokenizers"}
SLOW = {"HF tokenizers"}


def halves(text: Path, folder: Path) -> list[Path]:
    """A text cut in two at a document's end."""
    data = text.read_bytes()
    cut = data.index(END_OF_TEXT.encode(), len(data) // 2)
    paths = [folder / f"{text.stem}-half-{number}.txt" for number in (1, 2)]
    for path, half in zip(paths, (data[:cut], data[cut + len(END_OF_TEXT) :]), strict=True):
        path.write_bytes(half)
    return paths


def work(name: str, folder: str, threads: str, out: str, *texts: str) -> None:
    """In a process of its own: encode the texts one after the other; prints the seconds and the peak memory in MB."""
    encode = ENCODERS[name](Path(folder), int(threads))
    seconds = []
    for number, text in enumerate(texts):
        fresh = Path(f"{out}.{number}.npy")
        fresh.unlink(missing_ok=True)  # replacing a file can wait for the disk
        start = time.perf_counter()
        encode(Path(text), fresh)
        seconds.append(time.perf_counter() - start)
    print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3]))


def measure(name: str, folder: Path, threads: int, out: Path, *texts: Path) -> tuple[list[float], float]:
    environment = {**os.environ, "RAYON_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "true"}
    arguments = [name, str(folder), str(threads), str(out), *map(str, texts)]
    command = [sys.executable, "-m", "benchmarks.bpe_encode", "--worker", *arguments]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def compare(
    folder: Path, text: Path, parts: list[Path], threads: int, encoders: list[str], repeats: int, out: Path
) -> dict[str, Any]:
    """One cell of the table; prints it. `parts` are the texts of the steady state, whose last is timed."""
    print(f"{folder.name} on {text.name}, {threads} threads", flush=True)
    cold: dict[str, list[float]] = {name: [] for name in encoders}
    steady: dict[str, list[float]] = {name: [] for name in encoders}
    peaks: dict[str, float] = {}
    ids: dict[str, np.ndarray] = {}
    for repeat in range(repeats):
        for name in encoders:
            if repeat and name in SLOW:
                continue
            (seconds,), peaks[name] = measure(name, folder, threads, out, text)
            cold[name].append(seconds)
            ids[name] = np.load(f"{out}.0.npy")
            steady[name].append(measure(name, folder, threads, out, *parts)[0][-1])
    rows = {
        name: {
            "cold_MB_per_s": text.stat().st_size / 1e6 / median(cold[name]),
            "steady_MB_per_s": parts[-1].stat().st_size / 1e6 / median(steady[name]),
            "peak_MB": peaks[name],
            "equal": np.array_equal(ids[name], ids[encoders[0]]),
        }
        for name in encoders
    }
    for name, row in rows.items():
        print(
            f"  {name:<14} cold {row['cold_MB_per_s']:6.1f} MB/s, steady {row['steady_MB_per_s']:6.1f} MB/s, "
            f"{row['peak_MB']:5.0f} MB, ids {'equal' if row['equal'] else 'DIFFER'}"
        )
    ratios = {
        "cold_ratio": ratio_to_fastest({name: median(seconds) for name, seconds in cold.items()}),
        "steady_ratio": ratio_to_fastest({name: median(seconds) for name, seconds in steady.items()}),
    }
    print(f"  ratio to the fastest rival: cold {ratios['cold_ratio']}, steady {ratios['steady_ratio']}", flush=True)
    return {"tokenizer": folder.name, "text": text.name, "threads": threads, "encoders": rows, **ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--tokenizers", type=Path, nargs="+", help="folders with vocab.json, merges.txt, tokenizer.json"
    )
    parser.add_argument("--texts", type=Path, nargs="+", help="texts, documents separated by <|endoftext|>")
    parser.add_argument("--unseen", type=Path, nargs="+", help="for each text, one to time the steady state with")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--encoders", nargs="+", default=list(ENCODERS), choices=list(ENCODERS))
    parser.add_argument("--output", type=Path, default=Path("bench/bpe_encode.json"))
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(*options.worker)
        return
    encoders = [name for name in options.encoders if find_spec(INSTALLED_AS.get(str(name), str(name)))]
    cells = []
    with TemporaryDirectory() as temporary:
        for folder in options.tokenizers:
            for index, text in enumerate(options.texts):
                parts = [text, options.unseen[index]] if options.unseen else halves(text, Path(temporary))
                for threads in options.threads:
                    out = Path(temporary) / "ids"
                    cells.append(compare(folder, text, parts, threads, encoders, options.repeats, out))
    save(options.output, cells)


if __name__ == "__main__":
    main()
