"""Hypothesis strategies for damaged files: a valid one with a few bytes, or a few values, changed."""

import json
from typing import Any

import yaml
from hypothesis import strategies as st

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.just("\x1b[2J"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)
PLACE = st.integers(0, (1 << 20) - 1)  # in 2^-20 of the length
EDIT = st.tuples(st.sampled_from(("set", "insert", "delete", "copy", "cut")), PLACE, PLACE, st.binary(max_size=8))
CHANGE = st.tuples(st.sampled_from(("set", "delete", "rename")), PLACE, JSON_VALUES)


def mutations(seeds: list[bytes], form: str) -> st.SearchStrategy[bytes]:
    """Changed seeds: bytewise, and in the values for form json or yaml; now and then anything at all."""
    bytewise = st.builds(_edited, st.sampled_from(seeds), st.lists(EDIT, min_size=1, max_size=5))
    ways = [bytewise, st.binary(max_size=300)]
    if form in ("json", "yaml"):
        load, dump = (json.loads, json.dumps) if form == "json" else (yaml.safe_load, yaml.safe_dump)
        valid = [load(seed) for seed in seeds]
        structural = st.builds(_changed, st.sampled_from(valid), st.lists(CHANGE, min_size=1, max_size=4))
        ways += [structural.map(lambda value: dump(value).encode("utf-8", "surrogatepass"))] * 2
        ways.append(JSON_VALUES.map(lambda value: json.dumps(value).encode()))
    return st.one_of(ways)


def _edited(data: bytes, edits: list[tuple[str, int, int, bytes]]) -> bytes:
    for kind, first, second, new in edits:
        at, other = (place * (len(data) + 1) >> 20 for place in (first, second))
        if kind == "set":
            data = data[:at] + new + data[at + len(new) :]
        elif kind == "insert":
            data = data[:at] + new + data[at:]
        elif kind == "delete":
            data = data[:at] + data[at + len(new) :]
        elif kind == "copy":
            data = data[:at] + data[other : other + 64] + data[at:]
        else:
            data = data[:at]
    return data


def _changed(value: Any, changes: list[tuple[str, int, Any]]) -> Any:
    value = json.loads(json.dumps(value))
    for kind, place, new in changes:
        holders = [(holder, key) for holder in _holders(value) for key in _keys(holder)]
        if not holders:
            return new
        holder, key = holders[place * len(holders) >> 20]
        if kind == "set":
            holder[key] = new
        elif kind == "rename" and isinstance(holder, dict):
            holder[str(new)] = holder.pop(key)
        else:
            del holder[key]
    return value


def _holders(value: Any) -> list[Any]:
    """Every dict and list within a value."""
    if not isinstance(value, dict | list):
        return []
    children = value.values() if isinstance(value, dict) else value
    return [value, *(holder for child in children for holder in _holders(child))]


def _keys(holder: Any) -> list[Any]:
    return list(holder) if isinstance(holder, dict) else list(range(len(holder)))
