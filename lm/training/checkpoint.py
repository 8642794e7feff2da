"""Saving and loading training state without Lightning, as in the course (section 5, checkpointing)."""

import os
from pathlib import Path
from typing import IO, BinaryIO

import torch
from torch import nn
from torch.optim import Optimizer


def save_checkpoint(
    model: nn.Module, optimizer: Optimizer, iteration: int, out: str | os.PathLike[str] | BinaryIO | IO[bytes]
) -> None:
    """Write the weights, the optimizer's state and the iteration to a path (atomically) or an open binary file."""
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "iteration": iteration}
    if not isinstance(out, str | os.PathLike):
        torch.save(state, out)
        return
    temporary = Path(f"{os.fspath(out)}.tmp")
    try:
        torch.save(state, temporary)
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(src: str | os.PathLike[str] | BinaryIO | IO[bytes], model: nn.Module, optimizer: Optimizer) -> int:
    """Restore what `save_checkpoint` wrote; only tensors and primitives are ever unpickled.

    Returns:
        The iteration that was saved.

    Raises:
        FileNotFoundError: no such file.
        RuntimeError: the checkpoint is of a model of another shape.
    """
    state = torch.load(src, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["iteration"]
