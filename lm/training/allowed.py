"""What a configuration may build: Lightning's kinds of parts, and nothing that runs a function of its choice."""

import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment
from lightning.pytorch import Callback
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins import LayerSync, Precision
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import Strategy

KINDS = (Callback, Logger, Profiler, Strategy, Accelerator, Precision, LayerSync, CheckpointIO, ClusterEnvironment)


def require_allowed(config: Mapping[str, Any]) -> None:
    """Raises ValueError where a parsed configuration names a class that is none of Lightning's kinds.

    The parser holds each class to the type of its key; but a callback's argument may be any callable, for which it
    would build an object of any class that can be called.
    """
    for path in _class_paths(config):
        kind = pkgutil.resolve_name(path)
        if not issubclass(kind, KINDS) or issubclass(kind, LambdaCallback):
            raise ValueError(f"a configuration may not build {path}; write a subclass of Lightning's Callback for it")


def _class_paths(part: Any) -> Iterator[str]:
    if isinstance(part, Mapping):
        if isinstance(path := part.get("class_path"), str):
            yield path
        part = list(part.values())
    if isinstance(part, Sequence) and not isinstance(part, str):
        for value in part:
            yield from _class_paths(value)
