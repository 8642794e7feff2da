"""What a checkpoint remembers of its run, and what a later command may change.

Own primitives under `checkpoint["lm"]` instead of Lightning's hyperparameters, which would override the command
line without a word.
"""

import logging
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import lm

if TYPE_CHECKING:
    from lm.data.datamodule import TokenDataModule
    from lm.training.module import LanguageModel

log = logging.getLogger("lm")

FORMAT = 1
DIVERGED = "diverged"  # status in run.json
# These change neither the weights' shapes nor their meaning, nor what training sees.
CHANGEABLE = ("net.dropout", "net.attention", "data.valid_text")


def run_identity(module: "LanguageModel", data: "TokenDataModule | None") -> dict[str, Any]:
    """Primitives that say which run this is: the model, the optimizer, the data and the length."""
    return {
        "format": FORMAT,
        "version": lm.__version__,
        "net": asdict(module.config),
        "optimizer": asdict(module.optimizer_config),
        "data": data.identity() if data is not None else {},
        "run": {
            "code": code_version(),
            "torch": str(torch.__version__),
            "precision": str(module.trainer.precision),
            "devices": module.trainer.world_size,
        },
        "trainer": {"accumulate_grad_batches": module.trainer.accumulate_grad_batches},
        "max_steps": module.trainer.max_steps,
    }


def check_resume(
    checkpoint: Mapping[str, Any], now: Mapping[str, Any], training: bool, option: str = "--ckpt_path"
) -> None:
    """Compare a checkpoint with the run that loads it; report what the command changes.

    Args:
        checkpoint: what Lightning loaded.
        now: `run_identity` of this command.
        training: True when training goes on, False when only the weights are used.
        option: what named the checkpoint.

    Raises:
        ValueError: the checkpoint is not ours, its model, tokenizer or (in training) data and accumulation are not the
            command's, or its training is already over.
    """
    saved = checkpoint.get("lm")
    if not isinstance(saved, Mapping) or saved.get("format") != FORMAT:
        raise ValueError("the checkpoint was not written by this version of lm; use one of its own .ckpt files")
    if training and checkpoint["global_step"] >= now["max_steps"]:
        raise ValueError(
            f"the checkpoint is at step {checkpoint['global_step']} and trainer.max_steps is {now['max_steps']}; "
            f"raise trainer.max_steps to train on"
        )
    conflicts = []
    # Positions in the data and in Lightning's loops are counted in micro-batches, hence the trainer's part.
    for part in ("net", "data", "trainer"):
        for name, old, new in _differences(part, saved.get(part, {}), now[part]):
            matters = training or part == "net" or name == "data.tokenizer"
            if name in CHANGEABLE and old is not None:
                log.warning("%s: %s now, the checkpoint had %s", name, new, old)
            elif matters and name not in CHANGEABLE:
                conflicts.append(f"{name} is {old} in the checkpoint and {new} here")
    algorithms = [identity["optimizer"].get("algorithm", "adamw") for identity in (saved, now)]
    if training and algorithms[0] != algorithms[1]:  # their states differ
        conflicts.append("optimizer.algorithm is {} in the checkpoint and {} here".format(*algorithms))
    if conflicts:
        raise ValueError("; ".join(conflicts) + f" — use the checkpoint's values, or start anew without {option}")
    if training:
        if "optimizer_states" not in checkpoint:
            raise ValueError(
                "the checkpoint holds weights only, without an optimizer's state; nothing can go on from it"
            )
        changed = [*_differences("optimizer", saved["optimizer"], now["optimizer"])]
        changed += _differences("run", saved.get("run", now["run"]), now["run"])
        changed += _differences("trainer", {"max_steps": saved["max_steps"]}, {"max_steps": now["max_steps"]})
        for name, old, new in changed:
            log.warning("%s: %s now, the checkpoint had %s", name, new, old)


@cache
def code_version() -> str:
    """The package's version and, in a git checkout of it, the commit; with a + where its files differ from that."""
    git = ["git", "-C", str(Path(lm.__file__).parent)]
    try:
        if subprocess.run([*git, "ls-files", "__init__.py"], capture_output=True, check=True, timeout=5).stdout:
            describe = [*git, "describe", "--always", "--exclude=*", "--abbrev=12", "--dirty=+"]
            commit = subprocess.run(describe, capture_output=True, check=True, timeout=5, text=True).stdout
            return f"{lm.__version__} at {commit.strip()}"
    except (OSError, subprocess.SubprocessError):
        pass
    return lm.__version__


def _differences(part: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for key in sorted(old.keys() | new.keys()):
        before, after = (list(v) if isinstance(v, tuple) else v for v in (old.get(key), new.get(key)))
        if before != after:
            yield f"{part}.{key}", before, after
