"""Signals, divergence, spikes and want of memory: training ends between steps, saved, or says what to do."""

import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lm.accounting import moments
from lm.cli import main
from lm.model import ModelConfig
from lm.training import LanguageModel
from lm.training.memory import MemoryAdvice, what_fits
from lm.training.metrics import DivergedError, Metrics
from lm.training.spikes import Spikes
from lm.training.stopping import CheckpointFiles, LastCheckpoint, Stopped

pytestmark = pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec")  # Lightning 2.6 on torch 2.13

NET = ModelConfig(vocab_size=280, context_length=16, d_model=16, num_layers=1, num_heads=2)


class At(Callback):
    """Calls a function after the backward pass of an optimizer step, counted from 0."""

    def __init__(self, step: int, function: Callable[[LanguageModel], Any]) -> None:
        self.step = step
        self.function = function

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        assert isinstance(pl_module, LanguageModel)
        if trainer.global_step == self.step:
            self.function(pl_module)


def make_model() -> LanguageModel:
    seed_everything(0, verbose=False)
    return LanguageModel(NET)


def saved_step(folder: Path) -> int:
    return torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["global_step"]


@pytest.fixture
def saving(trainer: Any) -> Callable[..., Trainer]:
    """Makes a Trainer with a last.ckpt every second step."""
    files = CheckpointFiles()
    return lambda *callbacks, **options: trainer(
        *callbacks, LastCheckpoint(2, files), plugins=[files], saves=True, max_steps=8, **options
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_training_after_its_step(
    data: Any, saving: Any, tmp_path: Path, number: signal.Signals, caplog: pytest.LogCaptureFixture
) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as stopped:
        saving(At(2, lambda module: os.kill(os.getpid(), number))).fit(make_model(), datamodule=data())
    assert stopped.value.code == 128 + number
    assert saved_step(tmp_path) == 3
    assert f"stopped by {number.name} at step 3" in caplog.text
    assert signal.getsignal(number) == before


def test_signal_before_training_ends_it_after_a_step(data: Any, saving: Any, tmp_path: Path) -> None:
    early = Callback()
    early.on_train_start = lambda trainer, pl_module: os.kill(os.getpid(), signal.SIGTERM)  # to Lightning's handler
    with pytest.raises(Stopped):
        saving(early).fit(make_model(), datamodule=data())
    assert saved_step(tmp_path) == 1


def test_signal_amid_accumulation_waits_for_the_whole_step(data: Any, saving: Any, tmp_path: Path) -> None:
    module = make_model()
    backward = module.on_after_backward
    calls: list[int] = []

    def once() -> None:
        calls.append(module.global_step)
        if len(calls) == 5:  # the first of the second step's four micro-batches
            os.kill(os.getpid(), signal.SIGTERM)
        backward()

    module.on_after_backward = once  # type: ignore[method-assign]
    with pytest.raises(Stopped):
        saving(accumulate_grad_batches=4).fit(module, datamodule=data())
    assert (len(calls), saved_step(tmp_path)) == (8, 2)


def test_second_interrupt_ends_at_once_without_saving(data: Any, saving: Any, tmp_path: Path) -> None:
    def twice(module: LanguageModel) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(SystemExit):
        saving(At(2, twice)).fit(make_model(), datamodule=data())
    assert saved_step(tmp_path) == 2


def test_slurms_signal_saves_and_requeues(
    data: Any, saving: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n', encoding="utf-8")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    with pytest.raises(Stopped):
        saving(At(2, lambda module: os.kill(os.getpid(), signal.SIGUSR1))).fit(make_model(), datamodule=data())
    assert saved_step(tmp_path) == 3
    assert (tmp_path / "asked").read_text(encoding="utf-8") == "requeue 17\n"


def test_early_end_is_saved_too(data: Any, saving: Any, tmp_path: Path) -> None:
    saving(At(4, lambda module: setattr(module.trainer, "should_stop", True))).fit(make_model(), datamodule=data())
    assert saved_step(tmp_path) == 5


@pytest.mark.parametrize("code", [130, 143])
def test_signals_outside_of_training_have_their_exit_codes(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*arguments: Any) -> None:
        if code == 143:
            raise SIGTERMException
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise SystemExit(1)  # noqa: B904  as Lightning does

    monkeypatch.setattr("lm.training.lightning_cli.LMCommandLine", start)
    monkeypatch.setattr("sys.argv", ["lm"])
    assert main(["fit"]) == code


def test_diverged_model_is_not_saved_between_logged_steps(data: Any, saving: Any, tmp_path: Path) -> None:
    def spoil(module: LanguageModel) -> None:
        gradient = next(module.net.parameters()).grad
        assert gradient is not None
        gradient.fill_(math.inf)

    run = saving(Metrics(every=100), At(3, spoil))
    with pytest.raises(DivergedError, match="at step 4 the gradient norm is .*came at step 4"):
        run.fit(make_model(), datamodule=data())
    assert saved_step(tmp_path) == 2


def test_loss_spikes_are_said_and_marked(
    data: Any, trainer: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    module = make_model()
    means = iter([3.0 - 0.01 * i + 0.02 * (i % 3) for i in range(24)] + [4.5, 2.76])
    monkeypatch.setattr(module, "pop_figures", lambda: torch.tensor([next(means), 1.0, math.inf]))
    metrics = Metrics(every=1)
    run = trainer(metrics, max_steps=26)
    run.fit(module, datamodule=data())
    assert list(run.logger.figures["train/spike"]) == [25]
    assert run.logger.figures["train/spike"][25] > 6
    assert "loss spike at step 25: 4.5000" in caplog.text
    restored = Metrics(every=1)
    restored.load_state_dict(metrics.state_dict())
    assert restored.spikes == metrics.spikes


def test_smooth_falling_and_noisy_curves_have_no_spikes() -> None:
    noise = np.random.default_rng(0).normal(size=2000)
    for size in (0.0, 0.01, 0.1):
        spikes = Spikes()
        assert not [i for i in range(2000) if spikes.add(2 + 7 * math.exp(-i / 100) + size * noise[i]) is not None]


def test_out_of_memory_says_what_fits() -> None:
    mib = 2**20
    at = moments(NET, 16, "float32")
    free = max(line.at(5) for line in at.values())
    line = what_fits(NET, 16, "float32", rows=32, accumulate=2, free=free)
    assert "with 16 sequences at a time; by the account 5 fit" in line
    assert "set trainer.accumulate_grad_batches to 8, which changes no result" in line
    assert "lower model.net.context_length" in what_fits(NET, 16, "float32", rows=32, accumulate=1, free=mib)
    # The account of one device does not know what several share out.
    line = what_fits(NET, 16, "float32", rows=6, accumulate=2, free=free, is_sharded=True)
    assert line.startswith("with 3 sequences at a time; set trainer.accumulate_grad_batches to 3")
    assert "model.checkpointing" in what_fits(NET, 16, "float32", rows=2, accumulate=2, free=free, is_sharded=True)


def test_out_of_memory_ends_in_that_line(data: Any, trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**30, 2**31))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    for place, message in (("training_step", "with 4 sequences at a time"), ("validation_step", "lower data.valid_")):
        module, advice = make_model(), MemoryAdvice()
        monkeypatch.setattr(module, place, fail)
        with pytest.raises(torch.OutOfMemoryError):
            trainer(advice, eval_every=2, accumulate_grad_batches=2).fit(module, datamodule=data())
        assert advice.line.startswith("out of memory on cpu ")
        assert message in advice.line
