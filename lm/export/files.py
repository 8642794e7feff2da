"""Output that appears whole or not at all, and JSON."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder to fill, which gets the name `path` at the end and is deleted after an error.

    Raises:
        FileExistsError: there is something called `path` already.
    """
    require_free(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_new_file(path: Path, content: bytes) -> None:
    """Write a file that was not there. Raises FileExistsError where it was."""
    require_free(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def require_free(path: Path) -> None:
    """Raises FileExistsError where the path is taken."""
    if path.exists():
        raise FileExistsError(f"{path} is there already; name another output, or delete it first")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises FileNotFoundError without the file, ValueError where it is something else."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}; check the path")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); fetch it again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a JSON object; fetch it again")
    return content


def write_json(path: Path, content: object) -> None:
    """Write JSON that people can read."""
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8", newline="\n")
