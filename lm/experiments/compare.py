"""How runs differ: the keys that name them, groups of equal runs over seeds, and the table of results."""

import math
import statistics
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lm.experiments.curves import RunData
from lm.training.resume import DIVERGED

# Keys that usually follow from another one that varies; they name a run only where nothing else tells it apart.
FOLLOWERS = (
    "trainer.max_steps",
    "model.optimizer.cosine_cycle_iters",
    "model.optimizer.warmup_iters",
    "model.optimizer.min_learning_rate",
    "model.net.d_ff",
)

BASELINE = "baseline"  # label of runs in which every key has its usual value


@dataclass(frozen=True)
class Group:
    """Runs that are equal but for their seeds.

    Args:
        values: value of each key that differs between groups, in the report's order.
        label: the values of the naming keys, for legends.
    """

    values: dict[str, Any]
    label: str
    runs: list[RunData]

    @property
    def ended(self) -> list[RunData]:
        """The runs that trained to their end or diverged."""
        return [run for run in self.runs if run.is_whole or run.status == DIVERGED]

    @property
    def counted(self) -> list[RunData]:
        """The runs that count: a study tries those anew that were cut off, so they do only where none ended."""
        return self.ended or self.runs

    def losses(self) -> list[float]:
        """Best validation losses of the runs that count and did not diverge."""
        return [run.best_loss for run in self.counted if run.status != DIVERGED and math.isfinite(run.best_loss)]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.losses()) if self.losses() else math.nan

    @property
    def deviation(self) -> float:
        """Sample standard deviation over seeds; NaN below two runs."""
        return statistics.stdev(self.losses()) if len(self.losses()) > 1 else math.nan

    @property
    def diverged(self) -> int:
        return sum(run.status == DIVERGED for run in self.runs)


@dataclass(frozen=True)
class Comparison:
    """Several runs side by side.

    Args:
        names: a short unique name for each run.
        differing: keys whose values differ between runs.
        naming: the fewest of them that still tell all groups apart.
    """

    runs: list[RunData]
    names: list[str]
    differing: list[str]
    naming: list[str]
    groups: list[Group]

    @property
    def sweep_key(self) -> str | None:
        """The naming key that a sweep varies: the numeric one with most values, at least three; None without one."""
        numeric = {key: {group.values[key] for group in self.groups} for key in self.naming if self.is_numeric(key)}
        key = max(numeric, key=lambda k: len(numeric[k]), default=None)
        return key if key is not None and len(numeric[key]) >= 3 else None

    def is_numeric(self, key: str) -> bool:
        return all(
            isinstance(group.values[key], int | float) and not isinstance(group.values[key], bool)
            for group in self.groups
        )

    def usual(self, keys: list[str]) -> dict[str, Any]:
        """For each key the value that most of the kinds of runs have which these keys tell apart."""
        kinds = list(dict.fromkeys(_values(run, keys) for run in self.runs))
        counts = {key: Counter(kind[i] for kind in kinds).most_common(2) for i, key in enumerate(keys)}
        return {key: most[0][0] for key, most in counts.items() if len(most) == 1 or most[0][1] > most[1][1]}

    def label(self, values: dict[str, Any], keys: list[str]) -> str:
        """What tells runs with these values apart: where each key has a usual value, only what differs from it."""
        usual = self.usual(keys) if len(keys) > 1 else {}
        if len(usual) == len(keys):
            keys = [key for key in keys if _hashable(values[key]) != usual[key]]
            return ", ".join(f"{self.short(key)} {number(values[key])}" for key in keys) or BASELINE
        return ", ".join(_part(self.short(key), values[key], len(keys)) for key in keys)

    def series(self, key: str) -> dict[str, list[Group]]:
        """The groups by all that names them but `key`: the usual kind first, kinds that a number names in its order.

        Groups that have neither a loss nor diverged are left out.
        """
        others = [other for other in self.naming if other != key]

        def place(group: Group) -> tuple[bool, float]:
            by_number = len(others) == 1 and self.is_numeric(others[0])
            return self.series_name(group, key) != BASELINE, group.values[others[0]] if by_number else 0

        series: dict[str, list[Group]] = {}
        for group in sorted((g for g in self.groups if g.losses() or g.diverged), key=place):
            series.setdefault(self.series_name(group, key), []).append(group)
        return series

    def series_name(self, group: Group, key: str) -> str:
        return self.label(group.values, [other for other in self.naming if other != key])

    def series_title(self) -> str | None:
        """The key whose values alone name the series of runs, which their labels leave out."""
        keys = [key for key in self.naming if len(self.naming) == 1 or key != self.sweep_key]
        return self.short(keys[0]) if len(keys) == 1 else None

    def short(self, key: str) -> str:
        """A key's last part, or all of it where two keys share that."""
        last = key.rpartition(".")[2]
        return key if sum(other.rpartition(".")[2] == last for other in self.differing) > 1 else last


def compare(runs: list[RunData]) -> Comparison:
    """Find what differs between runs and group those that differ in their seeds only."""
    keys = dict.fromkeys(key for run in runs for key in run.config)
    differing = [key for key in keys if len({_hashable(run.config.get(key)) for run in runs}) > 1]
    differing.sort(key=lambda key: (key in FOLLOWERS, key.startswith("trainer.")))
    naming = list(differing)
    for key in FOLLOWERS:
        rest = [other for other in naming if other != key]
        if key in naming and _kinds(runs, rest) == _kinds(runs, naming):
            naming = rest
    comparison = Comparison(runs, _names(runs), differing, naming, [])
    members: dict[Any, list[RunData]] = {}
    for run in runs:
        members.setdefault(_values(run, differing), []).append(run)
    for group in members.values():
        values = {key: group[0].config.get(key) for key in differing}
        comparison.groups.append(Group(values, comparison.label(values, naming), group))
    if (key := comparison.sweep_key) is not None:
        comparison.groups.sort(key=lambda group: group.values[key])
    return comparison


def number(value: Any) -> str:
    """A value as a person writes it: 0.003, 1e-05, 22,696,448."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 9999 else str(value)


def _part(key: str, value: Any, count: int) -> str:
    return number(value) if count == 1 else f"{key} {number(value)}"


def _hashable(value: Any) -> Any:
    return repr(value) if isinstance(value, list | dict | bool) else value


def _values(run: RunData, keys: Iterable[str]) -> tuple[Any, ...]:
    return tuple(_hashable(run.config.get(key)) for key in keys)


def _kinds(runs: list[RunData], keys: list[str]) -> int:
    return len({_values(run, keys) for run in runs})


def _names(runs: list[RunData]) -> list[str]:
    """The last parts of each run's path, as many as tell all apart."""
    paths = [run.folder.resolve().parts for run in runs]
    for count in range(1, max(map(len, paths)) + 1):
        names = ["/".join(part for part in path[-count:] if part != "lightning_logs") for path in paths]
        if len(set(names)) == len(runs):
            return names
    return [str(run.folder) for run in runs]
