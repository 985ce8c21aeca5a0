"""The command that makes tables: a grid of trainings, one line of results for each.

python3 -m experiments.table --gin_config=table.gin
"""

import argparse
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from diffstride.training.command_line import KILLED_BY, USAGE_ERROR, explain
from diffstride.training.files import atomic_file, check_writable, locked
from diffstride.training.lightning_compat import exceptions
from experiments.file_locations import Places, check_results
from experiments.grid import USUAL, Run
from experiments.launch import Grid, note_commit
from experiments.markdown_tables import block
from experiments.pages import fill_pages, recipes_in_pictures
from experiments.pictures import draw
from experiments.result_rows import append_row, identity, read_rows
from experiments.selection import KEYS, select, split
from experiments.source_commit import read_commit

FAILED = 1


def parse_shard(text: str) -> tuple[int, int]:
    """Part and number of parts, from 1: ``"2/3"`` is the second of three.

    >>> parse_shard("2/3")
    (2, 3)
    """
    part, slash, parts = text.partition("/")
    if not (slash and part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
        raise argparse.ArgumentTypeError(f"expected i/n with 1 <= i <= n, but got {text!r}")
    return int(part), int(parts)


def make(
    grid: Grid, runs: Mapping[str, Run], folder: Path, file: Path, failures: dict[str, str]
) -> None:
    """Make the runs that no file of results has.

    Args:
        grid: how to start them.
        runs: the runs by name.
        folder: where each gets a folder of its name.
        file: where the rows go; beside it are the other files of results.
        failures: gets what was wrong with those that failed, by name.
    """
    code = read_commit("src", "experiments")  # now: the files may change while the grid runs
    for number, (name, run) in enumerate(runs.items(), start=1):
        workdir = folder / name
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            with locked(workdir, wait=False) as free:
                if not free or name not in _missing(grid, {name: run}, file.parent):
                    continue
                print(f"run {number} of {len(runs)}: {name}", flush=True)
                trained_at = {"commit": note_commit(workdir, code)}
                append_row(file, grid.train(run, workdir) | trained_at)
        except Exception as error:  # whatever it is, the others can be made
            traceback.print_exc()
            failures[name] = explain(error)


def _missing(grid: Grid, runs: Mapping[str, Run], results: Path) -> list[str]:
    done = set(map(identity, read_rows(results)))
    return [name for name, run in runs.items() if identity(grid.chosen(run)) not in done]


def _count(runs: Mapping[str, Run], missing: Sequence[str]) -> str:
    return f"{len(runs) - len(missing)} of {len(runs)} runs are done"


def _list(grid: Grid, runs: Mapping[str, Run], results: Path) -> Iterator[str]:
    rows = {identity(row): row for row in read_rows(results)}
    for name, run in runs.items():
        row = rows.get(identity(grid.chosen(run)))
        state = f"{row['test_accuracy']:.2f} %" if row else "to do"
        yield f"{state:>8}  {name}"
    yield _count(runs, _missing(grid, runs, results))


def _report(grid: Grid, runs: Mapping[str, Run], where: Places) -> Iterator[str]:
    rows = read_rows(where.results)
    yield block("details", rows)
    filled = fill_pages(where.pages, rows, {run.config for run in runs.values()}, where.pictures)
    recipes = recipes_in_pictures(filled.values())  # may raise, so before anything is written
    for page in where.pages:
        if page in filled:
            with atomic_file(page) as file:
                file.write(filled[page].encode())
        yield f"wrote {page}" if page in filled else f"there is no page {page} to write to"
    if recipes is not None:
        members = [row for row in rows if not recipes or row["config"] in recipes]
        yield from (f"wrote {picture}" for picture in draw(members, where.pictures))
    else:
        yield "no page has a mark for pictures, <!-- table pictures RECIPE: begin --> and end"
    missing = _missing(grid, runs, where.results)
    yield f"{len(missing)} of {len(runs)} runs are missing{':' if missing else ''}"
    yield from missing


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python3 -m experiments.table", description=(__doc__ or "").split("\n")[0]
    )
    add = parser.add_argument
    add("--gin_config", action="append", help="Gin file with a grid, may be repeated [table.gin]")
    add(
        "--gin_bindings",
        action="append",
        default=[],
        help="binding of how runs are made, such as 'train.threads = 1'; what they are, groups say",
    )
    add("--configs_folder", help="folder to look for Gin files in, besides the working folder")
    add(
        "--only",
        action="append",
        default=[],
        help="make or list only runs whose name contains this, or whose KEY=VALUE it is "
        f"('seed=0'; KEY is one of {', '.join(KEYS)}); repeated: all must fit",
    )
    add(
        "--shard",
        type=parse_shard,
        metavar="i/n",
        help="make or list the i-th (from 1) of n parts of equal work, into "
        "results/runs.i-of-n.jsonl",
    )
    add(
        "--runs",
        type=Path,
        default=Path("runs/table"),
        help="folder of workdirs; processes that share it leave each other's runs alone "
        "[%(default)s]",
    )
    add("--results", type=Path, help=f"folder of runs*.jsonl [the grid's, or {USUAL.results}]")
    add("--list", action="store_true", help="print what is to be made and what is done")
    add("--report", action="store_true", help="make tables and pictures of the results there are")
    pages = " and ".join(map(str, USUAL.pages))
    add("--pages", type=Path, nargs="*", help=f"files with tables [the grid's, or {pages}]")
    add("--pictures", type=Path, help=f"folder of pictures [the grid's, or {USUAL.pictures}]")
    options = parser.parse_args(arguments)
    if options.report and (options.list or options.shard or options.only):
        parser.error("--report is of all results: it goes without --list, --shard and --only")
    if not options.report and (options.pages is not None or options.pictures):
        parser.error("--pages and --pictures are of --report, which is not given")
    return options


