"""Training with the whole model in every process: gradients are averaged over all of them."""

# torch's multi-tensor operations are its own optimizers' tools, but not declared public.
# pyright: reportPrivateImportUsage=false

from collections.abc import Sequence

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lm.training.graph import Exchange
from lm.training.pair import PairExchange, have_atomics


def mean_over_processes(tensor: Tensor) -> Tensor:
    """The tensor, become its mean over all processes; a GPU's is not waited for."""
    averages = tensor.is_cuda  # gloo can only sum
    dist.all_reduce(tensor, dist.ReduceOp.AVG if averages else dist.ReduceOp.SUM)
    return tensor if averages else tensor.div_(dist.get_world_size())


def average(gradients: Sequence[Tensor]) -> list[Tensor]:
    """Their means over all processes: parts of one tensor, so that there is one exchange."""
    sizes = [gradient.numel() for gradient in gradients]
    whole = gradients[0].new_empty(sum(sizes))
    parts = [part.view_as(gradient) for part, gradient in zip(whole.split(sizes), gradients, strict=True)]
    torch._foreach_copy_(parts, list(gradients))
    mean_over_processes(whole)
    return parts


class AverageAfterPass:
    """Means of any number of processes' gradients, in one exchange after the pass.

    Exchanges beside it take multiprocessors away from products that count on all of them, and cost more than they hide.
    """

    scale = 1.0

    def send(self, parameter: Tensor) -> None:
        """Nothing yet."""

    def receive(self, gradients: list[Tensor]) -> list[Tensor]:
        """Their means over all processes."""
        return average(gradients)


class DataParallel(DDPStrategy):
    """Lightning's strategy of that kind, without torch's wrapper around the model, which CUDA graphs would bypass.

    Its name for a run (`ddp`), its launchers and its processes are Lightning's.
    """

    def configure_ddp(self) -> None:
        """All begin with the first process's weights."""
        assert self.lightning_module is not None
        with torch.no_grad():
            for tensor in (*self.lightning_module.parameters(), *self.lightning_module.buffers()):
                dist.broadcast(tensor, 0)

    def exchange(self, parameters: Sequence[Tensor]) -> Exchange:
        """What recorded passes do with the gradients of these parameters; all processes ask at the same time."""
        pair = None
        if self._is_pair():
            try:
                pair = PairExchange(parameters)
            except RuntimeError as error:
                reason = str(error).splitlines()[0]
                rank_zero_warn(f"gradients are exchanged by NCCL, as the two GPUs cannot share memory: {reason}")
        have_pair = mean_over_processes(torch.tensor(float(pair is not None), device=self.root_device))
        return pair if pair is not None and have_pair == 1 else AverageAfterPass()

    def _is_pair(self) -> bool:
        """Whether there are two processes, on GPUs of one host that send each other gradients by themselves."""
        gpus = [device.index for device in self.parallel_devices or [] if device.type == "cuda"]
        return dist.get_world_size() == 2 == len(gpus) and have_atomics(*gpus)
