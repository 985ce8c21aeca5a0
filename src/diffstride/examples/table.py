"""The command that makes tables: a grid of trainings, one line of results for each.

python3 -m diffstride.examples.table --gin_config=table.gin
"""

import argparse
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mode

from diffstride.examples.files import atomic_file, locked
from diffstride.examples.grid import Run
from diffstride.examples.launch import Grid, commit
from diffstride.examples.main import USAGE_ERROR, explain
from diffstride.examples.pictures import FOLDER, draw
from diffstride.examples.results import block, fill
from diffstride.examples.rows import append_row, identity, read_rows
from diffstride.examples.selection import select, split

FAILED = 1
PAGES = [Path("README.md"), Path("docs/results.md")]
PICTURES = Path("docs", FOLDER)


def parse_shard(text: str) -> tuple[int, int]:
    """Part and number of parts, from 1: ``"2/3"`` is the second of three.

    >>> parse_shard("2/3")
    (2, 3)
    """
    part, slash, parts = text.partition("/")
    if not (slash and part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
        raise argparse.ArgumentTypeError(f"expected i/n with 1 <= i <= n, but got {text!r}")
    return int(part), int(parts)


def make(grid: Grid, runs: Mapping[str, Run], folder: Path, file: Path) -> dict[str, str]:
    """Make the runs that no file of results has; returns what was wrong with those that failed.

    Args:
        grid: how to start them.
        runs: the runs by name.
        folder: where each gets a folder of its name.
        file: where the rows go; beside it are the other files of results.
    """
    failures, code = {}, commit()  # now: the files may change while the grid runs
    for number, (name, run) in enumerate(runs.items(), start=1):
        workdir = folder / name
        workdir.mkdir(parents=True, exist_ok=True)
        with locked(workdir, wait=False) as free:
            if not free or identity(grid.chosen(run)) in map(identity, read_rows(file.parent)):
                continue
            print(f"run {number} of {len(runs)}: {name}", flush=True)
            try:
                append_row(file, grid.train(run, workdir) | {"commit": code})
            except Exception as error:  # whatever it is, the others can be made
                traceback.print_exc()
                failures[name] = explain(error)
    return failures


def _missing(grid: Grid, runs: Mapping[str, Run], results: Path) -> list[str]:
    done = set(map(identity, read_rows(results)))
    return [name for name, run in runs.items() if identity(grid.chosen(run)) not in done]


def _list(grid: Grid, runs: Mapping[str, Run], results: Path) -> Iterator[str]:
    rows = {identity(row): row for row in read_rows(results)}
    for name, run in runs.items():
        row = rows.get(identity(grid.chosen(run)))
        state = f"{row['test_accuracy']:.2f} %" if row else "to do"
        yield f"{state:>8}  {name}"
    missing = _missing(grid, runs, results)
    yield f"{len(runs) - len(missing)} of {len(runs)} runs are done"


def _report(grid: Grid, runs: Mapping[str, Run], options: argparse.Namespace) -> Iterator[str]:
    rows = read_rows(options.results)
    yield block("details", rows)
    for page in options.pages:
        if page.exists():
            with atomic_file(page) as file:
                file.write(fill(page.read_text(), rows).encode())
        yield f"wrote {page}" if page.exists() else f"there is no page {page} to write to"
    usual = mode(run.config for run in runs.values())  # of all recipes at once one sees nothing
    pictures = draw((row for row in rows if row["config"] == usual), options.pictures)
    yield from (f"wrote {picture}" for picture in pictures)
    missing = _missing(grid, runs, options.results)
    yield f"{len(missing)} of {len(runs)} runs are missing{':' if missing else ''}"
    yield from missing


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python3 -m diffstride.examples.table", description=(__doc__ or "").split("\n")[0]
    )
    add = parser.add_argument
    add("--gin_config", action="append", help="Gin file with a grid, table.gin by default")
    add("--gin_bindings", action="append", default=[], help="binding that overrides all")
    add("--configs_folder", help="folder with Gin files")
    add("--only", action="append", default=[], help="part of a run's name, or key=value")
    add("--shard", type=parse_shard, metavar="i/n", help="make the i-th of n parts")
    add("--runs", type=Path, default=Path("runs/table"), help="folder of the trainings")
    add("--results", type=Path, default=Path("results"), help="folder of the files of rows")
    add("--list", action="store_true", help="print what is to be made and what is done")
    add("--report", action="store_true", help="make tables and pictures of the results there are")
    add("--pages", type=Path, nargs="*", default=PAGES, help="files whose tables to make anew")
    add("--pictures", type=Path, default=PICTURES, help="folder of the pictures")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make, list or report as the flags say; returns the exit code."""
    options = _parse(arguments)
    configs = tuple(options.gin_config or ["table.gin"])
    grid = Grid(configs, tuple(options.gin_bindings), options.configs_folder)
    try:
        runs = select(grid.runs, options.only)
        if options.report:
            print("\n".join(_report(grid, runs, options)))
            return 0
        file = options.results / "runs.jsonl"
        if options.shard:
            part, parts = options.shard
            weights = {name: grid.weight(run) for name, run in runs.items()}
            runs = {name: runs[name] for name in split(runs, weights, parts)[part - 1]}
            file = options.results / f"runs.{part}-of-{parts}.jsonl"
        if options.list:
            print("\n".join(_list(grid, runs, options.results)))
            return 0
    except Exception as error:  # Gin raises what its parser happens to: any of it is the user's
        print(f"error: {explain(error)}", file=sys.stderr)
        return USAGE_ERROR
    return _end(make(grid, runs, options.runs, file), _missing(grid, runs, options.results))


def _end(failures: Mapping[str, str], missing: Sequence[str]) -> int:
    for name, error in failures.items():
        print(f"failed: {name}: {error}", file=sys.stderr)
    others = len(missing) - len(failures)
    if others:
        print(f"{others} runs are left to other processes", flush=True)
    return FAILED if failures else 0


if __name__ == "__main__":
    sys.exit(main())
