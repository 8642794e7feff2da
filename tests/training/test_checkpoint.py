"""The course's checkpoint functions: a continuation from a file equals one that never stopped."""

import io
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import nn

from lm.optim import AdamW
from lm.training import load_checkpoint, save_checkpoint


def fresh(seed: int, width: int = 8) -> tuple[nn.Module, AdamW]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 2))
    return model, AdamW(model.parameters(), lr=1e-2)


def train(model: nn.Module, optimizer: AdamW, first: int, last: int) -> None:
    for step in range(first, last):
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("form", ["str", "path", "buffer"])
def test_continuation_is_bit_equal(tmp_path: Path, form: str) -> None:
    place = {"str": str(tmp_path / "a.pt"), "path": tmp_path / "a.pt", "buffer": io.BytesIO()}[form]
    model, optimizer = fresh(0)
    train(model, optimizer, 0, 5)
    save_checkpoint(model, optimizer, 5, place)
    train(model, optimizer, 5, 10)

    other, other_optimizer = fresh(1)
    if isinstance(place, io.BytesIO):
        place.seek(0)
    iteration = load_checkpoint(place, other, other_optimizer)
    assert iteration == 5
    train(other, other_optimizer, iteration, 10)
    for expected, weight in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(expected, weight)


def test_failed_save_keeps_the_old_file_and_leaves_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.pt"
    model, optimizer = fresh(0)
    save_checkpoint(model, optimizer, 1, path)
    before = path.read_bytes()

    def full_disk(state: object, file: Path) -> None:
        file.write_bytes(b"half")
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full_disk)
        with pytest.raises(OSError, match="no space"):
            save_checkpoint(model, optimizer, 2, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_other_shape_and_missing_file_are_refused(tmp_path: Path) -> None:
    save_checkpoint(*fresh(0), 1, tmp_path / "a.pt")
    other, optimizer = fresh(1, width=9)
    before = deepcopy(optimizer.state_dict())
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_checkpoint(tmp_path / "a.pt", other, optimizer)
    assert optimizer.state_dict() == before
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "gone.pt", other, optimizer)
