"""Text to stories through the command line, as a user would: fit, validate, generate, resume, several processes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.preloaded import LM
from tests.preloaded import run as lm

# Sends the process, of several the last, a signal at a place of the module, at an optimizer step.
SIGNAL = """
import os, sys
from lm.training.module import LanguageModel
before, pending = LanguageModel.{place}, [{step}]
def hook(self, *arguments):
    if self.global_step in pending and self.global_rank == self.trainer.world_size - 1:
        os.kill(os.getpid(), pending.clear() or {number})
    return before(self, *arguments)
LanguageModel.{place} = hook
from lm.cli import main
sys.exit(main(sys.argv[1:]))
"""
KILL_AT_STEP_7 = SIGNAL.format(place="on_train_batch_start", step=7, number=int(signal.SIGKILL))

WITHOUT_BFLOAT16 = """
import sys
from lm.training import precision
precision.multiplies_in_bfloat16 = lambda: False
from lm.cli import main
sys.exit(main(sys.argv[1:]))
"""


def started(folder: Path, *arguments: object, script: str = LM) -> subprocess.CompletedProcess[str]:
    """`python -m lm ARGUMENTS` in `folder`, from the start, as those must be that start processes like themselves."""
    (folder / "script.py").write_text(script, encoding="utf-8")
    command = [sys.executable, "script.py", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, timeout=300)


def fit(folder: Path, config: Path, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    done = lm(folder, "fit", "--config", config, *arguments, **options)
    assert done.returncode == 0, done.stderr
    return done


def checkpoint(folder: Path, version: int = 0, name: str = "last") -> dict[str, Any]:
    path = folder / f"lightning_logs/version_{version}/checkpoints/{name}.ckpt"
    return torch.load(path, weights_only=True)


def record(folder: Path, version: int = 0) -> dict[str, Any]:
    return json.loads((folder / f"lightning_logs/version_{version}/run.json").read_text())


def curves(folder: Path, version: int = 0) -> dict[str, dict[int, float]]:
    events = EventAccumulator(str(folder / f"lightning_logs/version_{version}"))
    events.Reload()
    return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_config: Path) -> tuple[Path, str]:
    """A finished run's folder and what it printed."""
    folder = tmp_path_factory.mktemp("run")
    done = started(folder, "fit", "--config", tiny_config)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_fit_says_what_came_out_and_what_to_do_next(run: tuple[Path, str]) -> None:
    _, shown = run
    assert "A story of this model" in shown
    assert "a perfect model of this text" in shown
    assert "tensorboard --logdir lightning_logs" in shown
    assert "python -m lm generate" in shown


def test_run_folder_holds_everything_needed_later(run: tuple[Path, str]) -> None:
    folder = run[0] / "lightning_logs/version_0"
    for name in ("config.yaml", "run.json", "tokenizer/vocab.json", "checkpoints/best.ckpt", "checkpoints/last.ckpt"):
        assert (folder / name).is_file(), name
    facts = record(run[0])
    assert facts["step"] == 12
    assert facts["tokens_seen"] == 12 * 8 * 32
    assert facts["resumed_from"] is None
    assert checkpoint(run[0])["global_step"] == 12


def test_curves_against_steps_and_seconds(run: tuple[Path, str]) -> None:
    logged = curves(run[0])
    assert set(logged["val/loss"]) == {5, 10, 12}  # every 5 steps, and at the very end
    assert set(logged["train/loss"]) == {2, 4, 6, 8, 10, 12}
    assert {"train/loss_vs_seconds", "val/loss_vs_seconds", "val/perplexity", "val/bits_per_byte"} <= set(logged)
    assert {"train/learning_rate", "train/gradient_norm", "train/tokens_per_second", "train/tokens_seen"} <= set(logged)
    assert logged["train/learning_rate"][2] == pytest.approx(1e-2 * 2 / 3)  # warmup of 3 steps
    assert logged["train/learning_rate"][12] == pytest.approx(1e-3)  # the cosine ends with max_steps
    assert 0 < logged["val/irreducible_loss"][5] < logged["val/loss"][12] < logged["val/loss"][5]


def test_validate_and_generate_take_the_newest_run(run: tuple[Path, str]) -> None:
    folder = run[0]
    validated = lm(folder, "validate")
    assert validated.returncode == 0, validated.stderr
    assert "version_0/checkpoints/best.ckpt" in validated.stdout
    best = min(curves(folder)["val/loss"].values())
    assert f"validation loss {best:.4f}" in validated.stdout
    other_batch = lm(folder, "validate", "--data.valid_batch_size", 7)
    assert f"validation loss {best:.4f}" in other_batch.stdout
    generated = lm(folder, "generate", "Once upon", "--max_new_tokens", 20, "--seed", 1)
    assert generated.returncode == 0, generated.stderr
    assert generated.stdout.startswith("Once upon")
    assert "version_0/checkpoints/best.ckpt" in generated.stderr
    assert generated.stdout == lm(folder, "generate", "Once upon", "--max_new_tokens", 20, "--seed", 1).stdout


