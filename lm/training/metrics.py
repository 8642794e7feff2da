"""Losses, rates and utilisation, against steps and against seconds of training."""

import logging
import math
import time
from contextlib import suppress
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lm.accounting import model_flop_utilisation, peak_flops
from lm.data.tokens import SplitMeta
from lm.training.copies import HostCopy
from lm.training.module import LanguageModel
from lm.training.spikes import Spikes

log = logging.getLogger("lm")


class DivergedError(ValueError):
    """The training loss is no longer a number, or far above that of guessing."""


LARGEST_EXPONENT = 20.0  # perplexities are shown up to e^20


def language_model(module: LightningModule) -> LanguageModel:
    """The module as ours: these callbacks serve LanguageModel only."""
    assert isinstance(module, LanguageModel)
    return module


def loss_metrics(prefix: str, loss: float, meta: SplitMeta) -> dict[str, float]:
    """A loss in nats per token with its perplexity and bits per byte, and the perfect loss where it is known."""
    metrics = {
        f"{prefix}/loss": loss,
        f"{prefix}/perplexity": math.exp(min(loss, LARGEST_EXPONENT)),
        f"{prefix}/bits_per_byte": meta.bits_per_byte(loss),
    }
    if meta.irreducible is not None:
        metrics[f"{prefix}/irreducible_loss"] = meta.irreducible
    return metrics


class _Begun(NamedTuple):
    """An optimizer step whose figures the device may still be computing."""

    trainer: Trainer
    step: int
    tokens: int
    seconds: float
    learning_rate: float
    length: int
    figures: HostCopy