def _places(grid: Grid, runs: Mapping[str, Run], options: argparse.Namespace) -> Places:
    """Where the grid has its files, or the command line if it says so."""
    usual = grid.places
    found = Places(
        options.results or usual.results,
        usual.pages if options.pages is None else tuple(options.pages),
        options.pictures or usual.pictures,
    )
    for name, run in runs.items():
        check_results(found.results, name, grid.holdout(run))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Make, list or report as the flags say; returns the exit code."""
    options = _parse(arguments)
    configs = tuple(options.gin_config or ["table.gin"])
    grid = Grid(configs, tuple(options.gin_bindings), options.configs_folder)
    try:
        runs = select(grid.runs, options.only)
        where = _places(grid, runs, options)
        if options.report:
            print("\n".join(_report(grid, runs, where)))
            return 0
        file = where.results / "runs.jsonl"
        if options.shard:
            part, parts = options.shard
            weights = {name: grid.weight(run) for name, run in runs.items()}
            runs = {name: runs[name] for name in split(runs, weights, parts)[part - 1]}
            file = where.results / f"runs.{part}-of-{parts}.jsonl"
        if options.list:
            print("\n".join(_list(grid, runs, where.results)))
            return 0
        # Damaged files, and folders that take none, are told before anything is trained.
        if _missing(grid, runs, where.results):
            check_writable(where.results, "--results")
            check_writable(options.runs, "--runs")
    except Exception as error:  # Gin raises what its parser happens to: any of it is the user's
        print(f"error: {explain(error)}", file=sys.stderr)
        return USAGE_ERROR
    failures: dict[str, str] = {}
    try:
        make(grid, runs, options.runs, file, failures)
    except KeyboardInterrupt:
        return _end(grid, runs, failures, where.results, KILLED_BY + signal.SIGINT)
    except exceptions.SIGTERMException:
        return _end(grid, runs, failures, where.results, KILLED_BY + signal.SIGTERM)
    return _end(grid, runs, failures, where.results, FAILED if failures else 0)


def _end(
    grid: Grid, runs: Mapping[str, Run], failures: Mapping[str, str], results: Path, code: int
) -> int:
    """Print what was made; returns the exit code, ``code`` if the results can be read."""
    for name, error in failures.items():
        print(f"failed: {name}: {error}", file=sys.stderr)
    try:
        missing = _missing(grid, runs, results)
    except ValueError as error:  # a file was damaged meanwhile
        print(f"error: {explain(error)}", file=sys.stderr)
        return FAILED
    if others := set(missing) - set(failures):
        print(f"{len(others)} runs are left {'over' if code > KILLED_BY else 'to other processes'}")
    print(_count(runs, missing), flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
