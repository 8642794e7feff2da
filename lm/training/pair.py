"""Gradients of two GPUs of one host, which send each other theirs while the backward pass goes on.

Each is sent as soon as it is complete, by the copy engines, which take no multiprocessors from the products; a
collective's kernels would, and products that count on all multiprocessors would wait for them.
"""

# torch's multi-tensor operations are its own optimizers' tools, but not declared public.
# pyright: reportPrivateImportUsage=false

import ctypes
import os
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

ALIGNED = 64  # numbers; each gradient's place in the inbox begins at a multiple of 256 bytes
TIMEOUT = 30 * 60 * 1000  # milliseconds that one process may keep the other waiting, as with NCCL
NATIVE_ATOMICS = 3  # CU_DEVICE_P2P_ATTRIBUTE_NATIVE_ATOMIC_SUPPORTED of CUDA's driver interface


def have_atomics(first: int, second: int) -> bool:
    """Whether GPUs of these numbers can wait for each other by atomic operations: by NVLink they can, by PCIe not."""
    supported = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    driver.cuInit(0)
    status = driver.cuDeviceGetP2PAttribute(ctypes.byref(supported), NATIVE_ATOMICS, first, second)
    return status == 0 and supported.value == 1


class PairExchange:
    """Means of two processes' gradients, as `lm.training.graph.Exchange`.

    The other GPU writes into this one's inbox, which is as large as all gradients together. So before the first
    gradient of a pass is sent both must have read what the pass before has brought, and before a part of the inbox is
    read both must have sent it. There are two parts: all but the last gradient are added while that one is on its way.

    Args:
        parameters: what is trained, the same in both processes, which make their exchange at the same time, each for a
            GPU of its own; the two have atomics.

    Raises:
        RuntimeError: the processes may not share memory, which some containers forbid.
    """

    scale = 0.5

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        os.environ.setdefault("TORCH_SYMM_MEM_DISABLE_MULTICAST", "1")  # not needed, and not every host has it
        import torch.distributed._symmetric_memory as symmetric_memory

        sizes = [-(-parameter.numel() // ALIGNED) * ALIGNED for parameter in parameters]
        inbox = symmetric_memory.empty(sum(sizes), dtype=torch.float32, device=parameters[0].device)
        assert dist.group.WORLD is not None
        self._memory = symmetric_memory.rendezvous(inbox, dist.group.WORLD)
        outbox = self._memory.get_buffer(1 - dist.get_rank(), (sum(sizes),), torch.float32)

        def parts(whole: Tensor) -> list[Tensor]:
            cut = zip(whole.split(sizes), parameters, strict=True)
            return [part[: parameter.numel()].view_as(parameter) for part, parameter in cut]

        self._inbox, self._outbox = parts(inbox), parts(outbox)
        self._numbers = {id(parameter): number for number, parameter in enumerate(parameters)}
        self._last: int | None = None  # that has been sent in this pass
        self._stream = torch.cuda.Stream(parameters[0].device)

    def send(self, parameter: Tensor) -> None:
        """To be called in the backward pass, when the parameter's gradient is complete."""
        assert parameter.grad is not None
        number = self._numbers[id(parameter)]
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            if self._last is None:
                self._memory.barrier(channel=0, timeout_ms=TIMEOUT)
            self._before_last = self._stream.record_event()
            self._outbox[number].copy_(parameter.grad, non_blocking=True)
        self._last = number

    def receive(self, gradients: list[Tensor]) -> list[Tensor]:
        """To be called after the pass; adds the other process's gradients to these, which are all parameters'."""
        stream, last = torch.cuda.current_stream(), self._last
        assert last is not None
        with torch.cuda.stream(self._stream):
            self._memory.barrier(channel=1, timeout_ms=TIMEOUT)
        stream.wait_event(self._before_last)
        self._memory.barrier(channel=2, timeout_ms=TIMEOUT)
        torch._foreach_add_(gradients[:last] + gradients[last + 1 :], self._inbox[:last] + self._inbox[last + 1 :])
        stream.wait_stream(self._stream)
        gradients[last].add_(self._inbox[last])
        self._last = None
        return gradients
