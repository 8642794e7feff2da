"""A tiny configuration of the whole line, shared by the tests of training, the command line and the end-to-end runs."""

import os
import signal
from pathlib import Path

import pytest

# Processes that tests start take this tree's package too, whatever is installed.
paths = str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH")
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
# A thread for each core in each of several processes of tests: they would spend their time waiting for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it; the tests send it

TINY = """
seed_everything: 0
eval_every: 5
checkpoint_every: 4
trainer:
  accelerator: cpu
  max_steps: 12
  log_every_n_steps: 2
  enable_progress_bar: false
data:
  source: stories
  stories:
    train_bytes: 60000
    valid_bytes: 8000
  batch_size: 8
  workers: 1
model:
  net:
    vocab_size: 300
    context_length: 32
    d_model: 16
    num_layers: 2
    num_heads: 2
    dropout: 0.1
  optimizer:
    max_learning_rate: 1.0e-2
    min_learning_rate: 1.0e-3
    warmup_iters: 3
"""


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A YAML file of a run of about a second."""
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(TINY, encoding="utf-8")
    return path
