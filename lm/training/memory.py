"""What to do when memory ran out, by the account of lm.accounting."""

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lm.accounting import TrainingPrecision, covers, largest_batch, largest_fast_batch, moments
from lm.model import ModelConfig
from lm.model.kernels import has_triton
from lm.training.metrics import language_model


class MemoryAdvice(Callback):
    """After the device ran out of memory, `line` says what would fit by the account, and which keys to change."""

    def __init__(self) -> None:
        self.line = "out of memory"

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        data, device = language_model(pl_module).data, trainer.strategy.root_device
        if not isinstance(exception, torch.OutOfMemoryError) or data is None:
            return
        self.line = f"out of memory on {device} "
        if not trainer.training:
            self.line += "in validation; lower data.valid_batch_size, which changes no loss"
            return
        free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
        net = language_model(pl_module).net
        self.line += what_fits(
            net.config,
            data.context_length,
            "bf16-mixed" if "bf16" in str(trainer.precision) else "float32",
            data.batch_size // trainer.world_size,
            trainer.accumulate_grad_batches,
            free,
            net.checkpointing,
            has_triton(device) and net.is_fast,
            language_model(pl_module).is_sharded,
        )


def what_fits(
    config: ModelConfig,
    context_length: int,
    precision: TrainingPrecision,
    rows: int,
    accumulate: int,
    free: int,
    checkpointing: bool = False,
    by_kernels: bool = False,
    is_sharded: bool = False,
) -> str:
    """The largest micro-batch of a training step that fits, and how to get there with the same result.

    Args:
        config: the model.
        context_length: tokens a sequence.
        precision: of the training.
        rows: sequences of each device in an optimizer step.
        accumulate: micro-batches that they come in.
        free: bytes.
        checkpointing: whether blocks are computed again in the backward pass.
        by_kernels: whether the passes run in kernels of ours.
        is_sharded: whether devices share the model out, which the account of one device does not know: then fewer than
            now are said to fit.
    """
    line, fits = f"with {rows // accumulate} sequences at a time; ", rows // accumulate - 1
    if not is_sharded:
        if by_kernels and covers(config, precision):
            fits = largest_fast_batch(config, context_length, free, checkpointing)
        else:
            fits = largest_batch(moments(config, context_length, precision, checkpointing), free)
        line += (
            f"by the account {fits} fit into the {free / 1e9:,.1f} GB that this run can have (python -m lm account); "
        )
    enough = [parts for parts in range(accumulate + 1, rows + 1) if rows % parts == 0 and rows // parts <= fits]
    if enough:
        return f"{line}set trainer.accumulate_grad_batches to {enough[0]}, which changes no result"
    if not checkpointing:
        return f"{line}set model.checkpointing to true, or lower model.net.context_length or the model's size"
    return f"{line}lower model.net.context_length or the model's size"
