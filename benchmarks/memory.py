"""Predicted against measured memory, operations and time of training steps: `python -m benchmarks.memory`.

Each row is a model, run in the order of a training under Lightning: forward pass and loss, gradients of the step
before cleared, backward pass, clipping, AdamW. On CUDA the measured memory is `torch.cuda.max_memory_allocated` of the
third step, elsewhere the sum of all tensors that operations made. The predictions are `lm.accounting`'s; of time for
the utilisation that the first row of that precision reached. The last column is the rate of all matrix products over
that of one large bfloat16 product, measured at the start.
"""

import argparse
import contextlib
import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.allocations import peaks_by_operations, peaks_on_cuda
from benchmarks.machine import median, save
from lm.accounting import (
    PRESETS,
    Backend,
    TrainingPrecision,
    fast_moments,
    forward_flops,
    largest_fast_batch,
    model_flop_utilisation,
    moments,
    peak_flops,
    recomputed_flops,
)
from lm.model import ModelConfig, TransformerLM
from lm.optim import AdamW, gradient_clipping, parameter_groups

CUDA = torch.device("cuda")
HEADS = ("GB predicted", "measured", "diff", "TFLOP predicted", "counted", "diff", "ms predicted", "measured", "MFU")
HEADS += ("of rate",)
WIDTHS = (56, 13, 9, 8, 16, 9, 7, 13, 9, 7, 9)
TOLERANCE = 0.05  # beyond it a row shows its parts


@dataclass(frozen=True)
class Row:
    """A model and how it is trained."""

    name: str
    net: ModelConfig
    batch_size: int
    precision: TrainingPrecision = "bf16-mixed"
    checkpointing: bool = False
    fast: bool = False


