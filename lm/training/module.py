"""The LightningModule: model, loss, optimizer and schedule. Logging lives in `callbacks`, comparison in `resume`.

Shape letters: B batch, T time, V vocabulary.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor

from lm.data.datamodule import TokenDataModule
from lm.model import ModelConfig, TransformerLM
from lm.model.kernels import has_triton
from lm.optim import AdamW, Muon, clipping_factor, get_lr_cosine_schedule, muon_groups, parameter_groups
from lm.training.allocator import keep_freed_memory
from lm.training.data_parallel import DataParallel, average, mean_over_processes
from lm.training.fsdp import FullySharded
from lm.training.graph import RecordedStep
from lm.training.resume import check_resume, run_identity

Algorithm = Literal["adamw", "muon"]


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer, its schedule and clipping.

    Args:
        algorithm: adamw, or muon for the blocks' matrices with AdamW for the rest.
        max_learning_rate: peak of the schedule, reached after the warmup.
        min_learning_rate: end of the cosine.
        warmup_iters: optimizer steps of linear warmup.
        cosine_cycle_iters: step at which the cosine ends; by default trainer.max_steps.
        betas: decay of the first and second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled decay of matrices and embeddings; norms are not decayed.
        max_l2_norm: gradients are scaled down to this global norm.
    """

    algorithm: Algorithm = "adamw"
    max_learning_rate: float = 1e-3
    min_learning_rate: float = 1e-4
    warmup_iters: int = 100
    cosine_cycle_iters: int | None = None
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    max_l2_norm: float = 1.0

    def __post_init__(self) -> None:
        if self.algorithm not in get_args(Algorithm):
            raise ValueError(f"algorithm is {self.algorithm!r}; choose from {', '.join(get_args(Algorithm))}")
        if not 0 <= self.min_learning_rate <= self.max_learning_rate:
            raise ValueError(
                f"min_learning_rate {self.min_learning_rate} must lie between 0 and max_learning_rate "
                f"{self.max_learning_rate}"
            )
        if self.warmup_iters < 0:
            raise ValueError(f"warmup_iters is {self.warmup_iters}, it must be at least 0")
        if self.max_l2_norm <= 0:
            raise ValueError(f"max_l2_norm is {self.max_l2_norm}, it must be above 0")


