"""Text from elsewhere, made safe to print."""

import json
import logging
from typing import Any, TextIO

# Control characters, with which text could move the cursor or talk to the terminal, and those that change the
# direction of the text around them (Boucher and Anderson 2021, "Trojan Source"). Bytes of a file's name that are not
# UTF-8 are lone surrogates in Python, which cannot be printed at all.
_CONTROLS = [*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A), *range(0xD800, 0xE000)]
_SPELLED = {code: chr(code).encode("unicode_escape").decode() for code in _CONTROLS if chr(code) not in "\n\t"}


def printable(text: str) -> str:
    r"""The text with control characters spelled out, such as \x1b; newlines, tabs and all other characters stay."""
    return text.translate(_SPELLED)


def printable_json(value: Any, indent: int | None = None) -> str:
    """JSON in UTF-8 with the same characters escaped in its strings."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return text.translate({code: f"\\u{code:04x}" for code in _CONTROLS if code > 0x7E})  # json escapes those below


def say(text: str, file: TextIO | None = None) -> None:
    """Print a line that may hold names or text from elsewhere, to standard output or another file."""
    print(printable(text), file=file)


class PrintableFormatter(logging.Formatter):
    """For log lines, which may hold names from files and checkpoints."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))
