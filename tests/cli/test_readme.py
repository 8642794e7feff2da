"""The README's commands are accepted by the real parsers, and its tree is the tree."""

import re
import shlex
from pathlib import Path

import pytest

from lm.cli import COMMANDS, main

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = [block.replace("\\\n", " ") for block in re.findall(r"^```sh\n(.*?)^```", README, re.S | re.M)]
LINES = [part.strip() for block in BLOCKS for line in block.splitlines() for part in line.split("&&")]
OURS = sorted({line for line in LINES if line.startswith("python -m lm ")})


def tree() -> set[str]:
    """Paths of the block below "## Tree"."""
    block = re.search(r"^## Tree\n+```\n(.*?)^```", README, re.S | re.M)
    assert block is not None
    paths: set[str] = set()
    folders: list[str] = []
    for line in block[1].splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        for name in re.findall(r"[\w./-]+", re.split(r" {2,}(?=[^ ]* [^ ])", line.strip())[0]):
            if name.endswith("/"):
                folders[depth:] = [name]
            paths.add("".join(folders[:depth]) + name)
    return paths


def test_readme_names_commands() -> None:
    assert len(OURS) >= 4


@pytest.mark.parametrize("line", OURS)
def test_commands_are_accepted(line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", ["lm"])
    command, *arguments = shlex.split(line)[3:]
    assert command in COMMANDS
    if command == "fit":
        arguments.append("--print_config")
        if "--ckpt_path" in arguments:  # of a run that only the reader has
            at = arguments.index("--ckpt_path")
            del arguments[at : at + 2]
        assert main([command, *arguments]) == 0, capsys.readouterr().err
    elif "COMMAND" not in line:
        with pytest.raises(SystemExit) as stop:
            main([command, *arguments, "--print_config"])
        assert not stop.value.code


def test_every_module_is_in_the_tree() -> None:
    named = tree()
    modules = {str(p.relative_to(ROOT)) for p in (ROOT / "lm").rglob("*.py") if p.name != "__init__.py"}
    assert not sorted(modules - named)


def test_tree_names_only_what_exists() -> None:
    made_by_runs = {"lightning_logs/"}
    assert not sorted(path for path in tree() - made_by_runs if not (ROOT / path).exists())


def test_readme_lists_every_command() -> None:
    assert [name for name in COMMANDS if f"| `{name}` |" not in README] == []
