"""verify reads everything: any byte of a run or of its token files that changed is named."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lm.cli import main


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_config: Path) -> Path:
    """The folder in which a short run was made."""
    folder = tmp_path_factory.mktemp("verify")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["lm"])
        assert main(["fit", "--config", str(tiny_config), "--trainer.max_steps", "2"]) == 0
    return folder


@pytest.fixture
def verify(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Exit code and output of the command in that folder."""
    monkeypatch.chdir(run)

    def call(*arguments: object) -> tuple[int, str]:
        code = main(["verify", *map(str, arguments)])
        shown = capsys.readouterr()
        return code, shown.out + shown.err

    return call


def test_whole_run(run: Path, verify: Callable[..., tuple[int, str]]) -> None:
    code, shown = verify()
    assert code == 0
    for name in ("best.ckpt: whole, at step 2", "last.ckpt: whole, at step 2", "are as they were written"):
        assert name in shown
    (tokens,) = run.glob("data/*/tokens-*")
    code, shown = verify(tokens, "lightning_logs/version_0/checkpoints/last.ckpt")
    assert code == 0
    assert "best.ckpt" not in shown


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("lightning_logs/version_0/checkpoints/last.ckpt", "last.ckpt is not a whole checkpoint (its bytes changed"),
        ("data/*/tokens-*/valid.npy", "valid.npy changed since it was written"),
        ("lightning_logs/version_0/tokenizer/merges.txt", "merge"),
    ],
)
def test_changed_byte(run: Path, verify: Callable[..., tuple[int, str]], pattern: str, message: str) -> None:
    (path,) = run.glob(pattern)
    whole = path.read_bytes()
    at = len(whole) // 2
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    try:
        code, shown = verify()
    finally:
        path.write_bytes(whole)
    assert code == 2
    errors = [line for line in shown.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]


def test_what_is_neither_run_nor_tokens(verify: Callable[..., tuple[int, str]]) -> None:
    code, shown = verify("data")
    assert code == 2
    assert "error: data is neither a checkpoint nor a run folder" in shown
