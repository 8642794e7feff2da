"""Run folders: `lightning_logs/version_N` with config.yaml, run.json, tokenizer/ and checkpoints/."""

import logging
import pickle
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch

from lm.model import ModelConfig, TransformerLM
from lm.tokenizer import Tokenizer
from lm.training.files import check_digest
from lm.training.resume import FORMAT
from lm.training.shards import put_together, read, shard_files

log = logging.getLogger("lm")

LOGS = Path("lightning_logs")


@dataclass(frozen=True)
class Run:
    """A run folder and the checkpoint chosen in it."""

    folder: Path
    checkpoint: Path

    @property
    def config(self) -> Path:
        return self.folder / "config.yaml"

    @cached_property
    def contents(self) -> dict[str, Any]:
        """The checkpoint, see `load`."""
        return load(self.checkpoint)

    def load_tokenizer(self) -> Tokenizer:
        """The run's tokenizer. Raises ValueError if it is not the one that the checkpoint was trained with."""
        tokenizer = Tokenizer.from_folder(self.folder / "tokenizer")
        trained_with = self.contents["lm"].get("data", {}).get("tokenizer")
        if trained_with is not None and trained_with != tokenizer.digest:
            raise ValueError(
                f"{self.folder / 'tokenizer'} is not the tokenizer that {self.checkpoint} was trained with; put the "
                f"one of digest {trained_with} there"
            )
        return tokenizer

    def load_model(self, device: str | torch.device = "cpu") -> TransformerLM:
        """The checkpoint's model in eval mode, on `device`.

        Raises:
            ValueError: the file is not a whole checkpoint of lm.
        """
        checkpoint = self.contents
        try:
            model = TransformerLM(ModelConfig(**checkpoint["lm"]["net"]))
            weights = put_together(checkpoint["state_dict"])
            model.load_state_dict({k.removeprefix("net."): v for k, v in weights.items()})
        except (RuntimeError, KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(
                f"{self.checkpoint}: weights do not fit the model: {str(error).splitlines()[-1].strip()}"
            ) from None
        return model.to(device).eval()


def load(path: Path) -> dict[str, Any]:
    """A checkpoint's contents: tensors (sharded ones as `Pieces`) and primitives only, never other objects.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, holds other objects, or was not written by lm.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}; give a file of {LOGS}/version_N/checkpoints")
    try:
        if not is_zipfile(path):
            raise ValueError("it is cut off, or no zip archive as torch writes them")
        check_digest(path)
        for shard in shard_files(path):
            check_digest(shard)
        checkpoint = read(path)
    except Exception as error:  # whatever damaged bytes lead the unpickler to
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, pickle.UnpicklingError):  # torch's words advise to load it all the same
            reason = "it holds other things than tensors and plain values, which are never loaded"
        raise ValueError(f"{path} is not a whole checkpoint ({reason}); use another one of the run") from None
    identity = checkpoint.get("lm") if isinstance(checkpoint, dict) else None
    if not isinstance(identity, dict) or identity.get("format") != FORMAT:
        raise ValueError(f"{path} was not written by this version of lm; use a file of {LOGS}/version_N/checkpoints")
    return checkpoint


def find_run(where: Path | None = None) -> Run:
    """The run meant by `where`: a run folder, a checkpoint file, or None for the newest run in lightning_logs.

    The best checkpoint is taken, or the last one where no validation came before the end.

    Raises:
        FileNotFoundError: there is no such run or no checkpoint in it.
    """
    if where is None:
        runs = [run for run in map(_run_of, _by_version(LOGS)) if run]
        if not runs:
            raise FileNotFoundError(
                f"no run with a checkpoint in {LOGS}/; train one: python -m lm fit --config configs/quickstart.yaml"
            )
        return runs[-1]
    if where.is_file():
        return Run(where.resolve().parent.parent, where)
    run = _run_of(where) if where.is_dir() else None
    if run is None:
        raise FileNotFoundError(
            f"{where} is neither a checkpoint nor a run folder with checkpoints; give one of {LOGS}/version_N"
        )
    return run


def find_resumable(folder: Path | None = None) -> tuple[Run, int]:
    """A run with the newest whole checkpoint in its folder, and the optimizer step it is at.

    Args:
        folder: the run's; by default the newest of lightning_logs. What cannot be read in it is said and passed over.

    Raises:
        FileNotFoundError: there is no such run, or no whole checkpoint in it.
    """
    if folder is None:
        if not (folders := _by_version(LOGS)):
            raise FileNotFoundError(f"there is no run in {LOGS}/ to resume; start one without --resume")
        folder = folders[-1]
    elif not folder.is_dir():
        raise FileNotFoundError(f"there is no run folder {folder} to resume; start the run without --resume")
    steps: dict[Path, int] = {}
    for path in sorted((folder / "checkpoints").glob("*.ckpt"), reverse=True):  # last.ckpt before best.ckpt
        try:
            steps[path] = load(path)["global_step"]
        except (ValueError, OSError) as error:
            log.warning("passed over: %s", error)
    if not steps:
        raise FileNotFoundError(
            f"{folder} holds no whole checkpoint to resume; start the run anew, or name another with --run_folder"
        )
    newest = max(steps, key=lambda path: steps[path])
    return Run(folder, newest), steps[newest]


def _run_of(folder: Path) -> Run | None:
    for name in ("best.ckpt", "last.ckpt"):
        if (checkpoint := folder / "checkpoints" / name).is_file():
            return Run(folder, checkpoint)
    return None


def _by_version(logs: Path) -> list[Path]:
    versions = [(int(m[1]), p) for p in logs.glob("version_*") if (m := re.fullmatch(r"version_(\d+)", p.name))]
    return [path for _, path in sorted(versions)]
