"""The README's tree is the tree, and its table names every command. Its blocks: tests/docs."""

import re
from pathlib import Path

from lm.cli import COMMANDS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


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


def test_every_module_is_in_the_tree() -> None:
    named = tree()
    modules = {str(p.relative_to(ROOT)) for p in (ROOT / "lm").rglob("*.py") if p.name != "__init__.py"}
    assert not sorted(modules - named)


def test_tree_names_only_what_exists() -> None:
    made_by_runs = {"lightning_logs/"}
    assert not sorted(path for path in tree() - made_by_runs if not (ROOT / path).exists())


def test_readme_lists_every_command() -> None:
    assert [name for name in COMMANDS if f"| `{name}` |" not in README] == []
