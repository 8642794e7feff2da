"""Numbers on their way from the device to the host."""

import torch
from torch import Tensor


class HostCopy:
    """A tensor's numbers: their copy to the host begins here, and is waited for where they are read.

    Attributes:
        was_late: whether `read` had to wait for the device.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.was_late = False
        self._numbers, self._copied = tensor, None
        if tensor.is_cuda:
            self._numbers = tensor.to("cpu", non_blocking=True)  # into pinned memory
            self._copied = torch.cuda.Event()
            self._copied.record()

    def read(self) -> list[float]:
        """The numbers, once the device has come to them."""
        if self._copied is not None:
            self.was_late = not self._copied.query()
            self._copied.synchronize()
        return self._numbers.tolist()
