"""Train the runs of a grid, list them, or report their results as tables and pictures.

python3 -m experiments.table --gin_config=table.gin
"""

import argparse
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from diffstride._commands import KILLED_BY, STOPPED, USAGE_ERROR, advise_bindings
from diffstride._wording import counted
from diffstride.training.files import (
    LOCK,
    check_writable,
    expand_home,
    locked,
    removed_if_unused,
)
from diffstride.training.gin_errors import explain
from diffstride.training.lightning_compat import exceptions
from experiments import report
from experiments.grid import DEFAULT_PATHS, Paths, Run
from experiments.progress import Progress
from experiments.results import Row, append_row, check_holdout, identity, read_rows
from experiments.runner import COMMIT_NOTE, GridRunner
from experiments.selection import KEYS, select_runs, split_runs
from experiments.source_commit import read_commit

FAILED = 1


def parse_shard(text: str) -> tuple[int, int]:
    """Number of a shard, from 1, and number of shards.

    >>> parse_shard("2/3")
    (2, 3)
    """
    part, slash, parts = text.partition("/")
    if not (slash and part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
        raise argparse.ArgumentTypeError(f"expected i/n with 1 <= i <= n, but got {text!r}")
    return int(part), int(parts)


def train_runs(
    runner: GridRunner, runs: Mapping[str, Run], folder: Path, file: Path, failures: dict[str, str]
) -> None:
    """Train the runs that no file beside ``file`` has; their rows go to ``file``.

    Each run gets a run folder of its name in ``folder``. Errors go to ``failures``, by name.
    """
    commit = read_commit("src", "experiments")  # now: files may change while the grid runs
    chosen = {name: runner.chosen(run) for name, run in runs.items()}
    progress = Progress({name: row["epochs"] for name, row in chosen.items()})
    for number, (name, run) in enumerate(runs.items(), start=1):
        workdir = folder / name
        try:
            if name not in _without_row(chosen, file.parent):
                continue  # before its folder is made
            with removed_if_unused(workdir, workdir, (COMMIT_NOTE, LOCK)):
                workdir.mkdir(parents=True, exist_ok=True)
                with locked(workdir, wait=False) as free:
                    missing = _without_row(chosen, file.parent)
                    if not free or name not in missing:
                        continue
                    times = progress.describe(missing, failures)
                    print(f"run {number} of {len(runs)}: {name}{times}", flush=True)
                    append_row(file, runner.train(run, workdir, commit))
        except Exception as error:  # of any kind: the other runs can be trained
            traceback.print_exc()
            failures[name] = explain(error)


def _missing(runner: GridRunner, runs: Mapping[str, Run], results: Path) -> list[str]:
    return _without_row({name: runner.chosen(run) for name, run in runs.items()}, results)


def _without_row(chosen: Mapping[str, Row], results: Path) -> list[str]:
    done = set(map(identity, read_rows(results)))
    return [name for name, row in chosen.items() if identity(row) not in done]


def _count(runs: Mapping[str, Run], missing: Sequence[str]) -> str:
    return f"{len(runs) - len(missing)} of {len(runs)} runs are done"


def _list(runner: GridRunner, runs: Mapping[str, Run], results: Path) -> Iterator[str]:
    rows = {identity(row): row for row in read_rows(results)}
    for name, run in runs.items():
        row = rows.get(identity(runner.chosen(run)))
        state = f"{row['test_accuracy']:.2f} %" if row else "to do"
        yield f"{state:>8}  {name}"
    yield _count(runs, _missing(runner, runs, results))


def _report(runner: GridRunner, runs: Mapping[str, Run], paths: Paths) -> Iterator[str]:
    recipes = {run.config for run in runs.values()}
    yield from report.write_report(read_rows(paths.results), recipes, paths)
    missing = _missing(runner, runs, paths.results)
    yield f"{len(missing)} of {len(runs)} runs are missing{':' if missing else ''}"
    yield from missing


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python3 -m experiments.table", description=(__doc__ or "").split("\n")[0]
    )
    add = parser.add_argument
    add("--gin_config", action="append", help="Gin file with a grid; may be repeated [table.gin]")
    add(
        "--gin_bindings",
        action="append",
        default=[],
        help="Gin binding for how runs are executed, such as 'train.threads = 1'; may be repeated. "
        "Settings of the training belong in the groups of the grid.",
    )
    add("--configs_folder", help="folder with your own Gin files")
    add(
        "--only",
        action="extend",
        nargs="+",
        default=[],
        metavar="PART",
        help="select the runs whose name contains this text, or that match KEY=VALUE such as "
        f"'seed=0' (KEY is one of {', '.join(KEYS)}); if there are several, all must match",
    )
    add(
        "--shard",
        type=parse_shard,
        metavar="i/n",
        help="select the i-th (from 1) of n parts of equal work; rows go to "
        "results/runs.i-of-n.jsonl",
    )
    add(
        "--runs",
        type=expand_home,
        default=Path("runs/table"),
        help="folder of the run folders; processes that share it do not train the same run "
        "[%(default)s]",
    )
    results, pages, pictures = DEFAULT_PATHS
    shown = " and ".join(map(str, pages))
    add("--results", type=expand_home, help=f"folder of runs*.jsonl [the grid's, or {results}]")
    add("--list", action="store_true", help="list the runs, and which of them are done")
    add("--report", action="store_true", help="write tables and pictures of the results")
    add("--pages", type=expand_home, nargs="*", help=f"pages with tables [the grid's, or {shown}]")
    add("--pictures", type=expand_home, help=f"folder of pictures [the grid's, or {pictures}]")
    options, rest = parser.parse_known_args(arguments)
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}{advise_bindings(rest)}")
    if options.report and (options.list or options.shard or options.only):
        parser.error("--report shows all results: remove --list, --shard and --only")
    if not options.report and (options.pages is not None or options.pictures):
        parser.error("--pages and --pictures need --report")
    return options


