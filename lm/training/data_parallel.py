"""Training with the whole model in every process: gradients are averaged over all of them."""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor


class DataParallel(DDPStrategy):
    """Lightning's strategy of that kind, without torch's wrapper around the model, which CUDA graphs would bypass.

    Its words for a run (`ddp`), its launchers and its processes are Lightning's.
    """

    def configure_ddp(self) -> None:
        """All begin with the first process's weights."""
        assert self.lightning_module is not None
        with torch.no_grad():
            for tensor in (*self.lightning_module.parameters(), *self.lightning_module.buffers()):
                dist.broadcast(tensor, 0)

    def average(self, gradients: Sequence[Tensor]) -> None:
        """Put the mean over all processes into each of them; all are asked in one order."""
        begun = [self._begin(gradient) for gradient in gradients]
        for end in begun:
            end()

    def averaging(self, parameters: Sequence[Tensor]) -> Callable[[], None]:
        """From now on each gradient is averaged as soon as it is whole, beside the rest of the backward pass.

        Returns:
            What ends this, after the pass, and waits for the last of them.
        """
        begun: list[Callable[[], None]] = []

        def begin(parameter: Tensor) -> None:
            assert parameter.grad is not None
            begun.append(self._begin(parameter.grad))

        hooks = [parameter.register_post_accumulate_grad_hook(begin) for parameter in parameters]

        def end() -> None:
            for hook in hooks:
                hook.remove()
            for wait in begun:
                wait()

        return end

    def _begin(self, gradient: Tensor) -> Callable[[], None]:
        averages = gradient.is_cuda  # gloo can only sum
        work = dist.all_reduce(gradient, dist.ReduceOp.AVG if averages else dist.ReduceOp.SUM, async_op=True)
        assert work is not None

        def end() -> None:
            work.wait()
            if not averages:
                gradient.div_(self.world_size)

        return end
