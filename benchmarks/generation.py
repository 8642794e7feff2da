"""Greedy decoding against Hugging Face transformers, side by side: `python -m benchmarks.generation`.

The same random weights, exported by lm.export; the same prompts of 16 ids, 256 new ids. Float32 is where equal tokens
can be asked for; in bfloat16 each side rounds in its own places. Each figure is the median of some runs after one that
is not counted (it compiles, or records CUDA graphs). Our rows come first; a rival that fails shows its error, and what
no time is left for is said to be skipped.
"""

import argparse
import copy
import itertools
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import median, save
from lm.export.to_huggingface import write_llama
from lm.generation import Decoder, SamplingConfig, generate
from lm.model import ModelConfig, TransformerLM
from lm.tokenizer import Tokenizer

GREEDY = SamplingConfig(temperature=0)
CONTEXT = 320
SHAPES = {
    "tinystories": ModelConfig(10_000, CONTEXT, d_model=512, num_layers=4, num_heads=16, d_ff=1344),
    "quickstart": ModelConfig(1024, CONTEXT, d_model=128, num_layers=3, num_heads=4, d_ff=384),
}
MODES = ("static cache, compiled", "eager", "static cache")
Continue = Callable[[list[list[int]], int], list[list[int]]]


@dataclass
class Cell:
    """One model, its export and a batch of prompts."""

    shape: str
    model: TransformerLM
    folder: Path
    prompts: list[list[int]]
    device: torch.device
    dtype: torch.dtype


def ours(model: TransformerLM | Decoder, cell: Cell) -> Continue:
    """Our generation, through a decoder or by the model's own forward pass."""

    def run(prompts: list[list[int]], new: int) -> list[list[int]]:
        with torch.autocast(cell.device.type, cell.dtype, enabled=cell.dtype != torch.float32):
            steps = [[token.id if token else -1 for token in step] for step in generate(model, prompts, new, GREEDY)]
        return [list(row) for row in zip(*steps, strict=True)]

    return run


def transformers(cell: Cell, mode: str) -> Continue:
    """transformers' generate with a growing cache, a static one, or a static one and torch.compile."""
    from transformers import LlamaForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.compiler.reset()  # what was compiled for another batch would make its size a variable
    loaded: Any = LlamaForCausalLM.from_pretrained(cell.folder, dtype=cell.dtype)
    model = loaded.to(cell.device).eval()
    options: dict[str, Any] = {"do_sample": False, "disable_compile": mode != "static cache, compiled"}
    if mode != "eager":
        options["cache_implementation"] = "static"
    if mode == "static cache, compiled" and cell.device.type == "cpu":
        model.forward = torch.compile(model.forward)  # on GPUs generate compiles by itself, with CUDA graphs

    def run(prompts: list[list[int]], new: int) -> list[list[int]]:
        ids: Tensor = torch.tensor(prompts, device=cell.device)
        mask = torch.ones_like(ids)
        with torch.no_grad():
            out = model.generate(ids, attention_mask=mask, max_new_tokens=new, **options)
        return out[:, ids.shape[1] :].tolist()

    return run


def measure(
    make: Callable[[], Continue], cell: Cell, new: int, repeats: int, beside: Continue | None = None
) -> dict[str, Any]:
    """Median seconds, and the ids of the last run; or the error.

    With `beside`, each run comes after one of it, so that both meet the same neighbours on a shared machine.
    """
    try:
        run = make()
        first, rows = _timed(run, cell, new)
        seconds, seconds_beside = [], []
        for _ in range(repeats):
            if beside:
                seconds_beside.append(_timed(beside, cell, new)[0])
            taken, rows = _timed(run, cell, new)
            seconds.append(taken)
    except Exception as error:  # a rival's error is a result
        return {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]}
    result = {"seconds": median(seconds), "all_seconds": seconds, "first_seconds": first, "ids": rows}
    if beside:
        result |= {"ours_beside": median(seconds_beside), "times_ours": median(seconds) / median(seconds_beside)}
    return result


def _timed(run: Continue, cell: Cell, new: int) -> tuple[float, list[list[int]]]:
    began = time.perf_counter()
    rows = run(cell.prompts, new)  # ids as lists: whoever returns them has waited for the device
    return time.perf_counter() - began, rows


