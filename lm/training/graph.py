"""Forward and backward pass of a training step as CUDA graphs: launched as a whole, so no step waits for Python."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lm.model import TransformerLM


class RecordedLoss:
    """`net.loss` for training batches, recorded at the first batch of each shape and replayed for the others.

    What is recorded holds for parameters that stay where they are, gradients that are cleared at every step, and passes
    that draw no random numbers.

    Args:
        net: the model, on a CUDA device.
    """

    def __init__(self, net: TransformerLM) -> None:
        self.net = net
        self.recorded: dict[torch.Size, Callable[[Tensor, Tensor], Tensor]] = {}

    def __call__(self, token_ids: Tensor, targets: Tensor) -> Tensor:
        """The loss, as `TransformerLM.loss` gives it; under the autocast that holds now."""
        if token_ids.shape not in self.recorded:
            # The cache of narrow weights would outlive the recording.
            enabled, narrow = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
            with torch.autocast("cuda", narrow, enabled=enabled, cache_enabled=False):
                samples = (token_ids.clone(), targets.clone())
                recorded = torch.cuda.make_graphed_callables(_Loss(self.net), samples)
            self.recorded[token_ids.shape] = recorded  # pyright: ignore[reportArgumentType]
        return self.recorded[token_ids.shape](token_ids, targets)


class _Loss(nn.Module):
    """`net.loss` as a module's forward pass, which is what can be recorded."""

    def __init__(self, net: TransformerLM) -> None:
        super().__init__()
        self.net = net

    def forward(self, token_ids: Tensor, targets: Tensor) -> Tensor:
        return self.net.loss(token_ids, targets)
