"""Run folders: the newest is found by its number, the best checkpoint comes first, and no checkpoint runs code."""

import logging
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from lm.model import ModelConfig, TransformerLM
from lm.training.files import write_checkpoint
from lm.training.resume import FORMAT
from lm.training.runs import find_resumable, find_run, load

NET = ModelConfig(vocab_size=20, context_length=8, d_model=8, num_layers=1, num_heads=2)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_run(name: str, *checkpoints: str) -> Path:
    run = Path("lightning_logs") / name
    (run / "checkpoints").mkdir(parents=True)
    for checkpoint in checkpoints:
        (run / "checkpoints" / f"{checkpoint}.ckpt").touch()
    return run


def contents(model: TransformerLM) -> dict[str, Any]:
    weights = {f"net.{name}": weight for name, weight in model.state_dict().items()}
    net = {name: getattr(NET, name) for name in NET.__dataclass_fields__}
    return {"state_dict": weights, "lm": {"format": FORMAT, "net": net}}


def test_newest_run_has_the_largest_number(folder: Path) -> None:
    for version in (10, 9, 2):
        make_run(f"version_{version}", "best", "last")
    make_run("version_99")  # crashed before its first checkpoint
    make_run("version_x", "best")
    make_run("zebra", "best")
    found = find_run()
    assert found.folder == Path("lightning_logs/version_10")
    assert found.config == Path("lightning_logs/version_10/config.yaml")


def test_best_checkpoint_comes_before_the_last(folder: Path) -> None:
    both, only_last = make_run("version_0", "best", "last"), make_run("version_1", "last")
    assert find_run(both).checkpoint == both / "checkpoints/best.ckpt"
    assert find_run(only_last).checkpoint == only_last / "checkpoints/last.ckpt"


def test_checkpoint_file_names_its_run(folder: Path) -> None:
    run = make_run("version_0", "best", "last")
    found = find_run(run / "checkpoints/last.ckpt")
    assert found.checkpoint == run / "checkpoints/last.ckpt"
    assert found.folder == run.resolve()


def test_what_is_no_run_is_said(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no run with a checkpoint.*quickstart"):
        find_run()
    empty = make_run("version_0")
    for path in (empty, Path("gone")):
        with pytest.raises(FileNotFoundError, match=f"{path} is neither a checkpoint nor a run folder"):
            find_run(path)


def test_model_comes_back_with_its_weights_in_eval_mode(folder: Path) -> None:
    run, model = make_run("version_0", "best"), TransformerLM(NET)
    torch.save(contents(model), run / "checkpoints/best.ckpt")
    loaded = find_run().load_model()
    assert not loaded.training
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, loaded.state_dict()[name])


def test_weights_of_another_model_are_refused(folder: Path) -> None:
    run, checkpoint = make_run("version_0", "best"), contents(TransformerLM(NET))
    checkpoint["lm"]["net"]["d_model"] = 16
    torch.save(checkpoint, run / "checkpoints/best.ckpt")
    with pytest.raises(ValueError, match=r"best\.ckpt: weights do not fit the model") as caught:
        find_run().load_model()
    assert "\n" not in str(caught.value)


def test_checkpoint_without_a_model_is_refused(folder: Path) -> None:
    run, whole = make_run("version_0", "best"), contents(TransformerLM(NET))
    for broken in (
        {"lm": {"format": FORMAT}},
        {**whole, "state_dict": [1]},
        {**whole, "lm": {"format": FORMAT, "net": {"depth": 3}}},
    ):
        torch.save(broken, run / "checkpoints/best.ckpt")
        with pytest.raises(ValueError, match=r"best\.ckpt: weights do not fit the model"):
            find_run().load_model()


class Hostile:
    """Runs a shell command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch executed",)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_checkpoint_that_would_run_code_is_refused_and_not_run(folder: Path, form: str) -> None:
    path = Path("hostile.ckpt")
    checkpoint = {**contents(TransformerLM(NET)), "callbacks": Hostile()}
    if form == "pickle":
        path.write_bytes(pickle.dumps(checkpoint))
    else:
        torch.save(checkpoint, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(ValueError, match=r"hostile\.ckpt is not a whole checkpoint") as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert not Path("executed").exists()


@pytest.mark.parametrize("foreign", [[1, 2], {"state_dict": {}}, {"lm": 3}, {"lm": {"format": 99}}])
def test_foreign_checkpoints_are_refused(folder: Path, foreign: object) -> None:
    torch.save(foreign, "foreign.ckpt")
    with pytest.raises(ValueError, match=r"foreign\.ckpt was not written by this version of lm"):
        load(Path("foreign.ckpt"))


def test_missing_and_truncated_checkpoints(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.ckpt"):
        load(Path("gone.ckpt"))
    torch.save(contents(TransformerLM(NET)), "cut.ckpt")
    whole = Path("cut.ckpt").read_bytes()
    for size in (0, 100, len(whole) // 2, len(whole) - 1):
        Path("cut.ckpt").write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"cut\.ckpt is not a whole checkpoint"):
            load(Path("cut.ckpt"))
    Path("cut.ckpt").write_bytes(whole.replace(b"state_dict", b"state\xc0dict"))  # not UTF-8, deep in the pickle
    with pytest.raises(ValueError, match=r"cut\.ckpt is not a whole checkpoint"):
        load(Path("cut.ckpt"))


def test_newest_whole_checkpoint_is_resumed(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = TransformerLM(NET)
    make_run("version_2", "last")
    run = make_run("version_10")
    for name, step in (("last", 8), ("best", 5)):
        write_checkpoint({**contents(model), "global_step": step}, run / f"checkpoints/{name}.ckpt")
    found, step = find_resumable()
    assert (found.folder, found.checkpoint.name, step) == (run, "last.ckpt", 8)
    assert not caplog.records
    last = run / "checkpoints/last.ckpt"
    whole = last.read_bytes()
    last.write_bytes(whole[:2000] + bytes([whole[2000] ^ 1]) + whole[2001:])
    with caplog.at_level(logging.WARNING, "lm"):
        found, step = find_resumable(run)
    assert (found.checkpoint.name, step) == ("best.ckpt", 5)
    assert "passed over: " in caplog.text
    assert "last.ckpt is not a whole checkpoint (its bytes changed" in caplog.text


def test_nothing_to_resume_is_said(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no run in lightning_logs/ to resume"):
        find_resumable()
    with pytest.raises(FileNotFoundError, match="no run folder gone to resume"):
        find_resumable(Path("gone"))
    make_run("version_0", "last", "best")  # empty files
    with pytest.raises(FileNotFoundError, match="version_0 holds no whole checkpoint to resume"):
        find_resumable()
