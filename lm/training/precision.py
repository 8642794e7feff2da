"""Arithmetic that this machine is made for."""

import sys
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only

from lm.terminal import say

BFLOAT16 = "avx512bf16", "amx-bf16", "bf16"  # LLVM's names for products of x86 processors, two kinds, and ARM's


def multiplies_in_bfloat16() -> bool:
    """Whether this CPU has instructions for it that torch uses; without, it takes several times as long as float32."""
    from llvmlite import binding  # takes a tenth of a second, and GPUs do not need it

    features = binding.get_host_cpu_features()
    return torch.backends.mkldnn.is_available() and any(features.get(name, False) for name in BFLOAT16)


def settle_precision(trainer: Any) -> None:
    """Make a configuration's bf16-mixed 32-true on a CPU without bfloat16, and say so, unless the command line has it.

    Args:
        trainer: the keys of Lightning's Trainer, parsed.
    """
    on_cpu = trainer["accelerator"] == "cpu" or (
        trainer["accelerator"] == "auto" and not torch.accelerator.is_available()
    )
    is_asked = any(argument.partition("=")[0] == "--trainer.precision" for argument in sys.argv)
    if trainer["precision"] == "bf16-mixed" and on_cpu and not is_asked and not multiplies_in_bfloat16():
        trainer["precision"] = "32-true"
        rank_zero_only(say)(
            "trainer.precision: 32-true in place of bf16-mixed, for which this CPU has no instructions and would take "
            "several times as long; --trainer.precision bf16-mixed insists on it"
        )
