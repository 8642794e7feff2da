"""Sharded training on processes with gloo: one process's losses and weights, and checkpoints for any number of them."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lm.training.runs import find_run, load
from lm.training.shards import put_together, shard_files
from tests.preloaded import run

STEPS = 12
PLAIN = ("--model.net.dropout", 0.0, "--trainer.max_steps", STEPS)
SHARDED = ("--trainer.strategy", "fsdp", "--trainer.devices")
Runs = dict[str, Path]

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")


def saved(folder: Path, name: str = "last") -> Path:
    return folder / f"lightning_logs/version_0/checkpoints/{name}.ckpt"


def state(folder: Path) -> dict[str, Any]:
    """Weights and moments of the last checkpoint."""
    contents = put_together(load(saved(folder)))
    return {"weights": contents["state_dict"], "moments": contents["optimizer_states"][0]["state"]}


def curves(folder: Path) -> dict[str, dict[int, float]]:
    events = EventAccumulator(str(folder / "lightning_logs/version_0"))
    events.Reload()
    return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def assert_close(one: dict[str, Any], other: dict[str, Any]) -> None:
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_config: Path) -> Runs:
    """The same run by one process, by two with everything sharded, and by two with the whole model."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("one", "two", "ddp")}
    options = [*map(str, ("fit", "--config", tiny_config, *PLAIN))]
    for name, devices in (("one", 1), ("ddp", 2)):
        done = run(folders[name], *options, "--trainer.devices", devices, ranks=devices)
        assert done.returncode == 0, done.stderr
    # As a user would, so that Lightning starts the second process.
    command = [sys.executable, "-m", "lm", *options, *SHARDED, "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folders["two"], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return folders


@pytest.mark.parametrize("kind", ["two", "ddp"])
def test_two_processes_give_the_losses_and_weights_of_one(runs: Runs, kind: str) -> None:
    one, two = curves(runs["one"]), curves(runs[kind])
    for tag in ("train/loss", "val/loss", "train/gradient_norm", "train/tokens_seen"):
        assert one[tag].keys() == two[tag].keys()
        for step, value in one[tag].items():
            assert two[tag][step] == pytest.approx(value, abs=2e-5), (tag, step)
    assert_close(state(runs["one"]), state(runs[kind]))


def test_a_process_writes_its_rows_only(runs: Runs) -> None:
    files = shard_files(saved(runs["two"]))
    assert [file.name for file in files] == ["0.pt", "1.pt"]
    assert sorted(saved(runs["two"]).parent.rglob("*.pt")) == sorted(files + shard_files(saved(runs["two"], "best")))
    rows = [torch.load(file, weights_only=True)["tensors"] for file in files]
    whole = sum(w.numel() for w in put_together(load(saved(runs["two"])))["state_dict"].values())
    for mine in rows:
        assert sum(tensor.numel() for tensor in mine) == pytest.approx(3 * whole / 2, rel=0.05)  # with two moments
    assert not shard_files(saved(runs["one"]))


def test_tools_read_shards(runs: Runs) -> None:
    with torch.no_grad():
        ids = torch.arange(8)[None]
        logits = [find_run(saved(runs[name])).load_model()(ids) for name in ("one", "two")]
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("before", "strategy", "devices"),
    [("two", "fsdp", 2), ("two", "fsdp", 1), ("two", "auto", 1), ("one", "fsdp", 2)],
    ids=["2 to 2", "2 to 1", "2 to 1 not sharded", "1 not sharded to 2"],
)
def test_any_number_of_processes_goes_on(
    runs: Runs, tmp_path: Path, tiny_config: Path, before: str, strategy: str, devices: int
) -> None:
    plain = ("fit", "--config", tiny_config, *PLAIN[:2], "--trainer.max_steps", STEPS + 4)
    plain += ("--model.optimizer.cosine_cycle_iters", STEPS)
    if not (expected := runs["one"].with_name("expected")).exists():
        done = run(expected, *plain, "--ckpt_path", saved(runs["one"]))
        assert done.returncode == 0, done.stderr
    options = ("--trainer.strategy", strategy, "--trainer.devices", devices, "--ckpt_path", saved(runs[before]))
    done = run(tmp_path, *plain, *options, ranks=devices)
    assert done.returncode == 0, done.stderr
    assert load(saved(tmp_path))["global_step"] == STEPS + 4
    assert_close(state(tmp_path), state(expected))


def test_a_missing_or_damaged_shard_is_named(runs: Runs, tmp_path: Path, tiny_config: Path) -> None:
    copy = tmp_path / "checkpoints"
    copy.mkdir()
    (copy / "last.ckpt").write_bytes(saved(runs["two"]).read_bytes())
    refused = run(tmp_path, "fit", "--config", tiny_config, *PLAIN, "--ckpt_path", copy / "last.ckpt")
    assert refused.returncode == 2
    assert "last.ckpt is not a whole checkpoint" in refused.stderr
    assert "0.pt" in refused.stderr
    for source, file in zip(shard_files(saved(runs["two"])), shard_files(copy / "last.ckpt"), strict=True):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(source.read_bytes()[:-100] + bytes(100))
    with pytest.raises(ValueError, match="last.ckpt is not a whole checkpoint"):
        load(copy / "last.ckpt")


def test_muon_is_refused(tmp_path: Path, tiny_config: Path) -> None:
    refused = run(tmp_path, "fit", "--config", tiny_config, *SHARDED, 1, "--model.optimizer.algorithm", "muon")
    assert refused.returncode == 2
    assert "error: model.optimizer.algorithm muon needs whole matrices" in refused.stderr.splitlines()[-1]