def equal_tokens(rows: list[list[int]], reference: list[list[int]], cell: Cell) -> str:
    """`all`; or how many rows are, and of the others how many ids are before the first different one.

    How far the model's logits of the two ids are apart there, in float64, tells a tie that rounding decides from a bug.
    """
    if rows == reference:
        return "all"
    model = copy.deepcopy(cell.model).double()
    firsts, gaps = [], []
    for prompt, row, other in zip(cell.prompts, rows, reference, strict=True):
        if row != other:
            first = next(i for i, (x, y) in enumerate(zip(row, other, strict=True)) if x != y)
            with torch.no_grad():
                logits_V = model(torch.tensor([prompt + row[:first]], device=cell.device))[0, -1]
            firsts.append(first)
            gaps.append(abs(float(logits_V[row[first]] - logits_V[other[first]])))
    equal = len(rows) - len(firsts)
    return f"{equal} of {len(rows)} rows, others from {min(firsts)} on, by logits at most {max(gaps):.1e} apart"


def compare(cells: list[Cell], new: int, repeats: int, limit: float) -> list[dict[str, Any]]:
    """All modes on all cells: ours on every cell, then rival by rival."""
    began = time.perf_counter()
    results: list[dict[str, Any]] = []
    fast: list[Continue | None] = []
    references: list[list[list[int]]] = []

    def add(index: int, mode: str, result: dict[str, Any]) -> None:
        cell = cells[index]
        dtype = str(cell.dtype).removeprefix("torch.")
        row = {"shape": cell.shape, "dtype": dtype, "batch": len(cell.prompts), "mode": mode, **result}
        if ids := row.pop("ids", None):
            row["ms_per_token"] = 1000 * row["seconds"] / new
            row["equal"] = equal_tokens(ids, references[index], cell)
        results.append(row)
        print(_line(row), flush=True)

    print("shape        dtype    batch  mode                                   seconds  ms/token  x ours  equal tokens")
    for cell in cells:
        run = ours(Decoder(cell.model, cell.dtype), cell)
        result = measure(lambda run=run: run, cell, new, repeats)
        fast.append(run if "ids" in result else None)
        references.append(result.get("ids") or ours(cell.model, cell)(cell.prompts, new))
        add(len(references) - 1, "ours", result)
    for index, cell in enumerate(cells):
        plain = ours(cell.model, cell)
        add(index, "ours, plain (the reference)", measure(lambda run=plain: run, cell, new, 1, fast[index]))
    for mode in MODES:
        for index, cell in enumerate(cells):
            left = limit - (time.perf_counter() - began)
            result: dict[str, Any] = {"error": "skipped: no time left"}
            if left > 0:
                result = measure(lambda c=cell, m=mode: transformers(c, m), cell, new, repeats, fast[index])
            add(index, f"transformers, {mode}", result)
    return results


def _line(row: dict[str, Any]) -> str:
    start = f"{row['shape']:<12} {row['dtype']:<8} {row['batch']:>5}  {row['mode']:<36}"
    if "error" in row:
        return f"{start} {row['error']}"
    times = f"{row['times_ours']:.2f}" if "times_ours" in row else ""
    return f"{start} {row['seconds']:>9.4f} {row['ms_per_token']:>9.3f} {times:>7}  {row.get('equal', '')}"


def cells(
    shapes: list[str], batches: list[int], device: torch.device, folder: Path, dtypes: tuple[str, ...] = ("float32",)
) -> list[Cell]:
    """Models with random weights, exported, and random prompts."""
    made = []
    for dtype, name in itertools.product(dtypes, shapes):
        torch.manual_seed(0)
        model = TransformerLM(SHAPES[name]).eval()
        if not (folder / name).exists():
            (folder / name).mkdir()
            write_llama(model, Tokenizer({i: bytes([i]) for i in range(256)}, []), folder / name)
        for batch in batches:
            prompts = torch.randint(0, SHAPES[name].vocab_size, (batch, 16)).tolist()
            made.append(Cell(name, model.to(device), folder / name, prompts, device, getattr(torch, dtype)))
    return made


def main() -> None:
    """Measure and print; with --output or in the folder $OUT, save."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default=device)
    parser.add_argument("--shapes", nargs="+", default=["tinystories"] if device == "cuda" else list(SHAPES))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64] if device == "cuda" else [1])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"] if device == "cuda" else ["float32"])
    parser.add_argument("--new", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--limit", type=float, default=75, help="seconds after which no further rival is begun")
    folder = os.environ.get("OUT")
    parser.add_argument("--output", type=Path, default=Path(folder) / "generation.json" if folder else None)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as temporary:
        device = torch.device(options.device)
        work = cells(options.shapes, options.batches, device, Path(temporary), tuple(options.dtypes))
        results = compare(work, options.new, options.repeats, options.limit)
    if options.output:
        save(options.output, results)


if __name__ == "__main__":
    main()
