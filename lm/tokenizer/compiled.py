"""How the fast path is compiled: by numba, once a machine, without the interpreter's lock.

Importing this module imports numba, which takes up to half a second; only large inputs are worth it. The cache looks
at the time stamp of a function's own file only: after changing one that compiled functions of other files call, remove
lm/tokenizer/__pycache__.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Timer
from typing import Any

import numpy as np
from numba import njit

log = logging.getLogger("lm")

# Indices of arrays are made unsigned in the inner loops: numba then leaves out the check for negative ones.
U = np.uint64
LOADING_S = 2.0  # cached code is there sooner


def jit(function: Callable[..., Any]) -> Any:
    """Compile at the first call. Where neither the package's nor the user's folder can be written, without a cache."""
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:
        return njit(nogil=True)(function)


@contextmanager
def compiling() -> Iterator[None]:
    """Say so when the code is not in the cache yet."""
    timer = Timer(LOADING_S, log.warning, ("compiling the tokenizer, once on this machine: about 15 seconds",))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
