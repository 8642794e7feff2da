"""The progress bar of training and validation."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm.auto import tqdm

from lm.training.metrics import Metrics


class StepProgress(ProgressBar):
    """One bar over optimizer steps, with the newest losses and tokens per second; a short one for each validation."""

    def __init__(self, metrics: Metrics) -> None:
        super().__init__()
        self.metrics = metrics
        self._enabled = True
        self._training: tqdm | None = None
        self._validation: tqdm | None = None

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def _bar(self, what: str, unit: str, total: int, done: int = 0, leave: bool = True) -> tqdm:
        hidden = not self._enabled
        return tqdm(desc=what, unit=unit, total=total, initial=done, leave=leave, disable=hidden, dynamic_ncols=True)

    def _show_figures(self, bar: tqdm) -> None:
        figures = {k: f"{v:.3f}" if v < 1000 else f"{v:,.0f}" for k, v in self.metrics.latest.items()}
        bar.set_postfix(figures, refresh=False)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._training = self._bar("training", "step", trainer.max_steps, trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._training is None or self._training.n == trainer.global_step:
            return
        self._show_figures(self._training)
        self._training.update(trainer.global_step - self._training.n)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        total = int(sum(trainer.num_val_batches))
        self._validation = self._bar("validation", "batch", total, leave=trainer.state.fn == "validate")

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._validation is not None:
            self._validation.update()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._validation is not None:
            self._validation.close()
            self._validation = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._training is not None:
            self._show_figures(self._training)
            self._training.close()
            self._training = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.on_validation_end(trainer, pl_module)
        self.on_train_end(trainer, pl_module)
