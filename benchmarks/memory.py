"""Predicted against measured memory, operations and time of training steps: `python -m benchmarks.memory`.

Each row is a model run eagerly, in the order of a training under Lightning: forward pass and loss, gradients of the
step before cleared, backward pass, clipping, AdamW. On CUDA the measured memory is `torch.cuda.max_memory_allocated` of
the third step, elsewhere the sum of all tensors that operations made. The predictions are `lm.accounting`'s.

Row by row the JSON also holds the peak of what was asked of the allocator, without its rounding, and what cuBLAS's
workspaces took.
"""

import argparse
import contextlib
import gc
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import median, save
from lm.accounting import (
    PRESETS,
    Backend,
    TrainingPrecision,
    forward_flops,
    model_flop_utilisation,
    moments,
    peak_flops,
    recomputed_flops,
)
from lm.model import ModelConfig, TransformerLM, cross_entropy_loss
from lm.optim import AdamW, gradient_clipping, parameter_groups

CUDA = torch.device("cuda")
WIDTHS = (58, 14, 10, 8, 15, 8, 9, 12, 8)
UTILISATION = 0.5  # of the device's peak, what `python -m lm account` assumes


@dataclass(frozen=True)
class Row:
    """A model and how it is trained."""

    name: str
    net: ModelConfig
    batch_size: int
    precision: TrainingPrecision = "bf16-mixed"
    checkpointing: bool = False


def rows() -> list[Row]:
    """What one GPU of 80 GB or more is asked."""
    stories, small, medium, large = (
        PRESETS[name].net for name in ("tinystories", "gpt2-small", "gpt2-medium", "gpt2-large")
    )
    return [
        Row("tinystories", stories, 16),
        Row("tinystories", stories, 128),
        Row("tinystories", stories, 512),
        Row("tinystories", stories, 128, "float32"),
        Row("tinystories, tied, dropout", replace(stories, tie_embeddings=True, dropout=0.1), 128),
        Row("gpt2-small", small, 16),
        Row("gpt2-small", small, 8, "float32"),
        Row("gpt2-small", small, 32, checkpointing=True),
        Row("gpt2-small, manual attention", replace(small, attention="manual"), 8),
        Row("gpt2-small, 16,384 tokens", replace(small, context_length=16_384), 1),
        Row("gpt2-medium", medium, 16),
        Row("gpt2-medium", medium, 4, "float32"),
        Row("gpt2-medium", medium, 8, "float32", checkpointing=True),
        Row("gpt2-small, 256 ids", replace(small, vocab_size=256), 64),
        Row("gpt2-small, 256 ids", replace(small, vocab_size=256), 64, checkpointing=True),
        Row("gpt2-large, 128 tokens", replace(large, context_length=128), 1),
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
        if row.checkpointing:
            checkpoint_blocks(self.model)
        self.optimizer = AdamW(parameter_groups(self.model.named_parameters(), 0.1))

    def resident(self) -> list[Tensor]:
        """Tensors that are there before the first step."""
        return [*self.model.parameters(), *self.model.buffers(), self.inputs, self.targets]

    def step(self, after: Callable[[str], object] = lambda part: None) -> None:
        """One step; `after` is called with the name of each part that has ended."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.row.precision == "bf16-mixed"):
            loss = cross_entropy_loss(self.model(self.inputs), self.targets)
        after("loss")
        self.optimizer.zero_grad()
        loss.backward()
        del loss
        after("backward")
        gradient_clipping(self.model.parameters(), 1.0)
        self.optimizer.step()
        after("optimizer")


def checkpoint_blocks(model: TransformerLM) -> None:
    """Keep each block's input only, and compute the block again in the backward pass."""
    for layer in model.layers:

        def again(*arguments: Any, forward: Any = layer.forward) -> Any:
            return checkpoint(forward, *arguments, use_reentrant=False, preserve_rng_state=False)

        layer.forward = again


class AllocationMode(TorchDispatchMode):
    """Bytes of all storages that operations make, now and at most; for devices whose allocator does not count.

    Under any such mode the derivative of `gather` makes one tensor more, of the logits' size, than it does without.
    """

    def __init__(self, already_there: list[Tensor]) -> None:
        super().__init__()
        self.known = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in already_there}
        self.now = self.peak = sum(self.known.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and (key := tensor.untyped_storage()._cdata) not in self.known:
                storage = tensor.untyped_storage()
                self.known[key] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._freed, key)
        return out

    def _freed(self, key: int) -> None:
        self.now -= self.known.pop(key)

    def take_peak(self) -> int:
        """The peak since the last call."""
        peak, self.peak = self.peak, self.now
        return peak


