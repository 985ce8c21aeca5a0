"""Count the multiply-adds of finished runs again, where the count has changed since.

python3 -m experiments.recount --gin_config=fsdd_wave_table.gin
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from diffstride import CostBudget, stride_layers
from diffstride._commands import USAGE_ERROR
from diffstride.training.gin_errors import explain
from diffstride.training.network_cost import measure_cost
from experiments.grid import Run
from experiments.results import Row, identity, update_rows
from experiments.runner import GridRunner

NETWORK = ("dataset", "pooling", "edge", "budget", "order", "strides_start", "width")
"""Keys of a row that say which network it is of, before it is trained."""


def recount(runner: GridRunner, run: Run, row: Row, num_classes: int) -> Row:
    """A row with the multiply-adds that its run would have by the present count.

    Raises:
        ValueError: the budget of the run is a word, whose cost only a training knows.
    """
    network, shape = runner.network(run, num_classes)
    if isinstance(row["budget"], str):
        raise ValueError(
            f"{runner.name(run)} has the budget {row['budget']!r}, and only budgets in "
            "multiply-adds can be counted again: train it anew"
        )
    if row["budget"] is not None:
        CostBudget(network, torch.zeros(1, *shape), multiply_adds=row["budget"])  # moves strides
    start = measure_cost(network, shape).multiply_adds
    layers = stride_layers(network)
    for name, strides in (row["strides_end"] or {}).items():
        layers[name].strides.data.copy_(torch.tensor(strides))
        layers[name].project_()
    end = measure_cost(network, shape).multiply_adds
    return row | {"multiply_adds_start": start, "multiply_adds_end": end}


def recipe_of(config: str) -> str:
    """The recipe of a configuration, whose variations are named behind a comma.

    >>> recipe_of("fsdd_wave, measured strides")
    'fsdd_wave'
    """
    return config.partition(",")[0]


def recount_file(runner: GridRunner, path: Path, num_classes: int) -> list[Row]:
    """Count the rows of a file again that are of networks of a grid; returns those that changed."""
    runs: dict[tuple[str, str], Run] = {}
    for run in runner.runs.values():
        row = runner.chosen(run)
        runs.setdefault((recipe_of(row["config"]), identity(row, NETWORK)), run)

    def update(row: Row) -> Row:
        run = runs.get((recipe_of(row["config"]), identity(row, NETWORK)))
        return row if run is None else recount(runner, run, row, num_classes)

    return update_rows(path, update)


def main(arguments: Sequence[str] | None = None) -> int:
    """Count the rows of the results of a grid again; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python3 -m experiments.recount", description=__doc__)
    add = parser.add_argument
    add("--gin_config", action="append", required=True, help="the configuration of the grid")
    add("--results", type=Path, help="folder with runs.jsonl (default: that of the grid)")
    add("--num_classes", type=int, default=10, help="of the data set (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        runner = GridRunner(tuple(options.gin_config))
        folder = options.results or runner.paths.results
        changed = recount_file(runner, folder / "runs.jsonl", options.num_classes)
    except Exception as error:  # Gin raises many types for mistakes in a configuration
        print(f"error: {explain(error)}", file=sys.stderr)
        return USAGE_ERROR
    for row in changed:
        print(f"{identity(row)}: {row['multiply_adds_start']:,} to {row['multiply_adds_end']:,}")
    print(f"{len(changed)} rows changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
