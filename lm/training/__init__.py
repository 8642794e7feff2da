"""Training under Lightning, and the course's checkpoint functions."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lm.training.checkpoint import load_checkpoint as load_checkpoint
    from lm.training.checkpoint import save_checkpoint as save_checkpoint
    from lm.training.module import LanguageModel as LanguageModel
    from lm.training.module import OptimizerConfig as OptimizerConfig

_HOMES = {
    "LanguageModel": "module",
    "OptimizerConfig": "module",
    "load_checkpoint": "checkpoint",
    "save_checkpoint": "checkpoint",
}
__all__ = ["LanguageModel", "OptimizerConfig", "load_checkpoint", "save_checkpoint"]


def __getattr__(name: str) -> Any:
    """Import on first use, so that the checkpoint functions do not import Lightning (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
