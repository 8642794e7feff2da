"""Work on a second stream of a CUDA device, beside what else it does."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch


@cache
def _second(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


@contextmanager
def beside(device: torch.device) -> Iterator[None]:
    """What is launched within comes after what was launched before, and beside what follows until `meet`."""
    if device.type != "cuda":
        yield
        return
    _second(device).wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(_second(device)):
        yield


def meet(device: torch.device) -> None:
    """What follows comes after what was launched `beside`."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).wait_stream(_second(device))
