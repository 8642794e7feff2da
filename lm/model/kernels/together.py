"""Kernels in Triton compiled at the same time: one after the other they make a model's first step wait ten seconds."""
# pyright: reportMissingImports=false

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
import triton
from triton.runtime.jit import JITFunction


@contextmanager
def compiled_together() -> Iterator[None]:
    """Kernels that this thread launches within are compiled, beside each other, and do not run.

    What they would have written stays undefined. A backward pass within runs on this thread too.
    """
    launch, kernels = JITFunction.run, set[Any]()

    def compile_only(function: Any, *arguments: Any, **options: Any) -> None:
        kernel = launch(function, *arguments, **{**options, "warmup": True})
        if isinstance(kernel, triton.FutureKernel):
            kernels.add(kernel)

    with ThreadPoolExecutor(initializer=torch.cuda.set_device, initargs=(torch.cuda.current_device(),)) as threads:
        JITFunction.run = compile_only
        try:
            with torch.autograd.set_multithreading_enabled(False), triton.AsyncCompileMode(threads):
                yield
        finally:
            JITFunction.run = launch
        # `run` loads a kernel and compiles what launches it, a function in C.
        list(threads.map(lambda kernel: kernel.result().run, kernels))