def _paths(runner: GridRunner, runs: Mapping[str, Run], options: argparse.Namespace) -> Paths:
    """The paths of the command line, else those of the grid."""
    default = runner.paths
    paths = Paths(
        options.results or default.results,
        default.pages if options.pages is None else tuple(options.pages),
        options.pictures or default.pictures,
    )
    for name, run in runs.items():
        check_holdout(paths.results, name, runner.holdout(run))
    return paths


def _shard(
    runner: GridRunner, runs: dict[str, Run], shard: tuple[int, int] | None
) -> tuple[dict[str, Run], str]:
    """The runs of a shard, and the name of the file for their rows."""
    if shard is None:
        return runs, "runs.jsonl"
    part, parts = shard
    weights = {name: runner.weight(run) for name, run in runs.items()}
    names = split_runs(runs, weights, parts)[part - 1]
    return {name: runs[name] for name in names}, f"runs.{part}-of-{parts}.jsonl"


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, list or report, as the options say; returns the exit code."""
    options = _parse(arguments)
    configs = tuple(options.gin_config or ["table.gin"])
    runner = GridRunner(configs, tuple(options.gin_bindings), options.configs_folder)
    try:
        runs = select_runs(runner.runs, options.only)
        paths = _paths(runner, runs, options)
        if options.report:
            print("\n".join(_report(runner, runs, paths)))
            return 0
        runs, file = _shard(runner, runs, options.shard)
        if options.list:
            print("\n".join(_list(runner, runs, paths.results)))
            return 0
        # Damaged files and read-only folders are refused before anything is trained.
        if _missing(runner, runs, paths.results):
            check_writable(paths.results, "--results")
            check_writable((paths.results / file).resolve().parent, "--results")  # of a link
            check_writable(options.runs, "--runs")
    except Exception as error:  # Gin raises many types for mistakes in a configuration
        print(f"error: {explain(error)}", file=sys.stderr)
        return USAGE_ERROR
    failures: dict[str, str] = {}
    code = 0
    try:
        train_runs(runner, runs, options.runs, paths.results / file, failures)
    except KeyboardInterrupt:
        code = STOPPED
    except exceptions.SIGTERMException:
        code = KILLED_BY + signal.SIGTERM
    return _finish(runner, runs, failures, paths.results, code)


def _finish(
    runner: GridRunner,
    runs: Mapping[str, Run],
    failures: Mapping[str, str],
    results: Path,
    killed: int = 0,
) -> int:
    """Print failures and the number of finished runs; returns the exit code."""
    for name, error in failures.items():
        print(f"failed: {name}: {error}", file=sys.stderr)
    try:
        missing = _missing(runner, runs, results)
    except ValueError as error:  # a file of results was damaged meanwhile
        print(f"error: {explain(error)}", file=sys.stderr)
        return FAILED
    if others := set(missing) - set(failures):
        are = "are" if len(others) > 1 else "is"
        print(f"{counted(len(others), 'run')} {are} left{'' if killed else ' to other processes'}")
    print(_count(runs, missing), flush=True)
    return killed or (FAILED if failures else 0)


if __name__ == "__main__":
    sys.exit(main())
