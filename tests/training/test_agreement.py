"""What one process was told, all know at the same step; and an ordinary step of several waits for nothing else."""

import time
from pathlib import Path

import pytest
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from lm.training.agreement import Agreement
from tests.preloaded import run

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")

# Up to its last step, a process that would wait for the others ends at once.
STRICT = """
import os, sys
import torch.distributed as dist
from lm.training.module import LanguageModel
before, kept = LanguageModel.on_train_batch_start, {name: getattr(dist, name) for name in ("barrier", "broadcast")}
def hook(self, *arguments):
    for name, function in kept.items():
        setattr(dist, name, function if self.global_step == self.trainer.max_steps - 1 else fail)
    return before(self, *arguments)
def fail(*arguments, **options):
    os._exit(9)
LanguageModel.on_train_batch_start = hook
from lm.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_one_process_knows_at_once() -> None:
    alone = Agreement(1)
    assert [alone.ask(yes) for yes in (False, True, False)] == [False, True, False]
    alone.end()


def ask(rank: int, folder: Path) -> None:
    """The second process says yes at its third step, and nothing at its first before the other has ended that."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    agreement, first = Agreement(2), folder / "first"
    deadline = time.monotonic() + 60
    while rank == 1 and not first.exists():
        assert time.monotonic() < deadline, "the first step waits"
        time.sleep(0.01)
    known = [agreement.ask(False)]
    if rank == 0:
        first.touch()
    known += [agreement.ask(rank == 1 and step == 2) for step in (1, 2, 3)]
    assert known == [False, False, False, True]
    assert not agreement.ask(False)
    agreement.end()
    dist.destroy_process_group()


def test_all_know_one_step_later_and_the_step_waits_for_none(tmp_path: Path) -> None:
    spawn(ask, (tmp_path,), 2)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_steps_of_several_processes_wait_for_nothing(tmp_path: Path, tiny_config: Path, strategy: str) -> None:
    quiet = "--eval_every 99 --checkpoint_every 99 --trainer.log_every_n_steps 2 --trainer.max_steps 6"
    options = f"fit --config {tiny_config} {quiet} --trainer.strategy {strategy} --trainer.devices 2"
    done = run(tmp_path, *options.split(), script=STRICT, ranks=2)
    assert done.returncode == 0, done.stderr
