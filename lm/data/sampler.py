"""Which tokens make up which batch.

Shape letters: B sequences, T context length.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Tokens = npt.NDArray[np.integer]
Order = Literal["random", "shuffled"]
ENDLESS = 1 << 40  # batches in the one endless epoch; the Trainer stops at max_steps


def gather(tokens: Tokens, starts: npt.NDArray[np.int64], context_length: int) -> tuple[Tensor, Tensor]:
    """Windows of tokens and their next-token targets.

    Args:
        tokens: one-dimensional, memory-mapped or not.
        starts: (B,) first positions, each at most len(tokens) - context_length - 1.

    Returns:
        inputs_BT and targets_BT, int64 on the CPU; targets are the inputs one position later.
    """
    windows = torch.from_numpy(tokens[starts[:, None] + np.arange(context_length + 1)].astype(np.int64))
    return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


def require_window(tokens: Tokens, context_length: int, what: str) -> None:
    """Raises ValueError unless `tokens` holds one window and its target."""
    if len(tokens) <= context_length:
        raise ValueError(
            f"{what} holds {len(tokens)} tokens, a context of {context_length} needs at least {context_length + 1}; "
            f"use more text or a smaller context_length"
        )


def get_batch(x: Tokens, batch_size: int, context_length: int, device: str) -> tuple[Tensor, Tensor]:
    """Random windows of `x`, as in the course (section 5, data_loading).

    Returns:
        inputs_BT and targets_BT, int64 on `device`.

    Raises:
        ValueError: `x` is shorter than context_length + 1.
    """
    require_window(x, context_length, "x")
    starts = np.random.default_rng().integers(0, len(x) - context_length, size=batch_size)
    inputs, targets = gather(x, starts, context_length)
    return inputs.to(device), targets.to(device)


@dataclass(frozen=True)
class Slice:
    """One process's part of the global batch: `count` micro-batches of `rows` sequences a step."""

    rank: int
    world_size: int
    rows: int
    count: int

    @classmethod
    def of(cls, batch_size: int, rank: int, world_size: int, accumulate: int) -> "Slice":
        """Raises ValueError unless batch_size divides evenly."""
        parts = world_size * accumulate
        if batch_size % parts:
            raise ValueError(
                f"data.batch_size {batch_size} does not divide over {world_size} devices × {accumulate} accumulated "
                f"batches; use a multiple of {parts}"
            )
        return cls(rank, world_size, batch_size // parts, accumulate)


class TrainBatches:
    """Training batches without end: what step s sees follows from (seed, s) alone.

    Order random draws each window anywhere. Order shuffled reads the text epoch by epoch: every epoch cuts it into
    windows that do not overlap, at an offset of its own, and shuffles them.

    Every process computes the same global batch and takes its own rows, so neither the number of devices nor
    accumulation changes what a step sees. `state_dict` holds the position, which Lightning saves and restores.
    """

    def __init__(
        self,
        tokens: Tokens,
        batch_size: int,
        context_length: int,
        seed: int,
        part: Slice,
        pin_memory: bool = False,
        order: Order = "random",
    ) -> None:
        require_window(tokens, context_length, "the training text")
        self.tokens = tokens
        self.batch_size = batch_size
        self.context_length = context_length
        self.seed = seed
        self.part = part
        self.pin_memory = pin_memory
        self.order = order
        # Windows of an epoch at any offset below the context length, as many for each.
        self.windows = max(1, (len(tokens) - context_length) // context_length)
        self.position = 0
        self._epoch: tuple[int, npt.NDArray[np.int64]] | None = None

    def starts(self, step: int) -> npt.NDArray[np.int64]:
        """(batch_size,) window starts of the global batch at `step`."""
        if self.order == "shuffled":
            drawn = np.arange(step * self.batch_size, (step + 1) * self.batch_size, dtype=np.int64)
            epochs, places = np.divmod(drawn, self.windows)
            return np.concatenate([self._shuffled(e)[places[epochs == e]] for e in np.unique(epochs).tolist()])
        rng = np.random.default_rng([self.seed, step])
        return rng.integers(0, len(self.tokens) - self.context_length, size=self.batch_size)

    def _shuffled(self, epoch: int) -> npt.NDArray[np.int64]:
        """Window starts of an epoch in their order; the newest is kept."""
        if self._epoch is None or self._epoch[0] != epoch:
            rng = np.random.default_rng([self.seed, epoch])
            offset = rng.integers(0, min(self.context_length, len(self.tokens) - self.context_length))
            self._epoch = epoch, offset + self.context_length * rng.permutation(self.windows)
        return self._epoch[1]

    def batch(self, index: int) -> tuple[Tensor, Tensor]:
        """Micro-batch `index` of this process, counted from the start of training."""
        step, micro = divmod(index, self.part.count)
        first = (micro * self.part.world_size + self.part.rank) * self.part.rows
        inputs, targets = gather(self.tokens, self.starts(step)[first : first + self.part.rows], self.context_length)
        return (inputs.pin_memory(), targets.pin_memory()) if self.pin_memory else (inputs, targets)

    def __len__(self) -> int:
        return ENDLESS

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            self.position += 1
            yield self.batch(self.position - 1)

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


class ValidWindows:
    """Every non-overlapping window of the validation tokens, in order; process r takes windows r, r + world, ..."""

    def __init__(self, tokens: Tokens, batch_size: int, context_length: int, rank: int, world_size: int) -> None:
        require_window(tokens, context_length, "the validation text")
        self.tokens = tokens
        self.batch_size = batch_size
        self.context_length = context_length
        windows = (len(tokens) - 1) // context_length
        self.starts = np.arange(rank, windows, world_size, dtype=np.int64) * context_length
        self.batches = math.ceil(math.ceil(windows / world_size) / batch_size)

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for i in range(self.batches):
            yield gather(self.tokens, self.starts[i * self.batch_size : (i + 1) * self.batch_size], self.context_length)
