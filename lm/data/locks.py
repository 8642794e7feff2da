"""One process at a time writes into a folder."""

import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from filelock import FileLock


def is_writable(folder: Path) -> bool:
    """Whether this process may write there: not in what is mounted read-only, say."""
    return os.access(folder, os.W_OK)


def locked(path: Path, folder: Path) -> AbstractContextManager[object]:
    """Holds the lock file of a folder; none where the folder can only be read, as nothing is written there."""
    return FileLock(path) if is_writable(folder) else nullcontext()
