"""What all processes know at the same step though one of them was told, by an exchange that no step waits for."""

import torch
import torch.distributed as dist
from torch import Tensor


class Agreement:
    """Whether any process has said yes.

    One process's word is known at once. Several exchange theirs on their CPUs beside the next step, whose end knows it.

    Args:
        processes: how many there are; each makes its Agreement at the same time as the others.
    """

    def __init__(self, processes: int) -> None:
        self._group = dist.new_group(backend="gloo") if processes > 1 else None
        self._exchange: tuple[dist.Work, Tensor] | None = None

    def ask(self, yes: bool) -> bool:
        """Give this process's word at the end of a step; returns what is known then, the same in all processes."""
        if self._group is None:
            return yes
        known = self._receive()
        if not known:
            word = torch.tensor(int(yes))
            work = dist.all_reduce(word, dist.ReduceOp.MAX, self._group, async_op=True)
            assert work is not None
            self._exchange = work, word
        return known

    def end(self) -> None:
        """Let go of the other processes once they have the newest word too."""
        self._receive()
        self._group = None

    def _receive(self) -> bool:
        if self._exchange is None:
            return False
        (work, word), self._exchange = self._exchange, None
        work.wait()
        return bool(word)
