"""lm: a small language model's whole life, from raw text to stories."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lm.loaded import load as load

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`lm.load`, imported on first use, so that `import lm` stays quick (PEP 562)."""
    if name != "load":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lm.loaded import load

    return load