def rows(capacity: int) -> list[Row]:
    """What one GPU of 80 GB or more is asked; the largest comes last.

    Args:
        capacity: bytes, of which the last row leaves 3 % to the driver and to what the allocator rounds.
    """
    stories, small, medium, large, xl = (
        PRESETS[name].net for name in ("tinystories", "gpt2-small", "gpt2-medium", "gpt2-large", "gpt2-xl")
    )
    return [
        Row("gpt2-medium", medium, 16),
        Row("gpt2-medium", medium, 4, "float32"),
        Row("gpt2-medium", medium, 8, "float32", checkpointing=True),
        Row("gpt2-small", small, 16),
        Row("gpt2-small", small, 8, "float32"),
        Row("gpt2-small", small, 32, checkpointing=True),
        Row("gpt2-small, manual attention", replace(small, attention="manual"), 8),
        Row("gpt2-small, 16,384 tokens", replace(small, context_length=16_384), 1),
        Row("gpt2-small, 256 ids", replace(small, vocab_size=256), 64),
        Row("gpt2-small, 256 ids", replace(small, vocab_size=256), 64, checkpointing=True),
        Row("gpt2-large, 128 tokens", replace(large, context_length=128), 1),
        Row("tinystories", stories, 16),
        Row("tinystories", stories, 128),
        Row("tinystories", stories, 512),
        Row("tinystories", stories, 128, "float32"),
        Row("tinystories, tied, dropout", replace(stories, tie_embeddings=True, dropout=0.1), 128),
        Row("tinystories", stories, 128, fast=True),
        Row("gpt2-small", small, 16, fast=True),
        Row("gpt2-xl, the most that fit", xl, largest_fast_batch(xl, 1024, capacity * 97 // 100), fast=True),
    ]


def small_rows() -> list[Row]:
    """What a CPU does in seconds. Written-out attention, whose products torch's counter knows on the CPU."""
    net = ModelConfig(vocab_size=300, context_length=128, d_model=64, num_layers=3, num_heads=4, attention="manual")
    return [
        Row("small", net, 4, "float32"),
        Row("small", net, 4),
        Row("small", net, 8, "float32", checkpointing=True),
        Row("small, tied, dropout", replace(net, tie_embeddings=True, dropout=0.1), 4, "float32"),
    ]


class Training:
    """A row's model, ready to take steps."""

    def __init__(self, row: Row, device: torch.device) -> None:
        self.row, self.device = row, device
        with device:
            self.model = TransformerLM(row.net)
            shape = (row.batch_size, row.net.context_length)
            self.inputs = torch.randint(row.net.vocab_size, shape)
            self.targets = torch.randint(row.net.vocab_size, shape)
        self.model.checkpointing = row.checkpointing
        if row.fast:
            self.model.speed_up()
        self.optimizer = AdamW(parameter_groups(self.model.named_parameters(), 0.1))

    def resident(self) -> list[Tensor]:
        """Tensors that are there before the first step."""
        return [*self.model.parameters(), *self.model.buffers(), self.inputs, self.targets]

    def step(self, after: Callable[[str], object] = lambda part: None) -> None:
        """One step; `after` is called with the name of each part that has ended."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.row.precision == "bf16-mixed"):
            loss = self.model.loss(self.inputs, self.targets)
        after("loss")
        self.optimizer.zero_grad()
        loss.backward()
        del loss
        after("backward")
        gradient_clipping(self.model.parameters(), 1.0)
        self.optimizer.step()
        after("optimizer")


def step_flops(row: Row) -> int:
    """Operations of a step's matrix products: three forward passes, and what checkpointing computes again."""
    again = recomputed_flops(row.net) if row.checkpointing else 0
    return row.batch_size * (3 * forward_flops(row.net).total + again)


def counted_flops(row: Row, device: torch.device) -> tuple[int, int]:
    """Operations of a step's matrix products by torch's counter, and as they follow from `lm.accounting`.

    The backward pass of fused attention computes the scores again, one of the forward pass's two products. Counted is
    one sequence, run eagerly.
    """
    training = Training(replace(row, batch_size=1, fast=False), device)
    with FlopCounterMode(display=False) as counter:
        training.step()
    scores = forward_flops(row.net).attention_scores // 2 if row.net.attention == "fused" else 0
    return row.batch_size * counter.get_total_flops(), step_flops(row) + row.batch_size * scores


def matrix_rate(repetitions: int = 50) -> float:
    """Operations per second of bfloat16 products of 8,192 x 8,192 random numbers."""
    a, b = (torch.randn(8192, 8192, device=CUDA, dtype=torch.bfloat16) for _ in range(2))

    def seconds() -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(repetitions):
            torch.mm(a, b)
        torch.cuda.synchronize()
        return time.perf_counter() - start

    seconds()
    return repetitions * 2 * 8192**3 / seconds()


def measured_seconds(training: Training, repetitions: int) -> float:
    """Median time of a step that is not the first."""
    wait = torch.cuda.synchronize if training.device.type == "cuda" else lambda: None
    training.step()
    seconds = []
    for _ in range(repetitions):
        wait()
        start = time.perf_counter()
        training.step()
        wait()
        seconds.append(time.perf_counter() - start)
    return median(seconds)


@contextlib.contextmanager
def clean(device: torch.device) -> Iterator[None]:
    """Before and after, the device holds nothing of ours."""
    for is_end in (False, True):
        gc.collect()
        if device.type == "cuda":
            torch._C._cuda_clearCublasWorkspaces()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        if not is_end:
            yield


def measure(row: Row, device: torch.device, repetitions: int = 5, rate: float | None = None) -> dict[str, Any]:
    """One line of the table: predicted and measured bytes, operations and seconds; `rate` is `matrix_rate`."""
    net = row.net
    backend: Backend = "cuda" if device.type == "cuda" else "cpu"
    if row.fast:
        predicted = fast_moments(net, net.context_length, row.batch_size, row.checkpointing)
    else:
        lines = moments(net, net.context_length, row.precision, row.checkpointing, backend)
        predicted = {name: line.at(row.batch_size) for name, line in lines.items()}
    with clean(device):
        training = Training(row, device)
        if device.type == "cuda":
            peaks, besides = peaks_on_cuda(training.step)
        else:
            peaks, besides = peaks_by_operations(training.step, training.resident()), {}
        seconds = measured_seconds(training, repetitions)
        del training
    with clean(device):
        counted, expected = counted_flops(row, device)
    result: dict[str, Any] = {
        **asdict(row),
        "predicted_bytes": max(predicted.values()),
        "predicted_moments": predicted,
        "measured_bytes": max(peaks.values()),
        "measured_parts": peaks,
        **besides,
        "predicted_flops": expected,
        "counted_flops": counted,
        "seconds": seconds,
        "tokens_per_second": row.batch_size * net.context_length / seconds,
    }
    if rate is not None and row.precision == "bf16-mixed":
        result["share_of_rate"] = step_flops(row) / seconds / rate
    products = "bfloat16" if row.precision == "bf16-mixed" else "tf32"
    peak = peak_flops(torch.cuda.get_device_name(), products) if device.type == "cuda" else None
    if peak is not None:
        result["mfu"] = model_flop_utilisation(result["tokens_per_second"], net, peak)
        result["utilisation"] = step_flops(row) / seconds / peak
    return result


def as_line(result: dict[str, Any]) -> str:
    """The row as printed."""
    what = f"{result['name']}, batch {result['batch_size']}, {result['precision']}"
    names = {"checkpointing": result["checkpointing"], "fast path": result["fast"]}
    what += "".join(f", {name}" for name, is_on in names.items() if is_on)
    if "error" in result:
        return f"{what:<{WIDTHS[0]}}{result['error']}"
    predicted, measured = result["predicted_bytes"], result["measured_bytes"]
    flops = result["predicted_flops"] / result["counted_flops"] - 1
    cells = [f"{predicted / 1e9:.3f}", f"{measured / 1e9:.3f}", f"{predicted / measured - 1:.1%}"]
    cells += [f"{result[key] / 1e12:.3f}" for key in ("predicted_flops", "counted_flops")] + [f"{flops:.1%}"]
    cells += [f"{result['predicted_seconds'] * 1e3:.1f}" if "predicted_seconds" in result else "-"]
    cells += [f"{result['seconds'] * 1e3:.1f}", f"{result['mfu']:.1%}" if "mfu" in result else "-"]
    cells += [f"{result['share_of_rate']:.1%}" if "share_of_rate" in result else "-"]
    line = f"{what:<{WIDTHS[0]}}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, WIDTHS[1:], strict=True))
    if abs(predicted / measured - 1) > TOLERANCE:
        for key in ("predicted_moments", "measured_parts"):
            line += f"\n    {key}: " + ", ".join(f"{name} {count / 1e9:.3f}" for name, count in result[key].items())
    return line


def main(out: Path, repetitions: int) -> None:
    """Measure row by row; a row that fails is a line that says why."""
    device = CUDA if torch.cuda.is_available() else torch.device("cpu")
    torch.set_float32_matmul_precision("high")  # as `fit` does
    torch.manual_seed(0)
    results: list[dict[str, Any]] = []
    reached: dict[TrainingPrecision, float] = {}
    rate = matrix_rate() if device.type == "cuda" else None
    if rate is not None:
        print(f"bfloat16 products of 8,192 x 8,192: {rate / 1e12:.0f} TFLOP/s")
    print(" " * WIDTHS[0] + "".join(f"{head:>{width}}" for head, width in zip(HEADS, WIDTHS[1:], strict=True)))
    for row in rows(torch.cuda.mem_get_info()[1]) if device.type == "cuda" else small_rows():
        try:
            result = measure(row, device, repetitions, rate)
            if "utilisation" in result:
                first = reached.setdefault(row.precision, result["utilisation"])
                result["predicted_seconds"] = result["seconds"] * result["utilisation"] / first
        except Exception as error:
            result = {**asdict(row), "error": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"}
        print(as_line(result), flush=True)
        results.append(result)
        save(out, results)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("build/memory.json"))
    parser.add_argument("--repetitions", type=int, default=3, help="timed steps a row")
    options = parser.parse_args()
    main(options.out, options.repetitions)
