"""What a run folder tells of its run: configuration, facts, loss curves and a sample of its text."""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

Series = np.ndarray  # (N,) float64

IGNORED_KEYS = {
    "ckpt_path",
    "run_folder",
    "eval_every",
    "checkpoint_every",
    "data.data_dir",
    "data.tokenizers_dir",
    "data.workers",
    "data.valid_batch_size",
    "trainer.default_root_dir",
    "trainer.logger",
    "trainer.callbacks",
    "trainer.log_every_n_steps",
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "trainer.enable_checkpointing",
    "trainer.val_check_interval",
}
SEED = "seed_everything"
EVENTLESS = ("diverged", "interrupted", "pruned", "running")  # such runs may have logged nothing


@dataclass(frozen=True)
class Curve:
    """Losses in nats per token with the optimizer step, the tokens seen and the seconds of training at each."""

    steps: Series
    tokens: Series
    seconds: Series
    loss: Series

    def x(self, axis: str) -> Series:
        return {"steps": self.steps, "tokens": self.tokens, "seconds": self.seconds}[axis]

    def after(self, earlier: "Curve") -> "Curve":
        """This curve behind the part of an `earlier` one that lies before its first step."""
        keep = earlier.steps < (self.steps[0] if len(self.steps) else math.inf)
        parts = [(getattr(earlier, n)[keep], getattr(self, n)) for n in ("steps", "tokens", "seconds", "loss")]
        return Curve(*(np.concatenate(pair) for pair in parts))


@dataclass(frozen=True)
class RunData:
    """One run. Losses are in nats per token; NaN where the run has no such number.

    Args:
        folder: the run folder.
        config: values of config.yaml by dotted key, without those that cannot matter to the result.
        facts: run.json.
        train: training loss, a mean over the steps since the last point.
        valid: validation loss.
        irreducible: loss of a perfect model on the validation ("val") and the training text, where known.
        tokens_per_second: median over the run's logged rates.
        sample: the newest text the run wrote, or None.
    """

    folder: Path
    config: dict[str, Any]
    seed: Any
    facts: dict[str, Any]
    train: Curve
    valid: Curve
    irreducible: dict[str, float]
    tokens_per_second: float
    sample: str | None

    @property
    def status(self) -> str:
        return self.facts.get("status", "unknown")

    @property
    def is_whole(self) -> bool:
        """Whether the run trained to its end, as far as is known."""
        return self.status in ("finished", "unknown")

    @property
    def final_loss(self) -> float:
        if "result" in self.facts:
            return self.facts["result"]["val/loss"]
        return float(self.valid.loss[-1]) if len(self.valid.loss) else math.nan

    @property
    def best_loss(self) -> float:
        losses = [*self.valid.loss, self.final_loss, self.facts.get("best_loss", math.nan)]
        finite = [loss for loss in losses if math.isfinite(loss)]
        # Events hold float32: the exact figure of run.json goes first where both mean the same validation.
        best = min(finite, default=math.nan)
        exact = [
            v for v in (self.facts.get("best_loss", math.nan), self.final_loss) if math.isclose(v, best, rel_tol=1e-6)
        ]
        return exact[0] if exact else best

    @property
    def bits_per_byte(self) -> float:
        """Of the final validation loss."""
        return self.facts.get("result", {}).get("val/bits_per_byte", math.nan)

    @property
    def perplexity(self) -> float:
        """Of the final validation loss."""
        return self.facts.get("result", {}).get("val/perplexity", math.exp(self.final_loss))


def find_run_folders(paths: list[Path]) -> list[Path]:
    """Run folders named by `paths`; a folder of runs, such as a study, stands for all runs in it.

    Raises:
        FileNotFoundError: a path is neither.
        ValueError: no path is given.
    """
    if not paths:
        raise ValueError("no run is named; give run folders, for example lightning_logs/version_0")
    found: dict[Path, Path] = {}
    for path in paths:
        folders = [path] if (path / "run.json").is_file() else sorted(p.parent for p in path.glob("*/run.json"))
        if not folders:
            raise FileNotFoundError(f"{path} is neither a run folder nor a folder of runs: there is no run.json in it")
        found |= {folder.resolve(): folder for folder in sorted(folders, key=_by_number)}
    return list(found.values())


def _by_number(folder: Path) -> tuple[str, int]:
    name, _, number = folder.name.rpartition("_")
    return (name, int(number)) if number.isdigit() else (folder.name, 0)