class Metrics(Callback):
    """Logs losses, rates and utilisation against steps, and losses against seconds of training.

    A step's figures are read at the end of the next batch, so that the device has work meanwhile, or before a
    validation, a checkpoint or the end of training where that comes first.

    The clock counts active training only: not validation and its samples, not the time between a stop and its
    resume. It is saved in checkpoints, and so are the tokens seen. `latest` holds the newest figures for the
    progress bar. Spikes of the loss are said, and marked by `train/spike`, their height in standard deviations.

    Args:
        every: optimizer steps between logged training figures.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.seconds = 0.0
        self.tokens = 0
        self.latest: dict[str, float] = {}
        self.spikes = Spikes()
        self._running_since: float | None = None
        self._last = (0.0, 0)
        self._begun: _Begun | None = None

    def state_dict(self) -> dict[str, Any]:
        self._finish()
        return {"seconds": self.elapsed(), "tokens": self.tokens, "spikes": asdict(self.spikes)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds, self.tokens = state_dict["seconds"], state_dict["tokens"]
        self.spikes = Spikes(**state_dict.get("spikes", {}))

    def elapsed(self) -> float:
        """Seconds of active training so far."""
        running = 0.0 if self._running_since is None else time.perf_counter() - self._running_since
        return self.seconds + running

    def _stop(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds = self.elapsed()
        self._running_since = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last = (self.seconds, self.tokens)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._running_since is None:
            self._running_since = time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish()
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        with suppress(Exception):  # what ends training is the exception
            self._finish()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish()
        if self._running_since is not None:
            self._stop()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._finish()
        self.tokens += batch[1].numel() * trainer.world_size
        if (batch_idx + 1) % trainer.accumulate_grad_batches or trainer.global_step % self.every:
            return
        self._begun = _Begun(
            trainer=trainer,
            step=trainer.global_step,
            tokens=self.tokens,
            seconds=self.elapsed(),
            learning_rate=trainer.optimizers[0].param_groups[0]["lr"],
            length=batch[0].shape[1],
            figures=HostCopy(language_model(pl_module).pop_figures()),
        )

    def _finish(self) -> None:
        """Read, check and log the figures that were begun, if any."""
        if self._begun is None:
            return
        begun, self._begun = self._begun, None
        trainer, step = begun.trainer, begun.step
        module = language_model(trainer.lightning_module)
        loss, norm, first_bad_step = begun.figures.read()
        _require_sense(loss, module, step, norm, first_bad_step)
        seconds = self.elapsed() if begun.figures.was_late else begun.seconds
        tokens_per_second = (begun.tokens - self._last[1]) / max(seconds - self._last[0], 1e-9)
        self._last = (seconds, begun.tokens)
        self.latest |= {"loss": loss, "tokens/s": tokens_per_second}
        metrics = {
            "train/gradient_norm": norm,
            "train/learning_rate": begun.learning_rate,
            "train/tokens_per_second": tokens_per_second,
            "train/tokens_seen": begun.tokens,
        }
        if module.data is not None:
            metrics |= loss_metrics("train", loss, module.data.files.meta.train)
        if (height := self.spikes.add(loss)) is not None:
            metrics["train/spike"] = height
            if trainer.is_global_zero:
                log.warning(
                    "loss spike at step %d: %.4f, %.0f standard deviations above its running mean; gradient norm %.4g",
                    *(step, loss, height, norm),
                )
        if (peak := device_peak(trainer)) is not None:
            per_device = tokens_per_second / trainer.world_size
            share = model_flop_utilisation(per_device, module.config, peak, begun.length)
            metrics["train/model_flop_utilisation"] = share
        _log(trainer, metrics, step)
        _log(trainer, {"train/loss_vs_seconds": loss}, round(seconds))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module = language_model(pl_module)
        if module.data is not None and not trainer.sanity_checking:
            if trainer.state.fn == "fit":
                newest = float(module.gradient_norm), float(module.first_bad_step)
                _require_sense(module.valid_loss, module, trainer.global_step, *newest)
            self.latest["val loss"] = module.valid_loss
            metrics = loss_metrics("val", module.valid_loss, module.data.valid_meta)
            _log(trainer, metrics, trainer.global_step)
            if trainer.training or self.seconds:
                _log(trainer, {"val/loss_vs_seconds": module.valid_loss}, round(self.elapsed()))


def require_finite(trainer: Trainer) -> None:
    """Raises DivergedError where the newest gradient, and with it every weight, is not a number: not worth saving."""
    module = language_model(trainer.lightning_module)
    if not math.isfinite(norm := float(module.gradient_norm)):
        what = f"at step {trainer.global_step}"
        raise DivergedError(_diverged(module, what, norm, float(module.first_bad_step)))


def _require_sense(loss: float, module: LanguageModel, step: int, norm: float, first_bad_step: float) -> None:
    guessing = math.log(module.config.vocab_size)
    if not loss < 2 * guessing:  # also true of NaN
        what = f"the loss is {loss:.4g} at step {step} (guessing: {guessing:.2f}) and"
        raise DivergedError(_diverged(module, what, norm, first_bad_step))


def _diverged(module: LanguageModel, what: str, norm: float, first_bad_step: float) -> str:
    line = f"training diverged: {what} the gradient norm is {norm:.4g}"
    if math.isfinite(first_bad_step):
        first = int(first_bad_step)
        line += f"; the first gradient that is no number came at step {first + 1}"
        if module.data is not None:
            starts = module.data.train_dataloader().starts(first)
            shown = ", ".join(map(str, starts[:4])) + (", ..." if len(starts) > 4 else "")
            line += f", of the windows that begin at token {shown} of {module.data.files.folder / 'train.npy'}"
    return (
        f"{line}; lower model.optimizer.max_learning_rate or max_l2_norm, or raise warmup_iters; --resume goes on from "
        f"the last checkpoint before it"
    )


def _log(trainer: Trainer, metrics: dict[str, float], step: int) -> None:
    for logger in trainer.loggers:
        logger.log_metrics(metrics, step=step)


def device_peak(trainer: Trainer) -> float | None:
    """Vendor's peak FLOP/s of one device at the run's precision; None where it is not known."""
    device = trainer.strategy.root_device
    if device.type != "cuda":
        return None
    if "bf16" in str(trainer.precision):
        precision = "bfloat16"
    else:
        precision = "float32" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    return peak_flops(torch.cuda.get_device_name(device), precision)
