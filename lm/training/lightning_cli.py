"""`fit` and `validate`: LightningCLI with our model, data, callbacks and a few keys of our own."""

import argparse
import logging
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.trainer.states import TrainerStatus
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lm.data.datamodule import TokenDataModule
from lm.terminal import say
from lm.training.allowed import require_allowed
from lm.training.callbacks import LastStep, RunConfiguration, RunRecord, Samples, StartingWeights
from lm.training.data_parallel import DataParallel
from lm.training.fsdp import STRATEGIES
from lm.training.memory import MemoryAdvice
from lm.training.metrics import Metrics, loss_metrics
from lm.training.module import LanguageModel
from lm.training.precision import settle_precision
from lm.training.progress import StepProgress
from lm.training.runs import LOGS, find_resumable, find_run, load
from lm.training.stopping import SIGNALED, CheckpointFiles, LastCheckpoint

USAGE = {
    "fit": "python -m lm fit [--resume] [--config FILE ...] [--KEY VALUE ...]",
    "validate": "python -m lm validate [--run RUN] [--config FILE ...] [--KEY VALUE ...]",
}
RESUME = (
    "; --resume goes on with the newest run, or the one that --run_folder names, in its folder, from its newest whole "
    "checkpoint and with its configuration; --ckpt_path starts another run from a checkpoint; --weights starts one "
    "from a run's weights alone, on other text, with that run's tokenizer and by default its configuration"
)


def run(command: str, arguments: list[str], description: str) -> int:
    """Run `fit` or `validate` with the given options and help text; returns the exit code."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")  # Lightning 2.6 on torch 2.13
    warnings.filterwarnings("ignore", message=".*callbacks used to create the checkpoint")  # validate needs none
    warnings.filterwarnings("ignore", message=".*The dirpath has changed")  # each launch has a run folder of its own
    warnings.filterwarnings("ignore", message=".*exists and is not empty")  # the folder of a run that goes on
    warnings.filterwarnings("ignore", message=".*attribute of a Tensor that is not a leaf")  # torch.compile's own
    warnings.filterwarnings("ignore", message=".*AccumulateGrad node's stream does not match")  # of recorded graphs
    torch.set_float32_matmul_precision("high")
    # What Lightning takes for several devices where no strategy is named.
    StrategyRegistry.register("ddp", DataParallel, description="ours", override=True)
    only_told = {"-h", "--help", "--print_config"} & set(arguments)
    if command == "validate" and not only_told:
        arguments = _with_run(arguments)
    elif command == "fit":
        arguments = (
            _with_resume(_with_weights(arguments)) if not only_told else [a for a in arguments if a != "--resume"]
        )
        description += RESUME
    sys.argv[1:] = [command, *arguments]  # Lightning starts further processes of a machine with these
    try:
        LMCommandLine(command, description)
    except SIGTERMException:  # Lightning's word where training has not begun
        return SIGNALED + signal.SIGTERM
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        return stop.code if isinstance(stop.code, int) else 1
    finally:
        if torch.distributed.is_initialized():  # gloo's threads abort an interpreter that ends before them
            torch.distributed.destroy_process_group()
    return 0


def _with_run(arguments: list[str]) -> list[str]:
    """`validate` without a configuration or checkpoint takes those of a run: the newest, or the one --run names."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--config", action="append", default=[])
    parser.add_argument("--ckpt_path", type=Path)
    known, rest = parser.parse_known_args(arguments)
    found = find_run(known.ckpt_path or known.run)
    say(f"validating {found.checkpoint}")
    configs = known.config or [str(found.config)]
    chosen = [part for config in configs for part in ("--config", config)]
    return [*chosen, *rest, "--ckpt_path", str(found.checkpoint)]


