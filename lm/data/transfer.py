"""Batches on their way to the device."""

from typing import Any

import torch
from lightning.pytorch import LightningDataModule


class PromptBatches(LightningDataModule):
    """Batches go to a CUDA device beside what it still computes, so that no step waits for its own."""

    def __init__(self) -> None:
        super().__init__()
        self._copies: torch.cuda.Stream | None = None

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        if device.type != "cuda":
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        if self._copies is None:
            self._copies = torch.cuda.Stream(device)
        with torch.cuda.stream(self._copies):
            moved = super().transfer_batch_to_device(batch, device, dataloader_idx)
        reader = torch.cuda.current_stream(device)
        reader.wait_stream(self._copies)
        for tensor in moved:
            tensor.record_stream(reader)
        return moved
