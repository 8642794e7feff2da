"""Figures are those of their steps, though they are read later, and no step waits for them."""

import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lm.model import ModelConfig
from lm.training import LanguageModel, OptimizerConfig
from lm.training.copies import HostCopy
from lm.training.metrics import DivergedError, Metrics
from lm.training.stopping import CheckpointFiles, LastCheckpoint, Stopped

pytestmark = pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec")  # Lightning 2.6 on torch 2.13

NET = ModelConfig(vocab_size=280, context_length=16, d_model=16, num_layers=1, num_heads=2)


class Noting(LanguageModel):
    """Notes each batch's loss, and each step's gradient norm and learning rate."""

    def __init__(self) -> None:
        seed_everything(0, verbose=False)
        super().__init__(NET, OptimizerConfig(warmup_iters=2))
        self.losses: list[Tensor] = []
        self.norms: list[Tensor] = []
        self.rates: list[float] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.losses.append(loss.detach())
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        super().on_before_optimizer_step(optimizer)
        gradients = [p.grad.flatten() for p in self.net.parameters() if p.grad is not None]
        self.norms.append(torch.linalg.vector_norm(torch.cat(gradients)))
        self.rates.append(optimizer.param_groups[0]["lr"])


class At(Callback):
    """Calls a function after the backward pass of an optimizer step, counted from 0."""

    def __init__(self, step: int, function: Callable[[], Any]) -> None:
        self.step = step
        self.function = function

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        if trainer.global_step == self.step:
            self.function()


@pytest.fixture
def saving(trainer: Any) -> Callable[..., Trainer]:
    """Makes a Trainer with a last.ckpt every second step."""
    files = CheckpointFiles()
    return lambda *callbacks, **options: trainer(
        *callbacks, LastCheckpoint(2, files), plugins=[files], saves=True, max_steps=6, **options
    )


def checkpoint(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoints/last.ckpt", weights_only=True)


def metrics_state(contents: dict[str, Any]) -> dict[str, Any]:
    return contents["callbacks"]["Metrics"]


@pytest.mark.parametrize("parts", [1, 2])
def test_figures_are_those_of_their_steps(data: Any, trainer: Any, parts: int) -> None:
    module = Noting()
    run = trainer(Metrics(every=2), max_steps=7, eval_every=4 * parts, accumulate_grad_batches=parts)
    run.fit(module, datamodule=data())
    figures = run.logger.figures
    per_look = 2 * parts
    means = [float(torch.stack(module.losses[i : i + per_look]).mean()) for i in range(0, 3 * per_look, per_look)]
    assert figures["train/loss"] == pytest.approx(dict(zip((2, 4, 6), means, strict=True)), rel=1e-6)
    for name, values in (("gradient_norm", module.norms), ("learning_rate", module.rates)):
        expected = {step: float(values[step - 1]) for step in (2, 4, 6)}
        assert figures[f"train/{name}"] == pytest.approx(expected, rel=1e-5), name
    assert figures["train/tokens_seen"] == {step: step * 8 * 16 for step in (2, 4, 6)}


def test_figures_are_read_one_batch_later_or_before_they_are_needed(
    data: Any, saving: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, read, reads = Noting(), HostCopy.read, []
    monkeypatch.setattr(HostCopy, "read", lambda copy: (reads.append(len(module.losses)), read(copy))[1])
    metrics = Metrics(every=1)
    saving(metrics, eval_every=5).fit(module, datamodule=data())
    assert reads == [2, 2, 4, 4, 5, 6]  # at 2, 4 and 6 for the checkpoint, at 5 for the validation


class Reads(TorchDispatchMode):
    """Counts the numbers that the host asks a tensor for."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_metrics_ask_for_no_number_when_a_step_ends(data: Any, trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    reads, end = Reads(), Metrics.on_train_batch_end

    def watched(*arguments: Any) -> None:
        with reads:
            end(*arguments)

    monkeypatch.setattr(Metrics, "on_train_batch_end", watched)
    run = trainer(Metrics(every=2), max_steps=5)
    run.fit(Noting(), datamodule=data())
    assert set(run.logger.figures["train/loss"]) == {2, 4}
    assert reads.count == 0
    with reads:
        float(torch.ones(()))
    assert reads.count == 1


def test_checkpoints_have_the_state_of_their_step(data: Any, saving: Any, tmp_path: Path) -> None:
    interrupt = At(3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped):
        saving(Metrics(every=1), interrupt).fit(Noting(), datamodule=data())
    contents = checkpoint(tmp_path)
    assert contents["global_step"] == 4
    assert metrics_state(contents)["spikes"]["count"] == 4
    assert metrics_state(contents)["tokens"] == 4 * 8 * 16


def test_exception_leaves_the_figures_before_it(data: Any, trainer: Any) -> None:
    def fail() -> None:
        raise KeyError("of the third step")

    run = trainer(Metrics(every=2), At(2, fail))
    with pytest.raises(KeyError, match="third"):
        run.fit(Noting(), datamodule=data())
    assert set(run.logger.figures["train/loss"]) == {2}


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        ((5.0, math.nan), "at step 2 the gradient norm is nan; the first gradient that is no number came at step 2"),
        ((50.0, 1.0), "the loss is 50 at step 2 .*the gradient norm is 1; lower"),
    ],
    ids=["gradient", "loss"],
)
def test_what_is_begun_keeps_a_bad_model_from_being_saved(
    data: Any, saving: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoilt: tuple[float, float], message: str
) -> None:
    module = Noting()
    pop = module.pop_figures
    loss, norm = map(torch.tensor, spoilt)

    def pop_spoilt() -> Tensor:
        return torch.stack([loss, norm, pop()[2]])

    def spoil_norm() -> None:
        if math.isnan(norm):
            gradient = next(module.net.parameters()).grad
            assert gradient is not None
            gradient.fill_(math.nan)

    monkeypatch.setattr(module, "pop_figures", pop_spoilt)
    with pytest.raises(DivergedError, match=message):
        saving(Metrics(every=2), At(1, spoil_norm)).fit(module, datamodule=data())
    assert not (tmp_path / "checkpoints/last.ckpt").exists()


def test_first_bad_step_is_that_of_the_first_bad_gradient() -> None:
    module = Noting()
    nan, fine = torch.tensor(math.nan), torch.tensor(1.0)
    assert math.isinf(module.first_bad_step)
    module._norms = [(3, fine), (4, fine)]
    assert math.isinf(module.first_bad_step)
    module._norms = [(5, fine), (6, torch.tensor(math.inf)), (7, nan)]
    assert int(module.first_bad_step) == 6
    module._norms = [(8, nan)]
    assert int(module.first_bad_step) == 6