@pytest.mark.parametrize("extra", [(), ("--trainer.accumulate_grad_batches", 2)], ids=["plain", "accumulated"])
def test_killed_and_resumed_run_ends_bit_equal(
    run: tuple[Path, str], tmp_path: Path, tiny_config: Path, extra: tuple[object, ...]
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    fit(whole, tiny_config, *extra)
    killed = lm(cut, "fit", "--config", tiny_config, *extra, script=KILL_AT_STEP_7)
    assert killed.returncode == -signal.SIGKILL
    saved = Path("lightning_logs/version_0/checkpoints/last.ckpt")
    assert checkpoint(cut)["global_step"] == 4
    fit(cut, tiny_config, *extra, "--ckpt_path", saved)
    expected, resumed = checkpoint(whole), checkpoint(cut, version=1)
    assert resumed["global_step"] == expected["global_step"] == 12
    for key, weight in expected["state_dict"].items():
        assert torch.equal(weight, resumed["state_dict"][key]), key
    for old, new in zip(curves(whole)["val/loss"].items(), curves(cut, 1)["val/loss"].items(), strict=True):
        assert old == new
    if not extra:  # two runs of one configuration and seed: the same numbers, twice
        assert curves(run[0])["train/loss"] == curves(whole)["train/loss"]
        for key, weight in checkpoint(run[0])["state_dict"].items():
            assert torch.equal(weight, expected["state_dict"][key]), key
    assert record(cut, 1)["tokens_seen"] == record(whole)["tokens_seen"]
    assert record(cut, 1)["resumed_from"] == str(saved)


def test_finished_run_goes_on_with_more_steps(tmp_path: Path, tiny_config: Path) -> None:
    schedule = ("--model.optimizer.cosine_cycle_iters", 16)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    fit(whole, tiny_config, *schedule, "--trainer.max_steps", 16)
    fit(parts, tiny_config, *schedule)
    saved = "lightning_logs/version_0/checkpoints/last.ckpt"
    done = fit(parts, tiny_config, *schedule, "--trainer.max_steps", 16, "--ckpt_path", saved)
    assert "trainer.max_steps: 16 now, the checkpoint had 12" in done.stderr
    for key, weight in checkpoint(whole)["state_dict"].items():
        assert torch.equal(weight, checkpoint(parts, 1)["state_dict"][key]), key


def test_cpu_without_bfloat16_trains_in_float32(tmp_path: Path, tiny_config: Path) -> None:
    (tmp_path / "narrow.yaml").write_text("trainer: {precision: bf16-mixed, max_steps: 2}", encoding="utf-8")
    done = fit(tmp_path, tiny_config, "--config", "narrow.yaml", script=WITHOUT_BFLOAT16)
    assert "trainer.precision: 32-true in place of bf16-mixed" in done.stdout
    assert record(tmp_path)["precision"] == "32-true"


def test_weights_of_a_run_begin_another_on_other_text(run: tuple[Path, str], tmp_path: Path) -> None:
    source = run[0] / "lightning_logs/version_0"
    (tmp_path / "text.txt").write_text("The cat saw the dog.\n<|endoftext|>\n" * 200, encoding="utf-8")
    texts = ("--data.source", "text", "--data.train_text", "text.txt", "--data.valid_text", "text.txt")
    still = ("--model.optimizer.max_learning_rate", 0, "--model.optimizer.min_learning_rate", 0)
    begun = lm(tmp_path, "fit", "--weights", source, *texts, *still, "--trainer.max_steps", 2)
    assert begun.returncode == 0, begun.stderr
    assert checkpoint(tmp_path)["global_step"] == 2
    best = checkpoint(run[0], name="best")["state_dict"]  # what a run folder stands for
    for key, weight in checkpoint(tmp_path)["state_dict"].items():
        assert torch.equal(weight, best[key]), key
    assert record(tmp_path)["resumed_from"] is None
    assert lm(tmp_path, "fit", "--resume", "--trainer.max_steps", 4, *still[2:], "--model.optimizer.max_learning_rate",
              1e-2).returncode == 0  # fmt: skip
    moved = checkpoint(tmp_path)["state_dict"]
    assert not torch.equal(moved["net.lm_head.weight"], best["net.lm_head.weight"])
    refused = lm(tmp_path, "fit", "--weights", source, *texts, "--model.net.d_model", 32)
    assert refused.returncode == 2
    assert "net.d_model is 16 in the checkpoint and 32 here" in refused.stderr
    assert "start anew without --weights" in refused.stderr


def test_two_processes_give_the_losses_of_one_and_stop_together(tmp_path: Path, tiny_config: Path) -> None:
    one, two, cut = (tmp_path / name for name in ("one", "two", "cut"))
    for folder in (one, two, cut):
        folder.mkdir()
    plain = ("--model.net.dropout", 0.0)
    both = (*plain, "--trainer.devices", 2, "--trainer.strategy", "ddp")
    fit(one, tiny_config, *plain)
    assert started(two, "fit", "--config", tiny_config, *both).returncode == 0
    script = SIGNAL.format(place="training_step", step=6, number=int(signal.SIGTERM))
    stopped = started(cut, "fit", "--config", tiny_config, *both, script=script)
    assert stopped.returncode == 143
    assert "stopped by SIGTERM at step 8\n" in stopped.stderr  # one step after the one that it came in
    assert checkpoint(cut)["global_step"] == 8
    assert started(cut, "fit", "--resume").returncode == 0
    for key, weight in checkpoint(two)["state_dict"].items():
        assert torch.equal(weight, checkpoint(cut)["state_dict"][key]), key
    single, double = curves(one), curves(two)
    for tag in ("train/loss", "val/loss", "train/gradient_norm"):
        assert single[tag].keys() == double[tag].keys()
        for step, value in single[tag].items():
            assert double[tag][step] == pytest.approx(value, abs=2e-5), (tag, step)
    assert record(two)["tokens_seen"] == record(one)["tokens_seen"]


@pytest.mark.parametrize(
    ("number", "code", "step"), [(signal.SIGTERM, 143, 8), (signal.SIGINT, 130, 5)], ids=["SIGTERM", "Ctrl-C"]
)
def test_signals_save_and_the_resumed_run_ends_bit_equal(
    run: tuple[Path, str], tmp_path: Path, tiny_config: Path, number: signal.Signals, code: int, step: int
) -> None:
    script = SIGNAL.format(place="training_step", step=step - 1, number=int(number))
    stopped = lm(tmp_path, "fit", "--config", tiny_config, script=script)
    assert stopped.returncode == code
    assert f"stopped by {number.name} at step {step}\n" in stopped.stderr
    assert record(tmp_path)["status"] == "interrupted"
    assert checkpoint(tmp_path)["global_step"] == step
    if number == signal.SIGINT:  # nothing but best.ckpt, of the same step, is whole
        last = tmp_path / "lightning_logs/version_0/checkpoints/last.ckpt"
        last.write_bytes(last.read_bytes()[:-1000])
    resumed = lm(tmp_path, "fit", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert ("last.ckpt is not a whole checkpoint" in resumed.stderr) == (number == signal.SIGINT)
    kind = "best" if number == signal.SIGINT else "last"
    assert f"resuming lightning_logs/version_0/checkpoints/{kind}.ckpt at step {step}\n" in resumed.stdout
    assert record(tmp_path)["status"] == "finished"
    assert record(tmp_path)["started"] < record(tmp_path)["launched"]
    for name in ("best", "last"):
        expected, ended = checkpoint(run[0], name=name), checkpoint(tmp_path, name=name)
        assert ended["global_step"] == expected["global_step"]
        for key, weight in expected["state_dict"].items():
            assert torch.equal(weight, ended["state_dict"][key]), key


def test_validation_cut_off_is_made_up_for(run: tuple[Path, str], tmp_path: Path, tiny_config: Path) -> None:
    script = SIGNAL.format(place="on_validation_epoch_start", step=10, number=int(signal.SIGKILL))
    every = ("--checkpoint_every", 5)
    assert lm(tmp_path, "fit", "--config", tiny_config, *every, script=script).returncode == -signal.SIGKILL
    assert lm(tmp_path, "fit", "--resume").returncode == 0
    assert curves(tmp_path)["val/loss"] == curves(run[0])["val/loss"]
    over = lm(tmp_path, "fit", "--resume")
    assert over.returncode == 2
    assert "raise trainer.max_steps to train on" in over.stderr


def test_full_disk_leaves_the_checkpoint_before_it(tmp_path: Path, tiny_config: Path) -> None:
    limit = "import resource, signal; resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))\n"
    fit(tmp_path, tiny_config, "--trainer.max_steps", 5)
    folder = tmp_path / "lightning_logs/version_0"
    before = {path.name: path.read_bytes() for path in (folder / "checkpoints").iterdir()}
    script = (
        limit.format(len(before["last.ckpt"]) - 1) + "import sys; from lm.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    full = lm(tmp_path, "fit", "--resume", "--trainer.max_steps", 12, script=script)
    assert full.returncode == 2
    lines = [line for line in full.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "cannot save the checkpoint" in lines[0]
    assert "the one before it is whole" in lines[0]
    assert "Traceback" not in full.stderr
    assert {path.name: path.read_bytes() for path in (folder / "checkpoints").iterdir()} == before
