"""The LightningModule and its figures in real runs of a Trainer, held to plain torch and to figures by hand."""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor
from torch.nn import functional

from lm.data.sources import StoryCorpus
from lm.data.tokens import SplitMeta
from lm.model import ModelConfig
from lm.training import LanguageModel, OptimizerConfig
from lm.training.metrics import DivergedError, Metrics, loss_metrics

pytestmark = pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec")  # Lightning 2.6 on torch 2.13

NET = ModelConfig(vocab_size=280, context_length=16, d_model=16, num_layers=1, num_heads=2)
OPTIMIZER = OptimizerConfig(max_learning_rate=1e-2, min_learning_rate=1e-3, warmup_iters=2)


class Call(Callback):
    """Calls a function before each optimizer step, with the gradients as the backward pass left them."""

    def __init__(self, function: Callable[[LanguageModel], None]) -> None:
        self.function = function

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        assert isinstance(pl_module, LanguageModel)
        self.function(pl_module)


def make_model(optimizer: OptimizerConfig = OPTIMIZER, kind: type[LanguageModel] = LanguageModel) -> LanguageModel:
    seed_everything(0, verbose=False)
    return kind(NET, optimizer)


def test_learning_rate_of_each_step_follows_the_schedule_by_hand(data: Any, trainer: Any) -> None:
    rates: list[float] = []
    trainer(Call(lambda module: rates.append(module.trainer.optimizers[0].param_groups[0]["lr"]))).fit(
        make_model(), datamodule=data()
    )
    cosine = [1e-3 + 0.5 * (1 + math.cos(math.pi * done / 4)) * 9e-3 for done in (1, 2, 3, 4)]
    assert rates == pytest.approx([0.5e-2, 1e-2, *cosine])


def test_logged_gradient_norm_is_torchs_and_gradients_are_clipped_to_the_limit(data: Any, trainer: Any) -> None:
    norms: list[float] = []

    def measure(module: LanguageModel) -> None:
        gradients = [p.grad for p in module.net.parameters() if p.grad is not None]
        norms.append(float(torch.linalg.vector_norm(torch.cat([g.flatten() for g in gradients]))))

    module, run = make_model(replace(OPTIMIZER, max_l2_norm=0.05)), trainer(Call(measure), Metrics(every=1))
    run.fit(module, datamodule=data())
    assert list(run.logger.figures["train/gradient_norm"].values()) == pytest.approx(norms, rel=1e-5)
    assert min(norms) > 0.05
    run = trainer(max_steps=1)
    run.fit(make_model(replace(OPTIMIZER, max_l2_norm=0.05)), datamodule=data())
    means = [state["exp_avg"] for state in run.optimizers[0].state.values()]  # of one step: (1 - beta1) g
    assert float(torch.nn.utils.get_total_norm(means)) == pytest.approx((1 - OPTIMIZER.betas[0]) * 0.05, rel=1e-3)


def test_validation_loss_is_that_of_a_plain_loop_at_any_batch_size(data: Any, trainer: Any) -> None:
    module, losses = make_model(), []
    for size in (1, 7, 64):
        files = data(valid_batch_size=size)
        trainer().validate(module, datamodule=files, verbose=False)
        losses.append(module.valid_loss)
    tokens = torch.from_numpy(np.array(files.files.valid, dtype=np.int64))
    windows = [tokens[i : i + 17] for i in range(0, len(tokens) - 16, 16)]
    with torch.no_grad():
        each = [float(functional.cross_entropy(module.net(w[None, :-1])[0], w[1:])) for w in windows]
    assert losses == pytest.approx([sum(each) / len(each)] * 3, abs=1e-6)


def test_loss_begins_near_that_of_guessing(data: Any, trainer: Any) -> None:
    module = make_model()
    trainer().validate(module, datamodule=data(), verbose=False)
    assert module.valid_loss == pytest.approx(math.log(NET.vocab_size), abs=0.2)


def test_one_batch_is_learnt_by_heart(data: Any, trainer: Any, tmp_path: Path) -> None:
    text = tmp_path / "line.txt"
    text.write_text("A cat sat on a mat", encoding="utf-8")
    own = data(source="text", train_text=text, valid_text=text, stories=StoryCorpus(), vocab_size=257)
    run = trainer(Metrics(every=100), max_steps=100)
    run.fit(make_model(), datamodule=own)
    assert run.logger.figures["train/loss"][100] > 0.5  # the mean over all steps
    run.validate(run.lightning_module, datamodule=own, verbose=False)
    assert run.lightning_module.valid_loss < 0.05


class Clock:
    """Stands in for the module `time`."""

    now = 0.0

    @classmethod
    def perf_counter(cls) -> float:
        return cls.now


