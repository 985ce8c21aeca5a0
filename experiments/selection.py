"""Parts of a grid: the runs that ``--only`` selects, and shards of equal work."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from experiments.grid import Run
from experiments.groups import format_stride

KEYS = tuple(field.name for field in fields(Run) if field.name != "extra")


def select_runs(runs: Mapping[str, Run], only: Sequence[str]) -> dict[str, Run]:
    """The runs that match all of ``only``: part of the name, or ``key=value``.

    Raises:
        ValueError: no run matches.
    """
    found = {
        name: run for name, run in runs.items() if all(_matches(name, run, each) for each in only)
    }
    if not found:
        raise ValueError(
            f"no run of the grid matches --only={' --only='.join(only)}: expected part of a name "
            f"that --list shows, or KEY=VALUE where KEY is one of {', '.join(KEYS)}"
        )
    return found


def _matches(name: str, run: Run, only: str) -> bool:
    key, equals, value = only.partition("=")
    if not (equals and key in KEYS):
        return only in name
    found = getattr(run, key)
    if key != "strides":
        return _is_same(value, found)
    parts = value.split(",")
    return len(parts) == len(found) and all(map(_is_same, parts, map(format_stride, found)))


def _is_same(asked: str, found: Any) -> bool:
    try:
        return float(asked) == float(found)
    except (TypeError, ValueError):
        return asked == str(found)


def split_runs(
    runs: Mapping[str, Run], weights: Mapping[str, float], parts: int
) -> list[list[str]]:
    """Split the names of runs into parts that take about equally long; each keeps the order.

    Seed by seed, each run goes to the part with the least work so far, the longest runs first.
    """
    shards: list[list[str]] = [[] for _ in range(parts)]
    loads = [0.0] * parts
    for seed in dict.fromkeys(run.seed for run in runs.values()):
        names = [name for name, run in runs.items() if run.seed == seed]
        for name in sorted(names, key=lambda name: -weights[name]):
            part = loads.index(min(loads))
            shards[part].append(name)
            loads[part] += weights[name]
    order = list(runs)
    return [sorted(shard, key=order.index) for shard in shards]
