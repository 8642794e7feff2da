"""Forward and backward pass of a training step as one CUDA graph: launched as a whole, no step waits for Python."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lm.model import TransformerLM

WARM_UPS = 3  # passes before the recording, in which libraries take their memory


class Exchange(Protocol):
    """What processes do with their gradients, as part of what is recorded."""

    scale: float
    """What the gradients are multiplied by before they are sent."""

    def send(self, parameter: Tensor) -> None:
        """Called in the backward pass as soon as the parameter's gradient is complete."""

    def receive(self, gradients: list[Tensor]) -> list[Tensor]:
        """Called after the pass with all gradients; gives those that are delivered."""
        ...


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
        make_exchange: makes, for the trained parameters, what several processes do with their gradients.
    """

    def __init__(
        self, net: TransformerLM, make_exchange: Callable[[Sequence[nn.Parameter]], Exchange] | None = None
    ) -> None:
        self.net = net
        self.parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
        self._make_exchange = make_exchange
        self._exchange: Exchange | None = None
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

    @property
    def exchanges(self) -> bool:
        """Whether the gradients that are delivered are those of all processes already."""
        return self._make_exchange is not None

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
        from lm.model.kernels.together import compiled_together

        batch = token_ids.clone(), targets.clone()
        held = [parameter.grad for parameter in self.parameters]
        if self._exchange is None and self._make_exchange is not None:
            self._exchange = self._make_exchange(self.parameters)
        exchange = self._exchange
        # The cache of narrow weights would outlive the recording.
        narrow, enabled = torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda")
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())

        def passes() -> tuple[Tensor, list[Tensor]]:
            for parameter in self.parameters:
                parameter.grad = None
            with torch.autocast("cuda", narrow, enabled=enabled, cache_enabled=False):
                loss = self.net.loss(*batch, gradient_scale=exchange.scale if exchange is not None else 1.0)
            with torch.autocast("cuda", enabled=False):
                loss.backward()
            return loss.detach(), [parameter.grad for parameter in self.parameters if parameter.grad is not None]

        def run() -> tuple[Tensor, list[Tensor]]:
            loss, gradients = passes()
            return loss, gradients if exchange is None else exchange.receive(gradients)

        with torch.cuda.stream(stream):
            with compiled_together():
                passes()
            hooks: list[RemovableHandle] = []
            if exchange is not None:
                hooks = [parameter.register_post_accumulate_grad_hook(exchange.send) for parameter in self.parameters]
            for _ in range(WARM_UPS):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        # Other threads, such as NCCL's, may go on asking the device meanwhile.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            loss, gradients = run()
        for hook in hooks:
            hook.remove()
        for parameter, gradient in zip(self.parameters, held, strict=True):
            parameter.grad = gradient
        return _Recorded(graph, batch, loss, gradients)
