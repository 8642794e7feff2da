"""A layer under Python's file operations that makes one of them fail, as a full disk or a missing permission would."""

import builtins
import errno
import io
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ERRORS = {
    "open": (errno.EACCES, errno.ENOSPC),
    "write": (errno.ENOSPC, errno.EIO),
    "fsync": (errno.EIO, errno.ENOSPC),
    "rename": (errno.EACCES, errno.EIO),
    "mkdir": (errno.EACCES, errno.ENOSPC),
}


@dataclass
class FaultyFiles:
    """Counts what is written below a folder: files opened, writes, fsyncs, renames, folders made.

    Args:
        folder: operations elsewhere are left alone.
        failing: number of the operation that fails; None lets all of them pass.
        choice: which of the errors that fit the operation.
        lasting: every later operation of its kind fails as well, as on a disk that stays full.
    """

    folder: Path
    failing: int | None = None
    choice: int = 0
    lasting: bool = False
    operations: list[tuple[str, str]] = field(default_factory=list)
    _failed: str | None = None

    def install(self) -> None:
        """Put the layer under this process, for good."""
        layer, real_open, os_open = self, io.open, os.open

        class File(io.FileIO):
            def write(self, data: Any, /) -> int:
                view = memoryview(data).cast("B")
                layer.operation("write", self.name, before=lambda: io.FileIO.write(self, view[: len(view) // 2]))
                return super().write(view)

        def opened(file: Any, mode: str = "r", buffering: int = -1, *arguments: Any, **options: Any) -> Any:
            if isinstance(file, int) or not set(mode) & set("wax+") or not layer.covers(file):
                return real_open(file, mode, buffering, *arguments, **options)
            layer.operation("open", file)
            raw = File(file, mode.replace("b", "").replace("t", ""))
            if buffering == 0:
                return raw
            buffer = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return buffer if "b" in mode else io.TextIOWrapper(buffer, *arguments, **options)

        def opened_low(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
            if flags & (os.O_WRONLY | os.O_RDWR) and layer.covers(path):
                layer.operation("open", path)
            return os_open(path, flags, *arguments, **options)

        builtins.open = io.open = opened
        os.open = opened_low
        os.replace = self._before("rename", os.replace, target=1)
        os.rename = self._before("rename", os.rename, target=1)
        os.mkdir = self._before("mkdir", os.mkdir, target=0)
        os.fsync = self._before("fsync", os.fsync, target=0)

    def _before(self, kind: str, function: Callable[..., Any], target: int) -> Callable[..., Any]:
        def checked(*arguments: Any, **options: Any) -> Any:
            path = arguments[target]
            path = Path(f"/proc/self/fd/{path}").readlink() if isinstance(path, int) else path
            if self.covers(path):
                self.operation(kind, path)
            return function(*arguments, **options)

        return checked

    def covers(self, path: Any) -> bool:
        return self.folder in Path(os.fsdecode(path)).absolute().parents

    def operation(self, kind: str, path: Any, before: Callable[[], Any] = lambda: None) -> None:
        """Count an operation, and fail if it is the one. Of a write, half arrives `before`."""
        number = len(self.operations)
        name = os.fsdecode(path)
        self.operations.append((kind, os.path.relpath(name, self.folder)))
        if number == self.failing or (self.lasting and kind == self._failed):
            self._failed = kind
            before()
            code = ERRORS[kind][self.choice % len(ERRORS[kind])]
            raise OSError(code, os.strerror(code), name)
