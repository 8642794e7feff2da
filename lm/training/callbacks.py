"""What a run leaves behind besides its curves: its last step's validation, samples, its configuration and record."""

import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger

from lm import __version__
from lm.generation import Decoder, SamplingConfig, generate_text
from lm.tokenizer import END_OF_TEXT
from lm.training.metrics import DivergedError, Metrics, language_model, loss_metrics
from lm.training.resume import DIVERGED, check_resume, run_identity
from lm.training.runs import find_run
from lm.training.shards import put_together


class LastStep(Callback):
    """The last step validates, whatever the interval."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx + 1 == trainer.max_steps * trainer.accumulate_grad_batches:
            trainer.val_check_batch = batch_idx + 1


class StartingWeights(Callback):
    """Training begins with a run's weights; the optimizer, its schedule and the text are this run's own.

    Args:
        where: checkpoint file or run folder.
    """

    def __init__(self, where: Path) -> None:
        self.where = where

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        module = language_model(pl_module)
        contents = find_run(self.where).contents
        check_resume(contents, run_identity(module, module.data), training=False, option="--weights")
        module.load_state_dict(put_together(contents["state_dict"]))


class Samples(Callback):
    """Writes a story at every validation, to TensorBoard's text tab; `latest` holds the newest.

    None where the model is sharded: no process has it whole, and each token would gather it anew.
    """

    def __init__(self, max_new_tokens: int = 192, seed: int = 0) -> None:
        self.max_new_tokens = max_new_tokens
        self.seed = seed
        self.latest: str | None = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module = language_model(pl_module)
        data = module.data
        if trainer.sanity_checking or trainer.state.fn != "fit" or not trainer.is_global_zero or data is None:
            return
        if module.is_sharded:
            return
        # Elsewhere bfloat16 decodes slower than float32, and a decoder in the weights' type would move the weights.
        is_narrow = trainer.strategy.root_device.type == "cuda" and "bf16" in str(trainer.precision)
        self.latest = generate_text(
            Decoder(module.net, torch.bfloat16) if is_narrow else module.net,
            data.tokenizer,
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
        data.tokenizer.save(self.folder / "tokenizer")
        self.facts = read_facts(self.folder)  # of a run that goes on
        device, now = trainer.strategy.root_device, time.strftime("%Y-%m-%dT%H:%M:%S%z")
        self.facts |= {
            "command": ["python", "-m", "lm", *sys.argv[1:]],
            "status": "running",
            "started": self.facts.get("started", now),
            "launched": now,
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
        _replace(folder / "run.json", json.dumps(self.facts, indent=1) + "\n")


def read_facts(folder: Path) -> dict[str, Any]:
    """What a run folder's run.json says; nothing where there is none. Raises ValueError where it is damaged."""
    path = folder / "run.json"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        facts = None
    if not isinstance(facts, dict):
        raise ValueError(f"{path} is damaged; delete it to go on without its facts")
    return facts


class RunConfiguration(SaveConfigCallback):
    """Writes config.yaml, and holds the run folder's lock as long as the process lives, so that no two train in it.

    A new run whose number another process took at the same moment takes the next one. The file is that of a run of its
    own: without the checkpoint that this launch began with, which run.json names.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        log_dir = trainer.log_dir  # a collective: every process asks
        if log_dir is None or not trainer.is_global_zero or self.already_saved:
            return
        folder = Path(log_dir)
        while not self._lock(folder):
            logger = trainer.logger
            if self.config["run_folder"] is not None or not isinstance(logger, TensorBoardLogger):
                raise ValueError(f"another process trains in {folder}; wait for its end, or stop it")
            trainer.logger = TensorBoardLogger(logger.save_dir, name=logger.name)
            folder = Path(trainer.logger.log_dir)
        config = self.config.clone()
        config["ckpt_path"] = None
        _replace(folder / self.config_filename, self.parser.dump(config, skip_none=False))
        self.already_saved = True

    def _lock(self, folder: Path) -> bool:
        """Whether the folder, made if it is not there, is this process's own from now on."""
        folder.mkdir(parents=True, exist_ok=True)
        self._held = FileLock(folder / ".lock")
        try:
            self._held.acquire(timeout=0)
        except Timeout:
            return False
        return True


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
