"""Peak memory of the parts of a step: by CUDA's allocator, elsewhere by the tensors that operations make."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Step = Callable[[Callable[[str], object]], object]


class AllocationMode(TorchDispatchMode):
    """Bytes of all storages that operations make, now and at most; for devices whose allocator does not count.

    Under any such mode the derivative of `gather` makes one tensor more, of the logits' size, than it does without.
    """

    def __init__(self, already_there: list[Tensor]) -> None:
        super().__init__()
        self.known = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in already_there}
        self.now = self.peak = sum(self.known.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and (key := tensor.untyped_storage()._cdata) not in self.known:
                storage = tensor.untyped_storage()
                self.known[key] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._freed, key)
        return out

    def _freed(self, key: int) -> None:
        self.now -= self.known.pop(key)

    def take_peak(self) -> int:
        """The peak since the last call."""
        peak, self.peak = self.peak, self.now
        return peak


def peaks_by_operations(step: Step, already_there: list[Tensor]) -> dict[str, int]:
    """Peak bytes of each part of the second step.

    Args:
        step: one step of training, which calls what it is given with the name of each part that has ended.
        already_there: tensors made before the first step.
    """
    peaks: dict[str, int] = {}
    with AllocationMode(already_there) as mode:
        for _ in range(2):
            mode.take_peak()
            step(lambda part: peaks.update({part: mode.take_peak()}))
    return peaks


def peaks_on_cuda(step: Step) -> tuple[dict[str, int], dict[str, int]]:
    """`torch.cuda.max_memory_allocated` of each part of the third step.

    Returns:
        the peaks; and of the whole step what was asked of the allocator at most, without its rounding, and what
        cuBLAS's workspaces hold.
    """
    peaks: dict[str, int] = {}
    requested = 0

    def take(part: str) -> None:
        nonlocal requested
        peaks[part] = torch.cuda.max_memory_allocated()
        requested = max(requested, torch.cuda.memory_stats().get("requested_bytes.all.peak", 0))
        torch.cuda.reset_peak_memory_stats()

    step(lambda part: None)
    step(lambda part: None)
    torch.cuda.reset_peak_memory_stats()
    step(take)
    before = torch.cuda.memory_allocated()
    torch._C._cuda_clearCublasWorkspaces()
    return peaks, {"requested": requested, "workspaces": before - torch.cuda.memory_allocated()}
