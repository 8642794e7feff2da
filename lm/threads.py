"""One number of threads for torch and numba, which share OpenMP's."""

import numba
import torch


def share_threads() -> None:
    """Let numba's kernels take as many threads as torch does.

    As numba starts its threads it sets OpenMP's number, which is torch's too, to that of all cores.
    """
    threads = torch.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # pyright: ignore
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
