"""Speed and memory of `fit` on the GPUs of one host: `torchrun --nproc-per-node 2 -m benchmarks.several_gpus`.

The step of benchmarks.train_step's `fit`, by Lightning's loop in one process a GPU; without torchrun, on one. The batch
is a GPU's, so that each of them has the same work however many there are.
"""

import argparse
import logging
import os
import warnings
from dataclasses import replace

import torch

from benchmarks.machine import median
from benchmarks.train_step import GPT2, Case, fit
from lm.accounting import PRESETS, count_parameters
from lm.training.fsdp import STRATEGIES

SHAPES = {name: preset.net for name, preset in PRESETS.items()} | {"gpt2-small": GPT2}


def main(options: argparse.Namespace) -> None:
    """Train random tokens; the first process prints one line."""
    devices, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    net = SHAPES[options.shape]
    if options.num_layers:
        net = replace(net, num_layers=options.num_layers)
    if options.context_length:
        net = replace(net, context_length=options.context_length)
    torch.set_float32_matmul_precision("high")  # as `fit` does
    torch.manual_seed(0)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    strategy = STRATEGIES[options.strategy]() if options.strategy in STRATEGIES else options.strategy
    case = Case(options.shape, net, options.batch_size * devices, torch.device("cuda"), options.blocks, options.steps)
    seconds = median(fit(case, strategy, rank, devices, options.checkpointing))
    if rank == 0:
        rate = case.batch_size * net.context_length / seconds
        peak, capacity = torch.cuda.max_memory_allocated() / 1e9, torch.cuda.mem_get_info()[1] / 1e9
        parameters = count_parameters(net).total
        print(
            f"{options.shape}, {parameters:,} parameters, {options.strategy} on {devices} x "
            f"{torch.cuda.get_device_name()}, {options.batch_size} x {net.context_length} tokens each: "
            f"{seconds * 1e3:.2f} ms, {rate:,.0f} tokens/s, {peak:.2f} of {capacity:.2f} GB at most; parameters, "
            f"gradients and moments are {16 * parameters / 1e9:.2f} GB",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--shape",
        default="tinystories",
        choices=list(SHAPES),
        help="gpt2-small as in benchmarks.train_step",
    )
    parser.add_argument("--num_layers", type=int, help="instead of the shape's")
    parser.add_argument("--context_length", type=int, help="instead of the shape's")
    parser.add_argument("--batch_size", type=int, default=128, help="sequences a GPU")
    parser.add_argument("--strategy", choices=["auto", *STRATEGIES], default="auto")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100, help="steps of a block")
    main(parser.parse_args())
