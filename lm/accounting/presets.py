"""What to account for: presets, configurations and run folders, read without torch or Lightning."""

import math
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args

from lm.accounting.memory import Algorithm, TrainingPrecision
from lm.model.config import ModelConfig

_CHECKPOINT = ".ckpt"
_PRECISIONS: dict[str, TrainingPrecision] = {
    **dict.fromkeys(("None", "32", "32-true", "float32"), "float32"),
    **dict.fromkeys(("bf16", "bf16-mixed"), "bf16-mixed"),
}


@dataclass(frozen=True)
class Workload:
    """A model and how it is trained.

    Args:
        name: what the user named.
        net: the model's shape.
        batch_size: sequences of one micro-batch on one device.
        precision: float32 or bf16-mixed.
        tokens: tokens of the whole training, where known.
        algorithm: of the optimizer.
    """

    name: str
    net: ModelConfig
    batch_size: int = 1
    precision: TrainingPrecision = "float32"
    tokens: int | None = None
    algorithm: Algorithm = "adamw"

    def changed(
        self, batch_size: int | None = None, precision: TrainingPrecision | None = None, tokens: int | None = None
    ) -> "Workload":
        """With what is given in place of its own."""
        given = {"batch_size": batch_size, "precision": precision, "tokens": tokens}
        return replace(self, **{name: value for name, value in given.items() if value is not None})


def _gpt2(name: str, num_layers: int, d_model: int, num_heads: int) -> Workload:
    """Shape of Radford et al. (2019), table 2, with this package's blocks: SwiGLU of width 4 d_model, untied."""
    net = ModelConfig(
        vocab_size=50_257,
        context_length=1024,
        d_model=d_model,
        num_layers=num_layers,
        num_heads=num_heads,
        d_ff=4 * d_model,
    )
    return Workload(name, net)


def _llama(name: str, num_layers: int, d_model: int, num_heads: int, d_ff: int) -> Workload:
    """Shape of a Llama, which is this package's architecture, with the context of Llama 2 (Touvron et al. 2023b)."""
    net = ModelConfig(
        vocab_size=32_000,
        context_length=4096,
        d_model=d_model,
        num_layers=num_layers,
        num_heads=num_heads,
        d_ff=d_ff,
    )
    return Workload(name, net, 1, "bf16-mixed")


PRESETS = {
    workload.name: workload
    for workload in (
        _gpt2("gpt2-small", 12, 768, 12),
        _gpt2("gpt2-medium", 24, 1024, 16),
        _gpt2("gpt2-large", 36, 1280, 20),
        _gpt2("gpt2-xl", 48, 1600, 25),
        _llama("llama-1b", 24, 2048, 16, 5504),  # Sheared-LLaMA-1.3B (Xia et al. 2024)
        _llama("llama-7b", 32, 4096, 32, 11_008),
        _llama("llama-13b", 40, 5120, 40, 13_824),
        # Llama 2 70B's depth, width and heads; narrower inside, as here every query head has keys of its own.
        _llama("llama-70b", 80, 8192, 64, 24_576),
        Workload("tinystories", ModelConfig(d_ff=1344), 128, "bf16-mixed", 128 * 256 * 10_000),
    )
}


@dataclass
class _Settings:
    """What the named files say so far; later ones win, key by key."""

    net: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)

    def add(self, path: Path) -> None:
        content = _read(path)
        for name, into in (("data", self.data), ("trainer", self.trainer)):
            into.update(_section(content, name, path))
        model = _section(content, "model", path)
        self.net.update(_section(model, "net", path))
        self.optimizer.update(_section(model, "optimizer", path))


def read_workload(names: list[str], net: dict[str, Any] | None = None) -> Workload:
    """The workload that `names` describe together.

    Args:
        names: a preset, a YAML configuration or a run folder, then overlays on top of it.
        net: fields of ModelConfig that win over all of them.

    Raises:
        FileNotFoundError: no preset, file or run has this name.
        ValueError: a file is no configuration, or a field is unknown or out of range.
    """
    first, *overlays = names or ["tinystories"]
    start = PRESETS.get(first, Workload(first, ModelConfig()))
    settings = _Settings()
    for name in names[1:] if first in PRESETS else [first, *overlays]:
        settings.add(_find(name))
    settings.net.update(net or {})
    shape = _shape(start.net, settings.net)
    return _training(replace(start, name=" + ".join([first, *overlays]), net=shape), settings)


def _find(name: str) -> Path:
    """The YAML file meant by a path: itself, or the one of a run folder or of a checkpoint in it."""
    path = Path(name)
    if path.suffix == _CHECKPOINT:
        path = path.resolve().parent.parent
    if path.is_dir():
        path = path / "config.yaml"
    if not path.is_file():
        raise FileNotFoundError(
            f"{name} is no preset, configuration or run; presets are {', '.join(PRESETS)}, "
            f"a configuration is a YAML file, a run a folder with config.yaml"
        )
    return path


def _read(path: Path) -> dict[str, Any]:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is not a YAML configuration: {reason}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a configuration; it needs keys such as model.net")
    return content


def _section(content: dict[str, Any], name: str, path: Path) -> dict[str, Any]:
    found = content.get(name)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ValueError(f"{path}: {name} is {found!r}; it must hold keys")
    return found


def _shape(start: ModelConfig, changes: dict[str, Any]) -> ModelConfig:
    defaults = {f.name: f.default for f in fields(ModelConfig)}
    if unknown := sorted(set(changes) - set(defaults)):
        raise ValueError(f"model.net has no key {unknown[0]!r}; choose from {', '.join(defaults)}")
    return replace(start, **{name: _typed(name, value, defaults[name]) for name, value in changes.items()})


def _typed(name: str, value: Any, default: Any) -> Any:
    """`value`, with the type of the field's default (a whole number for None); YAML reads 1e4 as text."""
    if isinstance(default, str) or (value is None and default is None):
        return value
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise ValueError(f"model.net.{name} is {value!r}; it must be true or false")
        return value
    try:
        number = float(str(value))
    except ValueError:
        number = math.nan
    whole = not isinstance(default, float)
    if not math.isfinite(number) or (whole and not number.is_integer()):
        raise ValueError(f"model.net.{name} is {value!r}; it must be a {'whole ' if whole else ''}number")
    return int(number) if whole else number


def _training(start: Workload, settings: _Settings) -> Workload:
    """Batch, precision and tokens as the files set them."""
    changes: dict[str, Any] = {}
    if "precision" in settings.trainer:
        name = str(settings.trainer["precision"])
        if name not in _PRECISIONS:
            raise ValueError(f"trainer.precision is {name}; accounting knows {', '.join(get_args(TrainingPrecision))}")
        changes["precision"] = _PRECISIONS[name]
    if (algorithm := settings.optimizer.get("algorithm")) is not None:
        if algorithm not in get_args(Algorithm):
            raise ValueError(f"algorithm is {algorithm!r}; accounting knows {', '.join(get_args(Algorithm))}")
        changes["algorithm"] = algorithm
    batch = settings.data.get("batch_size")
    if isinstance(batch, int) and batch > 0:
        parts = [settings.trainer.get(key) for key in ("accumulate_grad_batches", "devices")]
        divided = batch // math.prod(part for part in parts if isinstance(part, int) and part > 0)
        changes["batch_size"] = max(1, divided)
        steps = settings.trainer.get("max_steps")
        if isinstance(steps, int) and steps > 0:
            changes["tokens"] = steps * batch * start.net.context_length
    return replace(start, **changes)