def _with_resume(arguments: list[str]) -> list[str]:
    """`--resume` stands for the run's folder, configuration and newest whole checkpoint."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--run_folder", type=Path)
    parser.add_argument("--config", action="append", default=[])
    parser.add_argument("--ckpt_path")
    known, rest = parser.parse_known_args(arguments)
    if not known.resume:
        return arguments
    if known.ckpt_path is not None:
        raise ValueError(f"--resume finds the checkpoint itself; leave out --ckpt_path {known.ckpt_path} or --resume")
    found, step = find_resumable(known.run_folder)
    say(f"resuming {found.checkpoint} at step {step}")
    configs = [part for config in known.config or [str(found.config)] for part in ("--config", config)]
    return [*configs, *rest, "--run_folder", str(found.folder), "--ckpt_path", str(found.checkpoint)]


def _with_weights(arguments: list[str]) -> list[str]:
    """`--weights` stands for a run's tokenizer and, without a configuration, for its configuration too."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--config", action="append", default=[])
    known, rest = parser.parse_known_args(arguments)
    if known.weights is None:
        return arguments
    found = find_run(known.weights)
    configs = [part for config in known.config or [str(found.config)] for part in ("--config", config)]
    own = ["--run_folder", "null", "--data.tokenizer", str(found.folder / "tokenizer")]
    return [*configs, *own, *rest, "--weights", str(found.checkpoint)]


def _validation_interval(eval_every: int, accumulate_grad_batches: int) -> int:
    """Lightning counts micro-batches between validations; users count optimizer steps."""
    return eval_every * accumulate_grad_batches