class Timed(LanguageModel):
    """Every training batch takes a second, every validation batch a hundred."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        Clock.now += 1
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        Clock.now += 100
        super().validation_step(batch, batch_idx)


def test_clock_counts_training_only(data: Any, trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lm.training.metrics.time", Clock)
    metrics = Metrics(every=2)
    run = trainer(metrics, eval_every=2)
    run.fit(make_model(kind=Timed), datamodule=data())
    figures = run.logger.figures
    assert metrics.elapsed() == 6
    assert (metrics.state_dict()["seconds"], metrics.state_dict()["tokens"]) == (6.0, 6 * 8 * 16)
    assert figures["train/tokens_per_second"] == pytest.approx(dict.fromkeys((2, 4, 6), 8 * 16))
    assert figures["train/tokens_seen"] == {2: 256, 4: 512, 6: 768}
    assert set(figures["val/loss_vs_seconds"]) == set(figures["train/loss_vs_seconds"]) == {2, 4, 6}


def test_accumulation_counts_tokens_once(data: Any, trainer: Any) -> None:
    metrics = Metrics(every=2)
    run = trainer(metrics, accumulate_grad_batches=4)
    run.fit(make_model(), datamodule=data())
    assert metrics.tokens == 6 * 8 * 16
    assert run.logger.figures["train/tokens_seen"] == {2: 256, 4: 512, 6: 768}


def test_dropout_depends_on_seed_and_step_alone(data: Any, trainer: Any) -> None:
    def dropped(seed: int, drawn: int = 1) -> list[list[bool]]:
        seed_everything(5, verbose=False)
        module = LanguageModel(replace(NET, dropout=0.5), OPTIMIZER)
        masks: list[list[bool]] = []
        module.net.dropout.register_forward_hook(lambda *io: masks.append((io[2] == 0).flatten().tolist()))
        torch.rand(drawn)  # what was drawn before does not matter
        trainer(max_steps=3).fit(module, datamodule=data(seed=seed))
        return masks[:3]

    first = dropped(0)
    assert dropped(0, drawn=7) == first
    assert first[0] != first[1] != first[2] != first[0]
    assert dropped(1)[0] != first[0]


def test_resumed_optimizer_has_the_commands_settings(data: Any, trainer: Any, tmp_path: Path) -> None:
    run = trainer(max_steps=2)
    run.fit(make_model(), datamodule=data())
    run.save_checkpoint(tmp_path / "two.ckpt")
    changed = replace(OPTIMIZER, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.3)
    resumed = trainer(max_steps=3)
    resumed.fit(make_model(changed), datamodule=data(), ckpt_path=tmp_path / "two.ckpt", weights_only=True)
    matrices, vectors = resumed.optimizers[0].param_groups
    for group in (matrices, vectors):
        assert (tuple(group["betas"]), group["eps"]) == ((0.8, 0.9), 1e-6)
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.3, 0.0)


def test_muon_over_shuffled_epochs_resumes_bit_equal(data: Any, trainer: Any, tmp_path: Path) -> None:
    muon = replace(OPTIMIZER, algorithm="muon", cosine_cycle_iters=6)
    straight, begun = make_model(muon), make_model(muon)
    trainer(max_steps=6).fit(straight, datamodule=data(order="shuffled"))
    run = trainer(max_steps=3)
    run.fit(begun, datamodule=data(order="shuffled"))
    run.save_checkpoint(tmp_path / "three.ckpt")
    resumed = make_model(muon)
    trainer(max_steps=6).fit(
        resumed, datamodule=data(order="shuffled"), ckpt_path=tmp_path / "three.ckpt", weights_only=True
    )
    for key, weight in straight.net.state_dict().items():
        assert torch.equal(weight, resumed.net.state_dict()[key]), key
    assert not torch.equal(begun.net.lm_head.weight, resumed.net.lm_head.weight)
    with pytest.raises(ValueError, match=r"optimizer\.algorithm is muon in the checkpoint and adamw here"):
        trainer(max_steps=9).fit(
            make_model(), datamodule=data(order="shuffled"), ckpt_path=tmp_path / "three.ckpt", weights_only=True
        )


def test_unknown_algorithm_is_refused() -> None:
    with pytest.raises(ValueError, match="algorithm is 'sgd'; choose from adamw, muon"):
        OptimizerConfig(algorithm="sgd")  # pyright: ignore[reportArgumentType]


def test_loss_that_is_no_number_ends_the_run(data: Any, trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = make_model()
    loss = module.net.loss
    monkeypatch.setattr(module.net, "loss", lambda *batch: loss(*batch) * float("nan"))
    message = (
        r"the loss is nan at step 2 .*gradient norm is nan; the first gradient that is no number came at step 1, of "
        r"the windows that begin at token (\d+), .*train\.npy; lower model\.optimizer\.max_learning_rate"
    )
    files = data()
    with pytest.raises(DivergedError, match=message) as caught:
        trainer(Metrics(every=2)).fit(module, datamodule=files)
    first = re.search(message, str(caught.value))
    assert first is not None
    assert int(first[1]) == files.train_dataloader().starts(0)[0]


def test_loss_metrics_by_hand() -> None:
    meta = SplitMeta(
        tokens=100, bytes=400, documents=1, source_sha256="", sha256="", sampled_sha256="", largest_id=9, nats=50.0
    )
    expected = {"val/loss": math.log(8), "val/perplexity": 8, "val/bits_per_byte": 0.75, "val/irreducible_loss": 0.5}
    assert loss_metrics("val", math.log(8), meta) == pytest.approx(expected)
    assert "val/irreducible_loss" not in loss_metrics("val", 1.0, replace(meta, nats=None))
    assert math.isfinite(loss_metrics("val", 1e6, meta)["val/perplexity"])