class LanguageModel(LightningModule):
    """A TransformerLM in training.

    Args:
        net: the model's shape.
        optimizer: the optimizer, its schedule and clipping.
        compile: record a step's passes as one CUDA graph on NVIDIA GPUs, compile the blocks with torch.compile
            elsewhere; by default on GPUs only, as it pays there at once.
        checkpointing: keep each block's input only and compute the block again in the backward pass: less memory for
            about a third more time.
    """

    def __init__(
        self,
        net: ModelConfig = ModelConfig(),
        optimizer: OptimizerConfig = OptimizerConfig(),
        compile: bool | None = None,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.config = net
        self.optimizer_config = optimizer
        self.compile_net = compile
        self.net = TransformerLM(net)
        self.net.checkpointing = checkpointing
        self.gradient_norm = torch.tensor(float("nan"))
        self._norms: list[tuple[int, Tensor]] = []  # of steps whose norms nobody has looked at: asking takes time
        self._first_bad_step = torch.tensor(math.inf)
        self.train_loss_sum = torch.tensor(0.0)
        self.train_loss_count = 0
        self.valid_loss = float("nan")
        self._valid_sum = torch.tensor(0.0)
        self._valid_count = 0
        self._recorded: RecordedStep | None = None

    def setup(self, stage: str) -> None:
        """Check the data against the model, and put the model on its fast path."""
        strategy = self.trainer.strategy
        if not isinstance(strategy, SingleDeviceStrategy | DDPStrategy | FullySharded):
            raise ValueError(f"trainer.strategy {type(strategy).__name__} is not supported; use ddp or fsdp")
        if self.is_sharded and self.optimizer_config.algorithm == "muon":
            raise ValueError(
                "model.optimizer.algorithm muon needs whole matrices, which trainer.strategy fsdp cuts; use adamw, or "
                "ddp"
            )
        data = self.data
        if data is not None:
            if data.files.meta.vocab_size > self.config.vocab_size:
                raise ValueError(
                    f"the tokens use {data.files.meta.vocab_size} ids, the model has {self.config.vocab_size}; "
                    f"set model.net.vocab_size to at least {data.files.meta.vocab_size}"
                )
            if data.context_length > self.config.context_length:
                raise ValueError(
                    f"data.context_length {data.context_length} exceeds the model's {self.config.context_length}; "
                    f"raise model.net.context_length"
                )
        on_cuda, has_kernels = strategy.root_device.type == "cuda", has_triton(strategy.root_device)
        wanted = self.compile_net if self.compile_net is not None else on_cuda
        self.net.speed_up(wanted and (self.is_sharded or not has_kernels), packed=not self.is_sharded)
        can_record = isinstance(strategy, SingleDeviceStrategy | DataParallel) and not self.config.dropout
        if wanted and has_kernels and can_record and not self.net.checkpointing:
            at_once = self.trainer.accumulate_grad_batches == 1
            self._recorded = RecordedStep(
                self.net, strategy.exchange if isinstance(strategy, DataParallel) and at_once else None
            )
        if not on_cuda:
            keep_freed_memory()

    def teardown(self, stage: str) -> None:
        """Let go of what was recorded: a process group with an exchange in it could not end."""
        self._recorded = None

    def configure_model(self) -> None:
        """Shard the model where the strategy is to do so."""
        if isinstance(self.trainer.strategy, FullySharded):
            self.trainer.strategy.shard(self.net)

    @property
    def is_sharded(self) -> bool:
        """Whether no process has the whole model, so that passes are collectives."""
        return isinstance(self.trainer.strategy, FullySharded)

    @property
    def data(self) -> TokenDataModule | None:
        """The data module of this run, if it is ours."""
        data = getattr(self.trainer, "datamodule", None)
        return data if isinstance(data, TokenDataModule) else None

    def on_train_start(self) -> None:
        """The restored optimizer holds the checkpoint's hyperparameters; the command's take their place."""
        config = self.optimizer_config
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, AdamW)
        for group in optimizer.param_groups:
            group.update(betas=config.betas, eps=config.eps)
            if group["params"][0].ndim >= 2:
                group["weight_decay"] = config.weight_decay

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Learning rate and dropout are pure functions of the step, so that a resumed run repeats them."""
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, AdamW)
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate(self.global_step)
        if self.config.dropout and self.data is not None:
            stream = np.random.SeedSequence([self.data.seed, batch_idx, self.global_rank])
            torch.manual_seed(int(stream.generate_state(1, np.uint64)[0] >> 1))

    def learning_rate(self, step: int) -> float:
        """Learning rate of optimizer step `step` (from 0): the schedule's value after that step."""
        config = self.optimizer_config
        return get_lr_cosine_schedule(
            step + 1,
            config.max_learning_rate,
            config.min_learning_rate,
            config.warmup_iters,
            config.cosine_cycle_iters or self.trainer.max_steps,
        )

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = self._recorded(*batch) if self._recorded is not None else self.net.loss(*batch)
        self.train_loss_sum = self.train_loss_sum.to(loss.device) + loss.detach()
        self.train_loss_count += 1
        return loss

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """The backward pass, or the gradients of one that was recorded with the forward pass."""
        if self._recorded is None:
            super().backward(loss, *args, **kwargs)
        else:
            self._recorded.deliver(1 / self.trainer.accumulate_grad_batches)

    def pop_figures(self) -> Tensor:
        """Mean training loss since the last call over all processes, newest gradient norm, and `first_bad_step`.

        Nothing waits for the device.
        """
        mean = self.train_loss_sum / self.train_loss_count
        if self.trainer.world_size > 1:
            mean = mean_over_processes(mean)
        self.train_loss_sum = torch.zeros_like(self.train_loss_sum)
        self.train_loss_count = 0
        return torch.stack([mean, self.gradient_norm, self.first_bad_step])

    @property
    def first_bad_step(self) -> Tensor:
        """The first optimizer step, from 0, whose gradient was no number; infinity where there was none."""
        if self._norms:
            norms = torch.stack([norm for _, norm in self._norms])
            steps = self._norms[0][0] + torch.arange(len(norms), device=norms.device)
            first = torch.where(norms.isfinite(), math.inf, steps).min()
            self._first_bad_step = torch.minimum(self._first_bad_step.to(first.device), first)
            self._norms.clear()
        return self._first_bad_step

    def on_validation_epoch_start(self) -> None:
        precise = torch.float32 if self.device.type == "mps" else torch.float64
        self._valid_sum = torch.zeros((), dtype=precise, device=self.device)
        self._valid_count = 0

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        inputs, targets = batch
        count = targets.numel()
        if not count and self.is_sharded:  # a pass gathers from all processes, so each takes part
            inputs = targets = inputs.new_zeros(1, inputs.shape[1])
        if len(inputs):
            self._valid_sum += self.net.loss(inputs, targets).to(self._valid_sum.dtype) * count
            self._valid_count += count

    def on_validation_epoch_end(self) -> None:
        count = torch.tensor(self._valid_count, dtype=self._valid_sum.dtype, device=self.device)
        total, count = (self.trainer.strategy.reduce(x, reduce_op="sum") for x in (self._valid_sum, count))
        assert isinstance(total, Tensor)
        self.valid_loss = float(total / count)
        self.log("val/loss", self.valid_loss, logger=False, sync_dist=True)

    def configure_optimizers(self) -> AdamW:
        config = self.optimizer_config
        if self.trainer.max_steps < 1:
            raise ValueError(f"trainer.max_steps is {self.trainer.max_steps}; set it to at least 1")
        kind, grouped = (Muon, muon_groups) if config.algorithm == "muon" else (AdamW, parameter_groups)
        groups = grouped(self.net.named_parameters(), config.weight_decay)
        return kind(groups, lr=config.max_learning_rate, betas=config.betas, eps=config.eps)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        strategy = self.trainer.strategy
        if isinstance(strategy, DataParallel) and not (self._recorded is not None and self._recorded.exchanges):
            trained = [parameter for parameter in self.net.parameters() if parameter.grad is not None]
            means = average([parameter.grad for parameter in trained if parameter.grad is not None])
            for parameter, mean in zip(trained, means, strict=True):
                parameter.grad = mean
        assert isinstance(optimizer, AdamW)
        norm, optimizer.gradient_factor = clipping_factor(self.net.parameters(), self.optimizer_config.max_l2_norm)
        self.gradient_norm = norm
        self._norms.append((self.global_step, norm))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["lm"] = run_identity(self, self.data)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_resume(checkpoint, run_identity(self, self.data), training=bool(self.trainer.training))
