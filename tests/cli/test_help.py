"""The command table answers fast, and every command explains itself."""

import ast
import subprocess
import sys
import time

import pytest

from lm.cli import COMMANDS, main


def test_help_lists_every_command_and_loads_nothing_heavy() -> None:
    heavy = {"torch", "numpy", "lightning", "jsonargparse"}
    code = f"import sys, lm.cli; lm.cli.main(['--help']); print({heavy} & {{*sys.modules}})"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert all(f"  {name} " in shown for name in COMMANDS)
    assert shown.splitlines()[-1] == "set()"


def test_imported_objects_are_no_garbage_to_look_for_and_later_ones_are() -> None:
    code = (
        "import gc; from lm.cli import main; counts = [];"
        "[counts.append((main(['account']), gc.get_freeze_count(), gc.isenabled())) for _ in range(2)];"
        "print(counts)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    first, second = ast.literal_eval(shown.splitlines()[-1])
    assert first == second
    assert first[1] > 10_000
    assert first[2]


def test_unknown_command_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert capsys.readouterr().err == (f"error: there is no command 'trian'; choose from {', '.join(COMMANDS)}\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    start = time.monotonic()
    shown = subprocess.run([sys.executable, "-m", "lm", command, "--help"], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert "usage:" in shown.stdout
    assert time.monotonic() - start < 60
