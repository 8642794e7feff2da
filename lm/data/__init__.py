"""From raw text to batches of token ids."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lm.data.datamodule import TokenDataModule as TokenDataModule
    from lm.data.sampler import get_batch as get_batch
    from lm.data.tokens import TokenFiles as TokenFiles

_HOMES = {
    "TokenDataModule": "datamodule",
    "get_batch": "sampler",
    "TokenFiles": "tokens",
}
__all__ = ["TokenDataModule", "TokenFiles", "get_batch"]


def __getattr__(name: str) -> Any:
    """Import on first use, so that commands without torch or Lightning start fast (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
