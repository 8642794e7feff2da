"""What a run leaves behind besides its curves: its last step's validation and checkpoint, samples, its record."""

import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lm import __version__
from lm.generation import SamplingConfig, generate_text
from lm.tokenizer import END_OF_TEXT
from lm.training.metrics import DivergedError, Metrics, language_model, loss_metrics
from lm.training.resume import DIVERGED


class LastStep(Callback):
    """The last step validates and writes last.ckpt, whatever the intervals."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._is_last(trainer, batch_idx):
            trainer.val_check_batch = batch_idx + 1

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._is_last(trainer, batch_idx) and (log_dir := trainer.log_dir) is not None:
            trainer.save_checkpoint(Path(log_dir) / "checkpoints" / "last.ckpt")

    @staticmethod
    def _is_last(trainer: Trainer, batch_idx: int) -> bool:
        return batch_idx + 1 == trainer.max_steps * trainer.accumulate_grad_batches


class Samples(Callback):
    """Writes a story at every validation, to TensorBoard's text tab; `latest` holds the newest."""

    def __init__(self, max_new_tokens: int = 192, seed: int = 0) -> None:
        self.max_new_tokens = max_new_tokens
        self.seed = seed
        self.latest: str | None = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = language_model(pl_module).data
        if trainer.sanity_checking or trainer.state.fn != "fit" or not trainer.is_global_zero or data is None:
            return
        tokenizer = data.load_tokenizer()
        on_cuda = trainer.strategy.root_device.type == "cuda"  # elsewhere bfloat16 decodes slower than float32
        with torch.autocast("cuda", torch.bfloat16, enabled=on_cuda and "bf16" in str(trainer.precision)):
            self.latest = generate_text(
                language_model(pl_module).net,
                tokenizer,
                [END_OF_TEXT],
                max_new_tokens=self.max_new_tokens,
                sampling=SamplingConfig(temperature=0.8),
                seed=self.seed,
            )[0].strip()
        for logger in trainer.loggers:
            if (writer := getattr(logger, "experiment", None)) is not None and hasattr(writer, "add_text"):
                writer.add_text("sample", self.latest.replace("\n", "  \n"), trainer.global_step)


class RunRecord(Callback):
    """Keeps in the run folder what is needed to use the run later: the tokenizer, and run.json with its facts."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics
        self.folder: Path | None = None
        self.facts: dict[str, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        log_dir = trainer.log_dir  # a collective: every process asks
        data = language_model(pl_module).data
        if not trainer.is_global_zero or log_dir is None or data is None:
            return
        self.folder = Path(log_dir)
        data.load_tokenizer().save(self.folder / "tokenizer")
        device = trainer.strategy.root_device
        self.facts = {
            "command": ["python", "-m", "lm", *sys.argv[1:]],
            "status": "running",
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "resumed_from": str(trainer.ckpt_path) if trainer.ckpt_path else None,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU",
            "devices": trainer.world_size,
            "cpu_cores": os.cpu_count(),
            "precision": str(trainer.precision),
            "lm": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "parameters": sum(p.numel() for p in pl_module.parameters()),
            "tokens_folder": str(data.files.folder),
        }
        self._write(self.folder)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or self.folder is None:
            return
        module = language_model(pl_module)
        assert module.data is not None
        self.facts["step"] = trainer.global_step
        self.facts["training_seconds"] = round(self.metrics.elapsed(), 1)
        self.facts["tokens_seen"] = self.metrics.tokens
        self.facts["result"] = loss_metrics("val", module.valid_loss, module.data.valid_meta)
        self.facts["best_loss"] = min(self.facts.get("best_loss", float("inf")), module.valid_loss)
        self._write(self.folder)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end("finished")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._end(DIVERGED if isinstance(exception, DivergedError) else "interrupted")

    def _end(self, status: str) -> None:
        if self.folder is not None:
            self.facts["status"] = status
            self._write(self.folder)

    def _write(self, folder: Path) -> None:
        temporary = folder / "run.json.tmp"
        temporary.write_text(json.dumps(self.facts, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, folder / "run.json")


class LastCheckpoint(ModelCheckpoint):
    """last.ckpt every so many optimizer steps and when training is cut off, but never of a diverged model."""

    def __init__(self, every: int) -> None:
        super().__init__(
            filename="last", every_n_train_steps=every, enable_version_counter=False, save_on_exception=True
        )

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if not isinstance(exception, DivergedError):
            super().on_exception(trainer, pl_module, exception)
