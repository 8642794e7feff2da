"""The definition of a study: which keys of a configuration vary, and how."""

import itertools
import re
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Space:
    """What one key may be: one of `values`, or a number from `low` to `high`."""

    values: list[Any] = field(default_factory=list)
    low: float | None = None
    high: float | None = None
    log: bool = False

    def __post_init__(self) -> None:
        bounded = self.low is not None and self.high is not None and self.low < self.high
        if bool(self.values) == bounded:
            raise ValueError(f"a search space needs either values or low < high, not {self}")


@dataclass(frozen=True)
class Study:
    """A study's definition.

    Args:
        name: folder of the study in lightning_logs.
        base: configurations given to `fit`, in order.
        search: spaces by key; seed_everything may be among them.
        points: keys whose values belong together, such as a batch size and its number of steps; a grid runs each of
            them with every combination of search.
        fixed: further keys of `fit` and their values.
        sampler: grid runs every combination of values; random and tpe draw `trials` of them.
        trials: runs in all, for random and tpe.
        prune: stop runs whose validation loss lies above the median of the others' at the same step.
        jobs: runs at a time.

    Raises:
        ValueError: the parts do not fit each other.
    """

    name: str
    base: list[str]
    search: dict[str, Space] = field(default_factory=dict)
    points: list[dict[str, Any]] = field(default_factory=list)
    fixed: dict[str, Any] = field(default_factory=dict)
    sampler: Literal["grid", "random", "tpe"] = "grid"
    trials: int | None = None
    prune: bool = False
    jobs: int = 1

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w-]+", self.name):
            raise ValueError(f"study name {self.name!r} becomes a folder; use letters, digits, _ and - only")
        if not self.search and not self.points:
            raise ValueError("search is empty and there are no points; name at least one key")
        if any(point.keys() != self.points[0].keys() or point.keys() & self.search for point in self.points):
            raise ValueError("points must all name the same keys, and none of search's")
        if self.points and self.sampler != "grid":
            raise ValueError(f"sampler {self.sampler} draws from search only; use grid for points")
        if self.sampler == "grid" and not all(space.values for space in self.search.values()):
            raise ValueError("sampler grid needs values for every key; use random or tpe for low and high")
        if (self.sampler == "grid") != (self.trials is None):
            raise ValueError(f"sampler {self.sampler} with trials {self.trials}: give trials for random and tpe only")
        if self.jobs < 1:
            raise ValueError(f"jobs is {self.jobs}, it must be at least 1")

    @property
    def spaces(self) -> dict[str, Space]:
        """What each key that varies may be."""
        keys = self.points[0] if self.points else {}
        distinct = {key: list(dict.fromkeys(point[key] for point in self.points)) for key in keys}
        return {**{key: Space(values) for key, values in distinct.items()}, **self.search}

    def grid(self) -> list[dict[str, Any]]:
        """Every combination of values, in the order in which they are run."""
        columns = [space.values for space in self.search.values()]
        rows = [dict(zip(self.search, row, strict=True)) for row in itertools.product(*columns)]
        return [{**point, **row} for point in self.points or [{}] for row in rows]
