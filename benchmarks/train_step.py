"""Training steps of ours and of its rivals, side by side: `python -m benchmarks.train_step --nanogpt model.py`.

`fit` is ours as users run it: Lightning's loop with our data, metrics, checkpoints, progress bar and TensorBoard. All
others are bare loops over the same batches, which lie on the device from the start: ours on the same path, ours on the
readable path, nanoGPT's model from a file that you have, and transformers' Llama of the same shape; the rivals are
compiled, loss included, with torch's fused AdamW and clipping. All train in bfloat16 under autocast with float32
weights, or in float32 on a CPU without bfloat16; each in a fresh process. A time is the median of `--blocks` blocks of
steps, each waited for at its end only; the last column is fit's tokens per second over the row's.

Every step has a batch of its own: of one that is learnt by heart the gradients are nearly zero, and a GPU multiplies
zeros faster, as that takes less power.
"""

import argparse
import importlib.util
import logging
import multiprocessing
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn

from benchmarks.machine import median, save
from lm.accounting import PRESETS, model_flop_utilisation, peak_flops
from lm.data.sampler import Slice, TrainBatches
from lm.data.transfer import PromptBatches
from lm.model import ModelConfig, TransformerLM
from lm.optim import AdamW, clipping_factor, parameter_groups
from lm.training import LanguageModel
from lm.training.allocator import keep_freed_memory
from lm.training.graph import RecordedStep
from lm.training.metrics import Metrics
from lm.training.precision import multiplies_in_bfloat16
from lm.training.progress import StepProgress
from lm.training.stopping import CheckpointFiles, LastCheckpoint

Loss = Callable[[Tensor, Tensor], Tensor]
LOG_EVERY, CHECKPOINT_EVERY = 10, 250  # steps, as `fit` does by default


@dataclass(frozen=True)
class Case:
    """What is trained, and how long."""

    name: str
    net: ModelConfig
    batch_size: int
    device: torch.device
    blocks: int
    steps: int  # of a block

    @property
    def is_narrow(self) -> bool:
        """Whether products are bfloat16, as they are where the device has instructions for them."""
        return self.device.type == "cuda" or multiplies_in_bfloat16()

    @property
    def warm_up(self) -> int:
        """Steps before the first block, in which things are compiled and recorded."""
        return 2 * self.steps

    @property
    def all_steps(self) -> int:
        """Those of the blocks and before them."""
        return self.warm_up + self.blocks * self.steps

    def batches(self, rank: int = 0, devices: int = 1) -> TrainBatches:
        """Of random tokens; each process of several has its part of a batch."""
        tokens = np.random.default_rng(0).integers(0, self.net.vocab_size, 2_000_000).astype(np.uint16)
        part, pin = Slice.of(self.batch_size, rank, devices, 1), self.device.type == "cuda"
        return TrainBatches(tokens, self.batch_size, self.net.context_length, 0, part, pin_memory=pin)


STORIES = PRESETS["tinystories"].net
# SwiGLU's three matrices of this width have as many parameters as the two of GPT-2's own feed-forward; and like
# nanoGPT's, the vocabulary is padded to a multiple of 64, and its one matrix serves at both ends.
GPT2 = replace(PRESETS["gpt2-small"].net, vocab_size=50_304, d_ff=2048, tie_embeddings=True)


def cases(device: torch.device, blocks: int, steps: int) -> list[Case]:
    """The shapes that are measured: what a GPU, or a CPU, is asked."""
    if device.type == "cpu":
        return [Case("tinystories", STORIES, 8, device, blocks, steps)]
    return [
        Case("tinystories", STORIES, 128, device, blocks, steps),
        Case("gpt2-small", GPT2, 32, device, blocks, max(2, steps // 4)),
    ]


class Clock(Callback):
    """Seconds a step of each block of `case.steps`, after the warm-up."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.done = 0
        self.start = 0.0
        self.seconds: list[float] = []

    def tick(self) -> None:
        """A step has been asked for."""
        self.done += 1
        if self.done < self.case.warm_up or (self.done - self.case.warm_up) % self.case.steps:
            return
        if self.case.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self.done > self.case.warm_up:
            self.seconds.append((now - self.start) / self.case.steps)
        self.start = now

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *rest: Any, **options: Any) -> None:
        self.tick()


class Batches(PromptBatches):
    """Batches of random tokens, as `fit` gets those of its text."""

    def __init__(self, batches: TrainBatches) -> None:
        super().__init__()
        self.batches = batches

    def train_dataloader(self) -> TrainBatches:
        return self.batches


def fit(
    case: Case, strategy: str | Strategy = "auto", rank: int = 0, devices: int = 1, checkpointing: bool = False
) -> list[float]:
    """Ours, by Lightning's loop; in each process of one a device, where there are several."""
    clock, metrics, files = Clock(case), Metrics(every=LOG_EVERY), CheckpointFiles()
    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            accelerator="gpu" if case.device.type == "cuda" else "cpu",
            devices=devices,
            strategy=strategy,
            precision="bf16-mixed" if case.is_narrow else "32-true",
            max_steps=case.all_steps,
            max_epochs=-1,
            log_every_n_steps=LOG_EVERY,
            callbacks=[metrics, StepProgress(metrics), LastCheckpoint(CHECKPOINT_EVERY, files), clock],
            plugins=[files],
            logger=TensorBoardLogger(folder),
            default_root_dir=folder,
            enable_model_summary=False,
        ).fit(
            LanguageModel(case.net, compile=True, checkpointing=checkpointing),
            datamodule=Batches(case.batches(rank, devices)),
        )
    return clock.seconds


def bare_loop(case: Case, passes: Callable[[Tensor, Tensor], object], update: Callable[[], object]) -> list[float]:
    """Seconds a step of forward and backward pass over a batch of random tokens, and of `update`."""
    batches = [[ids.to(case.device) for ids in batch] for batch in islice(case.batches(), case.all_steps)]
    clock = Clock(case)
    for inputs, targets in batches:
        passes(inputs, targets)
        update()
        clock.tick()
    return clock.seconds


def passes_of(case: Case, loss: Loss, optimizer: torch.optim.Optimizer) -> Callable[[Tensor, Tensor], None]:
    """Forward and backward pass by autograd, under autocast."""

    def passes(inputs: Tensor, targets: Tensor) -> None:
        with torch.autocast(case.device.type, torch.bfloat16, enabled=case.is_narrow):
            value = loss(inputs, targets)
        optimizer.zero_grad()
        value.backward()

    return passes


def ours(case: Case, is_fast: bool) -> list[float]:
    """Ours without Lightning, on the fast path or the readable one."""
    on_cuda = case.device.type == "cuda"
    model = TransformerLM(case.net).to(case.device)
    optimizer = AdamW(parameter_groups(model.named_parameters(), 0.1))
    if is_fast:
        model.speed_up(compiled=not on_cuda)
    if not on_cuda:
        keep_freed_memory()
    recorded = RecordedStep(model)

    def replay(inputs: Tensor, targets: Tensor) -> None:
        with torch.autocast("cuda", torch.bfloat16):
            recorded(inputs, targets)
        optimizer.zero_grad()
        recorded.deliver()

    def update() -> None:
        _, optimizer.gradient_factor = clipping_factor(model.parameters(), 1.0)
        optimizer.step()

    return bare_loop(case, replay if is_fast and on_cuda else passes_of(case, model.loss, optimizer), update)


def rival(case: Case, model: nn.Module, loss: Loss) -> list[float]:
    """A compiled model under torch's fused AdamW."""
    groups = parameter_groups(model.named_parameters(), 0.1)
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), fused=True)

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return bare_loop(case, passes_of(case, loss, optimizer), update)


