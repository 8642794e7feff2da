"""Forward and backward pass of a training step as one CUDA graph: launched as a whole, no step waits for Python."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lm.model import TransformerLM

WARM_UPS = 3  # passes before the recording, in which kernels are compiled and libraries take their memory


class _Recorded(NamedTuple):
    graph: torch.cuda.CUDAGraph
    batch: tuple[Tensor, Tensor]
    loss: Tensor
    gradients: list[Tensor]


class RecordedStep:
    """`net.loss` and its gradients, recorded at the first batch of each shape and replayed for the others.

    What is recorded holds for parameters that stay where they are, and passes that draw no random numbers.

    Args:
        net: the model, on a CUDA device.
        average: what is to be recorded after each pass: takes the gradients and gives those that are delivered.
    """

    def __init__(self, net: TransformerLM, average: Callable[[list[Tensor]], list[Tensor]] | None = None) -> None:
        self.net = net
        self.average = average
        self.parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
        self._recorded: dict[torch.Size, _Recorded] = {}
        self._newest: _Recorded | None = None

    def __call__(self, token_ids: Tensor, targets: Tensor) -> Tensor:
        """The loss, as `TransformerLM.loss` gives it under the autocast that holds now; overwritten by the next."""
        if token_ids.shape not in self._recorded:
            self._recorded[token_ids.shape] = self._record(token_ids, targets)
        self._newest = step = self._recorded[token_ids.shape]
        for mine, given in zip(step.batch, (token_ids, targets), strict=True):
            mine.copy_(given)
        step.graph.replay()
        return step.loss

    def deliver(self, scale: float = 1.0) -> None:
        """Add the newest pass's gradients, times `scale`, to the parameters'; they are overwritten by the next pass."""
        assert self._newest is not None
        for parameter, gradient in zip(self.parameters, self._newest.gradients, strict=True):
            if parameter.grad is not None:
                parameter.grad.add_(gradient, alpha=scale)
            elif scale == 1:
                parameter.grad = gradient
            else:
                parameter.grad = gradient * scale

    def _record(self, token_ids: Tensor, targets: Tensor) -> _Recorded:
        batch = token_ids.clone(), targets.clone()
        held = [parameter.grad for parameter in self.parameters]
        # The cache of narrow weights would outlive the recording.
        narrow, enabled = torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda")
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())

        def run() -> tuple[Tensor, list[Tensor]]:
            for parameter in self.parameters:
                parameter.grad = None
            with torch.autocast("cuda", narrow, enabled=enabled, cache_enabled=False):
                loss = self.net.loss(*batch, is_last=True)
            with torch.autocast("cuda", enabled=False):
                loss.backward()
            gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
            return loss.detach(), gradients if self.average is None else self.average(gradients)

        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        # Other threads, such as NCCL's, may go on asking the device meanwhile.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            loss, gradients = run()
        for parameter, gradient in zip(self.parameters, held, strict=True):
            parameter.grad = gradient
        return _Recorded(graph, batch, loss, gradients)
