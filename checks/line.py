"""The whole line on a tiny configuration, in forked processes that start in milliseconds.

The parent imports everything once and never computes, so that a child is a fresh process but for its imports.
"""

import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch

import lm.commands.data
import lm.commands.export
import lm.data.stories
import lm.export.to_huggingface
import lm.training.lightning_cli  # noqa: F401  (imported here, not in every child)
from lm.cli import main
from lm.tokenizer import Tokenizer
from lm.training.runs import LOGS, Run, find_resumable, load

CONFIG = """
seed_everything: 0
eval_every: 4
checkpoint_every: 2
trainer:
  accelerator: cpu
  max_steps: 12
  accumulate_grad_batches: 2
  log_every_n_steps: 2
  enable_progress_bar: false
data:
  stories: {train_bytes: 150000, valid_bytes: 4000}
  batch_size: 4
  workers: 1
model:
  net: {vocab_size: 290, context_length: 16, d_model: 16, num_layers: 2, num_heads: 2, dropout: 0.1}
  optimizer: {max_learning_rate: 1.0e-2, min_learning_rate: 1.0e-3, warmup_iters: 3}
"""
LAST_STEP = 12
ROOT = str(Path(__file__).parent.parent)


def fork(work: Callable[[], int], folder: Path) -> int:
    """Start `work` in a child with a group of its own, in `folder`; what it prints goes to said.txt. Returns its id."""
    sys.stdout.flush()
    sys.stderr.flush()
    if child := os.fork():
        with suppress(ProcessLookupError, PermissionError):  # the child was faster
            os.setpgid(child, child)
        return child
    try:
        os.setpgid(0, 0)
        os.chdir(folder)
        said = os.open("said.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        torch.set_num_threads(1)
        code = work()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 70
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def wait(child: int) -> int:
    """The child's exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def newest_run(folder: Path) -> Run | None:
    """The newest run folder with its newest whole checkpoint; None if it has none."""
    runs = sorted(folder.glob(f"{LOGS}/version_*"), key=lambda path: int(path.name.split("_")[1]))
    if not runs or not list(runs[-1].glob("checkpoints/*.ckpt")):
        return None
    return find_resumable(runs[-1])[0]


def fit(folder: Path, processes: int = 1) -> Callable[[], int]:
    """The command that goes on with what is there, as a user would give it; with several processes, under DDP."""
    (folder / "config.yaml").write_text(CONFIG, encoding="utf-8")
    command = ["fit", "--resume"] if newest_run(folder) else ["fit", "--config", "config.yaml"]
    if processes == 1:
        return lambda: main(command)
    # Lightning starts the other processes by the command line of the first, which must therefore be that of lm.
    command += ["--trainer.devices", str(processes), "--trainer.strategy", "ddp"]
    return lambda: os.execve(sys.executable, [sys.executable, "-m", "lm", *command], {**os.environ, "PYTHONPATH": ROOT})


def is_over(folder: Path) -> bool:
    """Whether the last step's checkpoint is there, so that there is nothing to go on with."""
    run = newest_run(folder)
    return run is not None and load(run.checkpoint)["global_step"] == LAST_STEP


def outcome(folder: Path) -> dict[str, str]:
    """Digests of what the line makes: text, tokenizer, tokens, and the weights and optimizer state at the end."""
    run = newest_run(folder)
    assert run is not None
    state = load(run.checkpoint)
    assert state["global_step"] == LAST_STEP, state["global_step"]
    digests = {}
    for path in (
        sorted(folder.glob("data/*/*.txt"))
        + sorted(folder.glob("*/*/tokens-*/*.npy"))
        + [run.folder / "tokenizer" / name for name in ("vocab.json", "merges.txt")]
    ):
        digests["/".join(path.parts[-2:])] = sha256(path.read_bytes()).hexdigest()
    for name, value in _tensors("", {"weights": state["state_dict"], "optimizer": state["optimizer_states"]}):
        digests[name] = sha256(value).hexdigest()
    return digests


def _tensors(name: str, value: object) -> list[tuple[str, bytes]]:
    if isinstance(value, torch.Tensor):
        return [(name, value.contiguous().numpy().tobytes())]
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return [found for key, item in items for found in _tensors(f"{name}/{key}", item)]
    return [(name, repr(value).encode())]


def damaged(folder: Path) -> list[str]:
    """Files under their final names that are not whole."""
    found = []
    for path in folder.rglob("*"):
        if path.name.endswith((".tmp", ".part")) or any(part.endswith(".tmp") for part in path.parts):
            continue
        try:
            if path.suffix == ".ckpt":
                load(path)
            elif path.suffix == ".npy":
                np.load(path, mmap_mode="r")
            elif path.name == "vocab.json":
                Tokenizer.from_folder(path.parent)
        except Exception as error:
            found.append(f"{path.relative_to(folder)}: {error}")
    return found
