"""Parts of a grid: the runs that were asked for, and a fair share of them."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.grid import Run
from experiments.group_options import stride_text

KEYS = ("config", "dataset", "pooling", "edge", "budget", "order", "strides", "seed")


def select(runs: Mapping[str, Run], only: Sequence[str]) -> dict[str, Run]:
    """The runs that fit all of ``only``: a part of the name, or ``key=value``.

    Raises:
        ValueError: none does.
    """
    found = {name: run for name, run in runs.items() if all(_fits(name, run, o) for o in only)}
    if not found:
        raise ValueError(
            f"no run of the grid fits --only={' --only='.join(only)}: expected a part of a name "
            f"that --list shows, or KEY=VALUE with one of {', '.join(KEYS)} for KEY"
        )
    return found


def _fits(name: str, run: Run, only: str) -> bool:
    key, equals, value = only.partition("=")
    if not (equals and key in KEYS):
        return only in name
    found = getattr(run, key)
    if key != "strides":
        return _is_same(value, found)
    parts = value.split(",")
    return len(parts) == len(found) and all(map(_is_same, parts, map(stride_text, found)))


def _is_same(asked: str, found: Any) -> bool:
    try:
        return float(asked) == float(found)
    except (TypeError, ValueError):
        return asked == str(found)


def split(runs: Mapping[str, Run], weights: Mapping[str, float], parts: int) -> list[list[str]]:
    """Names of runs dealt out such that all parts take about equally long, in their order.

    Seed by seed, the heaviest run first, each to the part that has least to do.
    """
    shares: list[list[str]] = [[] for _ in range(parts)]
    loads = [0.0] * parts
    seeds = {run.seed: None for run in runs.values()}
    for seed in seeds:
        names = [name for name, run in runs.items() if run.seed == seed]
        for name in sorted(names, key=lambda name: -weights[name]):
            part = loads.index(min(loads))
            shares[part].append(name)
            loads[part] += weights[name]
    order = list(runs)
    return [sorted(share, key=order.index) for share in shares]
