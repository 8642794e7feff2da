"""Fenced blocks of the Markdown pages: run, parsed by the real command line, or marked why not.

    <!-- run -->               above a block of sh or python: it is run, and the text block below is what it prints
    <!-- not run: REASON -->   above a block that needs what a test lacks

Blocks of python without a mark are run too; their names are shared by a page, as in one session. Commands in blocks of
sh without a mark are carried out by tests/docs/test_commands.py beside a small run, with small configurations; those
`python -m lm` that are not run are parsed with all their options.

`python -m docs.tools.blocks` writes anew what the blocks marked `run` print.
"""

import contextlib
import io
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm.cli import COMMANDS, main

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
OURS = "python -m lm "
_BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>[^>]*) -->\n)?^```(?P<language>sh|python)\n(?P<code>.*?)^```$"
    r"(?:\n+```text\n(?P<printed>.*?)^```$)?",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """A fenced block of sh or python; `mark` is the comment right above, `printed` the text block right below."""

    page: Path
    line: int
    language: str
    code: str
    mark: str = ""
    printed: str | None = None

    @property
    def is_recorded(self) -> bool:
        return self.mark == "run"

    @property
    def is_run(self) -> bool:
        return self.is_recorded or (self.language == "python" and not self.reason)

    @property
    def is_carried_out(self) -> bool:
        return self.language == "sh" and not self.mark

    @property
    def reason(self) -> str:
        """Why it is not run."""
        return self.mark.removeprefix("not run:").strip() if self.mark.startswith("not run:") else ""

    @property
    def commands(self) -> list[str]:
        """Commands of a block of sh, continued lines joined and chains taken apart."""
        lines = self.code.replace("\\\n", " ").splitlines()
        parts = (part.strip() for line in lines if not line.startswith("#") for part in line.split("&&"))
        return [part for part in parts if part]


def blocks(page: Path) -> list[Block]:
    """All blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            page,
            text.count("\n", 0, found.start()) + 1,
            found["language"],
            found["code"],
            found["mark"] or "",
            found["printed"],
        )
        for found in _BLOCK.finditer(text)
    ]


def run(block: Block, names: dict[str, Any]) -> str:
    """Run a block in the repository's root; returns what it prints.

    Args:
        block: of sh, with commands `python -m lm` only, or of python.
        names: the page's variables so far.

    Raises:
        ValueError: a command failed, or is none of ours.
    """
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.chdir(ROOT):
        if block.language == "python":
            exec(compile(block.code, f"{block.page.name}:{block.line}", "exec"), names)
        else:
            for command in block.commands:
                if not command.startswith(OURS) or main(shlex.split(command)[3:]):
                    raise ValueError(f"{block.page.name}:{block.line}: {command} cannot be run here")
    return "".join(f"{line.rstrip()}\n" for line in out.getvalue().splitlines())


def accept(command: str) -> None:
    """Let the real parser read a command `python -m lm`.

    Raises:
        ValueError: it does not take the command.
    """
    name, *arguments = shlex.split(re.sub(r"\$\w+", "1", command))[3:]  # a shell's variable
    if name not in COMMANDS:
        raise ValueError(f"{command}: there is no command {name}")
    if name == "fit" and "--ckpt_path" in arguments:  # of a run that only the reader has
        at = arguments.index("--ckpt_path")
        del arguments[at : at + 2]
    if name == "validate":  # looks for a run before it parses
        arguments = ["--config", "configs/quickstart.yaml", *arguments]
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told), contextlib.chdir(ROOT):
        try:
            code = main([name, *arguments, "--print_config"])
        except SystemExit as stop:
            code = stop.code
    if code:
        raise ValueError(f"{command}: {told.getvalue().strip()}")


def record(page: Path) -> None:
    """Put what the page's blocks print below them."""
    names: dict[str, Any] = {}
    found = iter(blocks(page))

    def printed(match: re.Match[str]) -> str:
        block = next(found)
        output = run(block, names) if block.is_run else ""
        if not block.is_recorded:
            return match[0]
        return f"<!-- run -->\n```{block.language}\n{block.code}```\n\n```text\n{output}```"

    text = page.read_text(encoding="utf-8")
    page.write_text(_BLOCK.sub(printed, text), encoding="utf-8")


if __name__ == "__main__":
    for each in PAGES:
        if any(block.is_recorded for block in blocks(each)):
            record(each)