class LMCommandLine(LightningCLI):
    """Adds eval_every and checkpoint_every (optimizer steps), links keys that must agree, and sets the callbacks."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(
            LanguageModel,
            TokenDataModule,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            save_config_callback=RunConfiguration if command == "fit" else None,
            trainer_defaults={
                "max_steps": 1000,
                "max_epochs": -1,
                "check_val_every_n_epoch": None,
                "num_sanity_val_steps": 0,
                "log_every_n_steps": 10,
                "enable_model_summary": False,
            },
            parser_kwargs={
                "exit_on_error": False,
                "prog": "python -m lm",
                **{
                    name: {"exit_on_error": False, "usage": USAGE[name], "description": description}
                    for name in self.subcommands()
                },
            },
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {
            "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule", "weights_only"},
            "validate": {"model", "dataloaders", "datamodule", "weights_only", "verbose"},
        }

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--eval_every", type=int, default=250, help="optimizer steps between validations")
        parser.add_argument("--checkpoint_every", type=int, default=250, help="optimizer steps between last.ckpt's")
        parser.add_argument("--run_folder", type=Path | None, help=f"folder of the run; by default {LOGS}/version_N")
        help = "checkpoint or run folder whose weights training begins with; --ckpt_path comes before it"
        parser.add_argument("--weights", type=Path | None, help=help)
        parser.link_arguments("model.net.vocab_size", "data.vocab_size")
        parser.link_arguments("model.net.context_length", "data.context_length")
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)
        parser.link_arguments(
            ("eval_every", "trainer.accumulate_grad_batches"),
            "trainer.val_check_interval",
            _validation_interval,
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        super().parse_arguments(parser, args)
        config = self.config[self.config["subcommand"]]
        require_allowed(config["trainer"].as_dict())
        if path := config["ckpt_path"]:
            load(Path(path))  # a missing or foreign file is refused before anything is built
        if not path or self.config["subcommand"] == "validate":  # a run that goes on keeps its precision
            settle_precision(config["trainer"])

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self.config[str(self.subcommand)]
        for name in ("eval_every", "checkpoint_every"):
            if config[name] < 1:
                raise ValueError(f"{name} is {config[name]}, it must be at least 1 optimizer step")
        metrics, files = Metrics(every=config["trainer"]["log_every_n_steps"]), CheckpointFiles()
        callbacks: list[Callback] = [metrics]
        if config["trainer"]["enable_progress_bar"] is not False:
            callbacks.append(StepProgress(metrics))
        if self.subcommand == "fit":
            self.samples, self.memory_advice = Samples(), MemoryAdvice()
            callbacks += [
                self.memory_advice,
                LastStep(),
                self.samples,
                RunRecord(metrics),
                *_checkpoints(config["checkpoint_every"], files),
            ]
            if config["weights"] and not config["ckpt_path"]:
                callbacks.append(StartingWeights(config["weights"]))
        self.metrics = metrics
        config_init = self.config_init[str(self.subcommand)]["trainer"]
        if config_init.get("logger") in (None, True):
            kwargs["logger"] = _logger(config["run_folder"], config["ckpt_path"]) if self.subcommand == "fit" else False
        strategy = str(config_init.get("strategy"))
        if strategy in STRATEGIES:
            kwargs["strategy"] = STRATEGIES[strategy]()
        if strategy == "fsdp":
            kwargs["inference_mode"] = False  # its tensors cannot be gathered in place later
        kwargs["plugins"] = [*(config_init.get("plugins") or []), files]
        kwargs["callbacks"] = [*(config_init.get("callbacks") or []), *callbacks]
        try:
            return super().instantiate_trainer(**kwargs)
        except (ValueError, MisconfigurationException) as error:  # Lightning's word on the user's trainer keys
            raise ValueError(f"trainer: {error}") from None

    def fit(self, **kwargs: Any) -> None:
        try:
            self.trainer.fit(**kwargs, weights_only=True)
        except BaseException as error:
            launcher = self.trainer.strategy.launcher
            if launcher is not None:  # other processes would wait for this one
                launcher.kill(signal.SIGKILL)
            if isinstance(error, torch.OutOfMemoryError):
                raise ValueError(self.memory_advice.line) from None
            raise

    def validate(self, **kwargs: Any) -> None:
        self.trainer.validate(**kwargs, weights_only=True, verbose=False)

    def after_fit(self) -> None:
        log_dir = self.trainer.log_dir  # a collective: every process asks
        if not self.trainer.is_global_zero or self.trainer.state.status != TrainerStatus.FINISHED:
            return
        if self.samples.latest:
            say(f"\nA story of this model:\n\n{self.samples.latest}\n")
        print(f"{self._loss_line()}; {self.metrics.elapsed():.0f} s of training, {self.metrics.tokens:,} tokens")
        if log_dir is not None:
            say(f"run folder:  {Path(log_dir)}")
            say(f"curves:      tensorboard --logdir {Path(log_dir).parent}")
            print('more text:   python -m lm generate "Once upon a time"')

    def after_validate(self) -> None:
        if self.trainer.is_global_zero:
            print(self._loss_line())

    def _loss_line(self) -> str:
        meta = self.datamodule.valid_meta
        figures = loss_metrics("val", self.model.valid_loss, meta)
        line = (
            f"validation loss {figures['val/loss']:.4f} nats per token, perplexity {figures['val/perplexity']:.2f}, "
            f"{figures['val/bits_per_byte']:.4f} bits per byte"
        )
        if meta.irreducible is not None:
            gap = figures["val/loss"] - meta.irreducible
            line += (
                f"; a perfect model of this text: {meta.irreducible:.4f} nats per token, "
                f"{meta.bits_per_byte(meta.irreducible):.4f} bits per byte (gap {gap:.4f} nats)"
            )
        return line


def _logger(folder: Path | None, checkpoint: str | Path | None) -> TensorBoardLogger:
    """Curves in the run folder: a new one, or that of the run which the checkpoint is of."""
    if folder is None:
        return TensorBoardLogger(".", name=str(LOGS))
    goes_on = checkpoint is not None and Path(checkpoint).resolve().parent.parent == folder.resolve()
    if (folder / "config.yaml").exists() and not goes_on:
        raise FileExistsError(f"run_folder {folder} already holds a run; name another folder, or go on with --resume")
    return TensorBoardLogger(folder.parent, name="", version=folder.name)


def _checkpoints(every: int, files: CheckpointFiles) -> list[Callback]:
    """best.ckpt by validation loss, and last.ckpt every so many steps and when training is cut off."""
    best = ModelCheckpoint(
        filename="best",
        monitor="val/loss",
        auto_insert_metric_name=False,
        enable_version_counter=False,
    )
    return [best, LastCheckpoint(every, files)]
