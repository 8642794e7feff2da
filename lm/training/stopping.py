"""Checkpoints and the end of training by a signal: both between two optimizer steps, where a resume is exact."""

import io
import logging
import os
import signal
import subprocess
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from lm.training.agreement import Agreement
from lm.training.files import Packed, SaveError
from lm.training.metrics import require_finite
from lm.training.shards import cut, put_together, read, remove_others

log = logging.getLogger("lm")

SIGNALED = 128  # a shell's exit code for a process that a signal ended is this much above the signal's number


class CheckpointFiles(TorchCheckpointIO):
    """How Lightning writes and reads checkpoints: whole files with a digest, and from shards too.

    A save packs the checkpoint into memory and returns; a thread writes it to the disk, one file after the other. The
    same checkpoint under a second name is not packed again. What could not be written is said by `check`.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "checkpoints")
        self._writing: Future[None] | None = None
        self._packed = Packed()
        self._contents = b""  # of what is packed

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        contents = _contents(checkpoint)
        if contents != self._contents:
            self.check(wait=True)
            self._contents = b""
            self._packed.pack(checkpoint)
            self._contents = contents
        self._writing = self._thread.submit(self._write, Path(path), self._writing)

    def _write(self, path: Path, before: "Future[None] | None") -> None:
        if before is not None:
            before.result()
        self._packed.write(path)
        remove_others(path)

    def check(self, wait: bool = False) -> None:
        """Raises SaveError where a checkpoint could not be written; waits for what is not yet on the disk by choice."""
        if self._writing is not None and (wait or self._writing.done()):
            writing, self._writing = self._writing, None
            writing.result()

    def teardown(self) -> None:
        """Wait for the thread. What fails now is only said, as another error ends training already."""
        try:
            self.check(wait=True)
        except SaveError as error:
            log.warning("%s", error)

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Any | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        return put_together(read(Path(path)))


def _contents(checkpoint: dict[str, Any]) -> bytes:
    """Equal for checkpoints of the same contents: their primitives, and where and in which version tensors lie."""
    rest, tensors = cut(checkpoint, lambda leaf: isinstance(leaf, Tensor))
    contents = io.BytesIO()
    places = [(tensor.data_ptr(), tensor.is_inference() or tensor._version) for tensor in tensors]
    torch.save((rest, places), contents)
    return contents.getvalue()


class Stopped(SystemExit):
    """Training ended early because of a signal, with everything saved."""


class LastCheckpoint(Checkpoint):
    """Writes last.ckpt every so many optimizer steps, at the end, and when a signal asks to stop.

    Where a validation follows a step, the checkpoint is written after it: so a run cut off during the validation goes
    on from before the step, and does not miss it.

    SIGTERM and Ctrl-C take effect at the end of a step, with several processes of the next one, the same in all, with
    exit code 143 or 130; a second Ctrl-C at once, without saving. Under SLURM, SIGUSR1 (`#SBATCH --signal=USR1@60`)
    also puts the job back into the queue. These take the place of Lightning's own handlers, which save in the middle of
    a step.

    Args:
        every: optimizer steps between checkpoints.
        files: what writes them.
    """

    def __init__(self, every: int, files: CheckpointFiles) -> None:
        self.every = every
        self.files = files
        self._path: Path | None = None
        self._saved_step = -1
        self._signal: int | None = None
        self._stopping = False
        self._agreement: Agreement | None = None
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = trainer.log_dir  # a collective: every process asks
        trial = getattr(trainer, "fast_dev_run", False)
        self._path = None if folder is None or trial else Path(folder) / "checkpoints" / "last.ckpt"
        self._agreement = Agreement(trainer.world_size)
        self._take_signals(trainer)

    def _take_signals(self, trainer: Trainer) -> None:
        """Signals are this callback's from here on, and one that came before too."""
        self._signal = None
        # Lightning's own agreement on SIGTERM makes every batch wait for the device.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
        if threading.current_thread() is threading.main_thread():
            wanted = [signal.SIGTERM, signal.SIGINT, *([signal.SIGUSR1] if "SLURM_JOB_ID" in os.environ else [])]
            self._handlers = {number: signal.signal(number, self._receive) for number in wanted}
        if trainer.received_sigterm:
            self._signal = signal.SIGTERM
            trainer._signal_connector.received_sigterm = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        assert isinstance(trainer.val_check_batch, int)
        assert self._agreement is not None
        self._stopping = self._agreement.ask(self._signal is not None)
        if not trainer.enable_validation or (batch_idx + 1) % trainer.val_check_batch:
            self._end_step(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._end_step(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore_handlers()
        if self._agreement is not None:
            self._agreement.end()
        if self._saved_step != trainer.global_step:
            self._save(trainer)
        self._finish(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore_handlers()
        self._agreement = None  # another process may have ended before its word

    def _end_step(self, trainer: Trainer) -> None:
        step = trainer.global_step
        self.files.check()
        if self._stopping or step % self.every == 0 or step == trainer.max_steps:
            self._save(trainer)
        if self._stopping or step == trainer.max_steps:
            self._finish(trainer)
        if self._stopping and step < trainer.max_steps:
            number = self._signal or signal.SIGTERM  # another process received it
            if trainer.is_global_zero:
                log.warning("stopped by %s at step %d", signal.Signals(number).name, step)
                if self._path is not None:
                    log.warning("go on: python -m lm fit --resume --run_folder %s", self._path.parent.parent)
                if number == signal.SIGUSR1:
                    subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=True)
            raise Stopped(SIGNALED + number)

    def _save(self, trainer: Trainer) -> None:
        if self._path is not None:
            require_finite(trainer)
            trainer.save_checkpoint(self._path)
            self._saved_step = trainer.global_step

    def _finish(self, trainer: Trainer) -> None:
        """Wait, in all processes, until the disk has what was saved."""
        self.files.check(wait=True)
        trainer.strategy.barrier("checkpoints written")

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._signal == number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = number
        if number == signal.SIGINT:
            os.write(2, b"\nstopping at the end of a step; Ctrl-C again stops at once, without saving\n")

    def _restore_handlers(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}