def measured_memory(row: Row, device: torch.device) -> dict[str, int]:
    """Peak bytes of each part of a step whose predecessors have made moments and gradients."""
    training = Training(row, device)
    peaks: dict[str, int] = {}
    if device.type != "cuda":
        with AllocationMode(training.resident()) as mode:
            for _ in range(2):
                mode.take_peak()
                training.step(lambda part: peaks.update({part: mode.take_peak()}))
        return peaks

    def take(part: str) -> None:
        statistics = torch.cuda.memory_stats()
        peaks[part] = torch.cuda.max_memory_allocated()
        peaks["requested"] = max(peaks.get("requested", 0), statistics.get("requested_bytes.all.peak", 0))
        torch.cuda.reset_peak_memory_stats()

    training.step()
    training.step()
    torch.cuda.reset_peak_memory_stats()
    training.step(take)
    before = torch.cuda.memory_allocated()
    torch._C._cuda_clearCublasWorkspaces()
    peaks["workspaces"] = before - torch.cuda.memory_allocated()
    return peaks


def counted_flops(row: Row, device: torch.device) -> tuple[int, int]:
    """Operations of a step's matrix products by torch's counter, and as they follow from `lm.accounting`.

    Three forward passes, and what checkpointing computes again. The backward pass of fused attention computes the
    scores again, one of the forward pass's two products.
    """
    training = Training(row, device)
    with FlopCounterMode(display=False) as counter:
        training.step()
    flops = forward_flops(row.net)
    again = recomputed_flops(row.net) if row.checkpointing else 0
    scores = flops.attention_scores // 2 if row.net.attention == "fused" else 0
    return counter.get_total_flops(), row.batch_size * (3 * flops.total + again + scores)


def measured_seconds(row: Row, device: torch.device, repetitions: int) -> float:
    """Median time of a step."""
    training = Training(row, device)
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    training.step()
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


def measure(row: Row, device: torch.device, repetitions: int = 5) -> dict[str, Any]:
    """One line of the table: predicted and measured bytes, operations and seconds."""
    net = row.net
    backend: Backend = "cuda" if device.type == "cuda" else "cpu"
    lines = moments(net, net.context_length, row.precision, row.checkpointing, backend)
    predicted = {name: line.at(row.batch_size) for name, line in lines.items()}
    with clean(device):
        peaks = measured_memory(row, device)
    with clean(device):
        counted, expected = counted_flops(row, device)
    with clean(device):
        seconds = measured_seconds(row, device, repetitions)
    result: dict[str, Any] = {
        **asdict(row),
        "predicted_bytes": max(predicted.values()),
        "predicted_moments": predicted,
        "measured_bytes": max(peaks[part] for part in ("loss", "backward", "optimizer")),
        "measured_parts": peaks,
        "predicted_flops": expected,
        "counted_flops": counted,
        "seconds": seconds,
        "tokens_per_second": row.batch_size * net.context_length / seconds,
    }
    products = "bfloat16" if row.precision == "bf16-mixed" else "tf32"
    peak = peak_flops(torch.cuda.get_device_name(), products) if device.type == "cuda" else None
    if peak is not None:
        result["mfu"] = model_flop_utilisation(result["tokens_per_second"], net, peak)
        result["predicted_seconds"] = seconds * result["mfu"] / UTILISATION
    return result


def as_line(result: dict[str, Any]) -> str:
    """The row as printed."""
    what = f"{result['name']}, batch {result['batch_size']}, {result['precision']}"
    what += ", checkpointing" if result["checkpointing"] else ""
    if "error" in result:
        return f"{what:<{WIDTHS[0]}}{result['error']}"
    predicted, measured = result["predicted_bytes"], result["measured_bytes"]
    flops = result["predicted_flops"] / result["counted_flops"] - 1
    cells = [f"{predicted / 1e9:.3f}", f"{measured / 1e9:.3f}", f"{predicted / measured - 1:.1%}"]
    cells += [f"{result['counted_flops'] / 1e12:.3f}", f"{flops:.1%}", f"{result['seconds'] * 1e3:.1f}"]
    if "mfu" in result:
        cells += [f"{result['predicted_seconds'] * 1e3:.1f}", f"{result['mfu']:.1%}"]
    padded = (f"{cell:>{width}}" for cell, width in zip(cells, WIDTHS[1:], strict=False))
    return f"{what:<{WIDTHS[0]}}" + "".join(padded)


def main(out: Path, repetitions: int) -> None:
    """Measure row by row; a row that fails is a line that says why."""
    device = CUDA if torch.cuda.is_available() else torch.device("cpu")
    torch.set_float32_matmul_precision("high")  # as `fit` does
    torch.manual_seed(0)
    results: list[dict[str, Any]] = []
    heads = ("GB predicted", "measured", "diff", "TFLOP counted", "diff", "ms", "ms at 50 %", "MFU")
    print(" " * WIDTHS[0] + "".join(f"{head:>{width}}" for head, width in zip(heads, WIDTHS[1:], strict=True)))
    for row in rows() if device.type == "cuda" else small_rows():
        try:
            result = measure(row, device, repetitions)
        except Exception as error:
            result = {**asdict(row), "error": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"}
        print(as_line(result), flush=True)
        save(out, [*results, result])
        results.append(result)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("build/memory.json"))
    parser.add_argument("--repetitions", type=int, default=3, help="timed steps a row")
    options = parser.parse_args()
    main(options.out, options.repetitions)