def read_run(folder: Path) -> RunData:
    """Read a run folder, and before it the one that it was resumed from, where that is still there.

    Raises:
        FileNotFoundError: config.yaml is missing.
        ValueError: a file is damaged, or no training loss was logged and nothing says why.
    """
    facts = _read(folder / "run.json", json.loads)
    config = _flatten(_read(folder / "config.yaml", yaml.safe_load))
    scalars, sample = _events(folder)
    train, valid = _curves(scalars, facts)
    if not len(train.steps) and facts.get("status") not in EVENTLESS:
        raise ValueError(f"{folder} holds no training losses (TensorBoard events); leave this run out")
    rates = [value for _, value in scalars.get("train/tokens_per_second", [])]
    run = RunData(
        folder=folder,
        config={key: value for key, value in config.items() if key not in IGNORED_KEYS | {SEED}},
        seed=config.get(SEED),
        facts=facts,
        train=train,
        valid=valid,
        irreducible={
            split: scalars[f"{split}/irreducible_loss"][-1][1]
            for split in ("train", "val")
            if scalars.get(f"{split}/irreducible_loss")
        },
        tokens_per_second=float(np.median(rates)) if rates else math.nan,
        sample=sample,
    )
    origin = Path(facts["resumed_from"]).parent.parent if facts.get("resumed_from") else None
    if origin is None or not (origin / "run.json").is_file() or origin.resolve() == folder.resolve():
        return run
    earlier = read_run(origin)
    return replace(run, train=train.after(earlier.train), valid=valid.after(earlier.valid))


def smooth(loss_N: Series, share: float = 0.04) -> Series:
    """Moving mean over `share` of the points, centred; the window shrinks at the start, where losses fall fast."""
    half = int(len(loss_N) * share / 2)
    sums = np.concatenate(([0.0], np.cumsum(loss_N)))
    index = np.arange(len(loss_N))
    low = index - np.minimum(half, index)
    high = np.minimum(len(loss_N), index + np.minimum(half, index) + 1)
    return (sums[high] - sums[low]) / (high - low)


def _read(path: Path, parse: Any) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; {path.parent} is not a whole run folder")
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError):
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged; leave this run out")
    return content


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _events(folder: Path) -> tuple[dict[str, list[tuple[int, float]]], str | None]:
    """(step, value) pairs by tag, and the newest sample text."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    tags = events.Tags()
    scalars = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags["scalars"]}
    for tag in tags["tensors"]:
        if tag.startswith("sample"):
            text = events.Tensors(tag)[-1].tensor_proto.string_val[0].decode("utf-8", errors="replace")
            return scalars, text.replace("  \n", "\n")
    return scalars, None


def _curves(scalars: dict[str, list[tuple[int, float]]], facts: dict[str, Any]) -> tuple[Curve, Curve]:
    """Training and validation curves.

    Events count seconds in whole numbers only; token counts and rates between two points say how long it took, so
    that short runs have smooth curves too.
    """
    tokens_at = {0: 0.0, **dict(scalars.get("train/tokens_seen", []))}
    if "step" in facts:
        tokens_at.setdefault(facts["step"], float(facts["tokens_seen"]))
    known = np.array(sorted(tokens_at.items()), dtype=float)

    def tokens_of(steps: Series) -> Series:
        return np.interp(steps, known[:, 0], known[:, 1])

    steps, whole, loss = _paired(scalars, "train")
    tokens = tokens_of(steps)
    rates = dict(scalars.get("train/tokens_per_second", []))
    took = np.diff(tokens, prepend=0.0) / np.array([rates.get(int(step), math.nan) for step in steps])
    seconds = np.empty_like(whole)
    clock = 0.0
    for i, guess in enumerate(whole):
        clock = guess if math.isnan(took[i]) else min(max(clock + took[i], guess - 0.5), guess + 0.5)
        seconds[i] = clock = max(clock, 0.0)
    train = Curve(steps, tokens, seconds, loss)
    steps, whole, loss = _paired(scalars, "val")
    if len(train.steps):
        at = np.interp(steps, np.append(0, train.steps), np.append(0, train.seconds))
        whole = np.clip(at, np.maximum(whole - 0.5, 0), whole + 0.5)
    return train, Curve(steps, tokens_of(steps), whole, loss)


def _paired(scalars: dict[str, list[tuple[int, float]]], split: str) -> tuple[Series, Series, Series]:
    """Steps, whole seconds and losses; where a folder was trained in twice, the later points replace the earlier."""
    rows: list[tuple[int, int, float]] = []
    for (step, loss), (second, _) in zip(
        scalars.get(f"{split}/loss", []), scalars.get(f"{split}/loss_vs_seconds", []), strict=False
    ):
        while rows and rows[-1][0] >= step:
            rows.pop()
        rows.append((step, second, loss))
    steps, seconds, losses = np.array(rows, dtype=float).reshape(-1, 3).T
    return steps, seconds, losses