def nanogpt(case: Case, path: Path) -> list[float]:
    """nanoGPT's model at its own settings: no biases, no dropout, tied embeddings."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is no Python file; give nanoGPT's model.py")
    module = sys.modules["nanogpt_model"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    net = case.net
    shape = {"block_size": net.context_length, "vocab_size": net.vocab_size, "n_layer": net.num_layers}
    config = module.GPTConfig(**shape, n_head=net.num_heads, n_embd=net.d_model, dropout=0.0, bias=False)
    model = module.GPT(config).to(case.device)
    compiled = torch.compile(model)
    return rival(case, model, lambda inputs, targets: compiled(inputs, targets)[1])


def llama(case: Case) -> list[float]:
    """transformers' Llama of our shape."""
    from transformers import LlamaConfig, LlamaForCausalLM

    net = case.net
    config = LlamaConfig(
        vocab_size=net.vocab_size,
        hidden_size=net.d_model,
        intermediate_size=net.ff_width,
        num_hidden_layers=net.num_layers,
        num_attention_heads=net.num_heads,
        max_position_embeddings=net.context_length,
        tie_word_embeddings=net.tie_embeddings,
        use_cache=False,
    )
    model = LlamaForCausalLM(config).to(case.device)  # pyright: ignore

    def loss(inputs: Tensor, targets: Tensor) -> Tensor:
        logits = model(input_ids=inputs).logits
        return nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    return rival(case, model, torch.compile(loss))


def names(path: Path | None) -> list[str]:
    """Everything that can run here."""
    rivals = ["nanogpt"] if path is not None else []
    rivals += ["llama"] if importlib.util.find_spec("transformers") else []
    return ["fit", "bare", "readable", *rivals]


def seconds_a_step(case: Case, name: str, path: Path | None) -> float:
    """The median time of a step; for a process of its own."""
    torch.set_float32_matmul_precision("high")  # as `fit` does
    torch.manual_seed(0)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    if name == "nanogpt":
        assert path is not None
        return median(nanogpt(case, path))
    return median(fit(case) if name == "fit" else llama(case) if name == "llama" else ours(case, name == "bare"))


def main(options: argparse.Namespace) -> None:
    """Measure and print, each contender in a fresh process."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    peak = peak_flops(torch.cuda.get_device_name(), "bfloat16") if device.type == "cuda" else None
    results: list[dict[str, Any]] = []
    for case in cases(device, options.blocks, options.steps):
        if options.shapes and case.name not in options.shapes:
            continue
        reached: float | None = None
        for name in options.only or names(options.nanogpt):
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                seconds = process.submit(seconds_a_step, case, name, options.nanogpt).result()
            rate = case.batch_size * case.net.context_length / seconds
            reached = rate if name == "fit" else reached
            result = {"shape": case.name, "name": name, "seconds": seconds, "tokens_per_second": rate}
            if peak is not None and name != "nanogpt":
                result["mfu"] = model_flop_utilisation(rate, case.net, peak)
            results.append(result)
            used = f"{result['mfu']:.1%}" if "mfu" in result else "-"
            ratio = f"{reached / rate:.2f}" if reached is not None else "-"
            print(
                f"{case.name:<14}{name:<10}{seconds * 1e3:9.2f} ms{rate:13,.0f} tokens/s{used:>8}{ratio:>8}", flush=True
            )
            save(options.out, results)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--nanogpt", type=Path, help="nanoGPT's model.py")
    parser.add_argument("--only", nargs="*", default=[], help="names of those to run: fit, bare, readable, ...")
    parser.add_argument("--shapes", nargs="*", default=[], help="of tinystories and gpt2-small; by default all")
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100, help="steps of a block")
    parser.add_argument("--out", type=Path, default=Path("build/train_step.json"))
    main(parser.parse_args())
