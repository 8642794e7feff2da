"""Training with everything sharded: parameters, gradients and moments, by torch's FSDP2 (Zhao et al. 2023).

Each process holds its rows of every tensor. A block's parameters are gathered before its pass and freed after it; its
gradients are averaged and scattered to the rows' owners.
"""

import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Shard
from torch.optim import Optimizer

from lm.model import TransformerLM
from lm.training.data_parallel import DataParallel
from lm.training.files import SaveError, write_checkpoint
from lm.training.shards import KEY, Pieces, cut, read, remove_others, shards_folder, walk


def shard(net: TransformerLM, mesh: DeviceMesh, narrow: torch.dtype | None = None) -> None:
    """Shard each block, and what is around the blocks; from then on `net.loss` is a collective of all processes.

    Args:
        net: on any device; each process starts with the same weights.
        mesh: one dimension, the processes.
        narrow: type that parameters are gathered and used in; their shards and the gradients' sums stay float32. By
            default the parameters' own.
    """
    policy = MixedPrecisionPolicy(param_dtype=narrow, reduce_dtype=narrow and torch.float32)
    for layer in net.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
        register_fsdp_forward_method(layer, "run")
    fully_shard(net, mesh=mesh, mp_policy=policy)
    register_fsdp_forward_method(net, "loss")


class FullySharded(ModelParallelStrategy):
    """Lightning's strategy for `shard`, over all processes, with checkpoints of `lm.training.shards`."""

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    @property
    def processes(self) -> DeviceMesh:
        """The mesh to shard over."""
        return self.device_mesh["data_parallel"]

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def shard(self, net: TransformerLM) -> None:
        """`shard` over this strategy's processes, once; in bfloat16 under bf16-mixed."""
        if not isinstance(net, FSDPModule):
            shard(net, self.processes, torch.bfloat16 if self.precision_plugin.precision == "bf16-mixed" else None)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        return self.lightning_module.state_dict()

    def optimizer_state(self, optimizer: Optimizer | LightningOptimizer) -> dict[str, Any]:
        return (optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer).state_dict()

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """Each process writes its rows, then the first the file that names them. Raises SaveError in all, if in one."""
        path, name = self.broadcast((Path(filepath), f"{checkpoint['global_step']}-{secrets.token_hex(4)}"))
        rest, sharded = cut(checkpoint, lambda leaf: isinstance(leaf, DTensor))
        folder = shards_folder(path) / name
        try:
            with self._all_or_none():
                tensors = [tensor.to_local() for tensor in sharded]
                write_checkpoint({"tensors": tensors}, folder / f"{self.global_rank}.pt", path)
            with self._all_or_none():
                if self.is_global_zero:
                    write_checkpoint(rest | {KEY: {"folder": name, "count": self.world_size}}, path)
        except SaveError:
            if self.is_global_zero:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        if self.is_global_zero:
            remove_others(path, name)

    @contextmanager
    def _all_or_none(self) -> Iterator[None]:
        """A SaveError of one process is one of all, so that none waits for another."""
        error = None
        try:
            yield
        except SaveError as raised:
            error = str(raised)
        errors: list[str | None] = [None] * self.world_size
        dist.all_gather_object(errors, error)
        if said := [error for error in errors if error is not None]:
            raise SaveError(said[0])

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        return read(Path(checkpoint_path))

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        self.lightning_module.load_state_dict(walk(checkpoint["state_dict"], self._own_rows), strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(walk(state, self._own_rows))

    def _own_rows(self, leaf: Any) -> Any:
        """A tensor, whole or in pieces, as FSDP2 shards it: by torch.chunk along the first dimension."""
        if isinstance(leaf, Tensor):
            leaf = Pieces((leaf,))
        if not isinstance(leaf, Pieces):
            return leaf
        rows = -(-leaf.shape[0] // self.world_size)
        local = leaf.rows(self.global_rank * rows, (self.global_rank + 1) * rows).to(self.root_device)
        stride = torch.empty(leaf.shape, device="meta").stride()
        placement = [Shard(0)]
        return DTensor.from_local(local, self.processes, placement, run_check=False, shape=leaf.shape, stride=stride)


# By the name on the command line, where Lightning's own have these names.
STRATEGIES: dict[str, Callable[[], Strategy]] = {"ddp": DataParallel, "fsdp": FullySharded}
