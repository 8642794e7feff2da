"""Compiled loops on the threads that torch's own operations run on.

A second set of threads would fight with them for the cores: after each operation OpenMP's threads wait for the next
one busily, for milliseconds.
"""

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch


@cache
def _openmp() -> Any:
    """The OpenMP library that torch has loaded, by the names that GCC's and LLVM's share; None if there is none."""
    try:
        library = ctypes.CDLL(None)
        library.GOMP_parallel.restype = None
    except (AttributeError, OSError, TypeError):
        return None
    return library


def share_out(work: Callable[[int, int], object], count: int) -> None:
    """Call `work(start, end)` on each of torch's threads at once, for its share of `count` things.

    `work` must not raise, and gains where it runs without Python's global lock.
    """
    threads, openmp = torch.get_num_threads(), _openmp()
    if threads == 1:
        work(0, count)
    elif openmp is None:
        with ThreadPoolExecutor(threads) as pool:
            for index in range(threads):
                pool.submit(work, count * index // threads, count * (index + 1) // threads)
    else:

        def run(_: int | None) -> None:
            index, number = openmp.omp_get_thread_num(), openmp.omp_get_num_threads()
            work(count * index // number, count * (index + 1) // number)

        openmp.GOMP_parallel(ctypes.CFUNCTYPE(None, ctypes.c_void_p)(run), None, threads, 0)
