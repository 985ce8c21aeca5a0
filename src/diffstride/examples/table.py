"""The command that makes tables: a grid of trainings, one line of results for each.

python3 -m diffstride.examples.table --gin_config=table.gin
"""

import argparse
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import gin

from diffstride.examples import registry
from diffstride.examples.grid import LEARNED, Run
from diffstride.examples.main import USAGE_ERROR, configure, explain
from diffstride.examples.report import measure_cost
from diffstride.examples.rows import CHOSEN, KEYS, Row, append_row, identity, locked, read_rows

OVERHEAD = 30e6  # multiply-adds that take as long as what every step needs besides
NOMINAL = (3, 32, 32)
FAILED = 1


@dataclass(frozen=True)
class Grid:
    """The runs that a Gin configuration asks for, and how to start one."""

    gin_config: tuple[str, ...]
    gin_bindings: tuple[str, ...] = ()
    configs_folder: str | None = None

    @cached_property
    def runs(self) -> dict[str, Run]:
        """All runs by name, in the order in which they are to be made."""
        self._configure()
        runs = registry.table_grid()
        if not runs:
            raise ValueError("the configuration has no table.grid.groups: see table.gin")
        return {self.name(run): run for run in runs}

    def _configure(self, run: Run | None = None, workdir: Path | None = None) -> None:
        # What the command line binds comes last, to overrule whatever the groups ask for.
        own = run.bindings(self._model) if run else ()
        bindings = [*own, *self.gin_bindings]
        place = str(workdir) if workdir else None
        configure(self.gin_config, bindings, place, configs_folder=self.configs_folder)

    @cached_property
    def _model(self) -> str:
        self._configure()
        return _model()

    def chosen(self, run: Run) -> Row:
        """The part of a run's row that is known before it is made."""
        self._configure(run)
        facts = asdict(run) | {
            "strides_start": list(run.strides),
            "width": _bound(f"{self._model}.width", None),
            "epochs": _bound("train.train.num_epochs", None),
        }
        return {key: facts[key] for key in CHOSEN}

    def name(self, run: Run) -> str:
        """A name for the run and its folder, made of all that tells it from others."""
        row = self.chosen(run)
        parts = [row["dataset"], row["pooling"], row["edge"], row["order"]]
        parts += [f"budget_{row['budget']}" if row["budget"] else None]
        parts += ["".join(map(str, row["strides_start"])), f"width{row['width']}"]
        parts += [f"epochs{row['epochs']}", f"seed{row['seed']}"]
        words = "-".join(str(part) for part in parts if part is not None)
        return f"{row['config']}/{words}".replace(" ", "_")

    def weight(self, run: Run) -> float:
        """Roughly how long a run takes, in multiply-adds of an image over all epochs."""
        self._configure(run)
        model = gin.query_parameter("train.train.model").scoped_configurable_fn
        cost = measure_cost(model(num_output_classes=10, in_channels=3), NOMINAL)
        return (cost.multiply_adds + OVERHEAD) * _bound("train.train.num_epochs", 1)

    def train(self, run: Run, workdir: Path) -> Row:
        """Make a run, or what is left of it, and return its row."""
        row = self.chosen(run)
        self._configure(run, workdir)
        return row_of(row, registry.train())


def row_of(chosen: Row, summary: Mapping[str, Any]) -> Row:
    """The row of a run from what was asked for and the summary of its training."""
    facts = chosen | {key: summary[key] for key in KEYS if key in summary and key not in chosen}
    learned = chosen["pooling"] in LEARNED
    facts |= {"strides_end": summary["strides"] if learned else None, "commit": commit()}
    return {key: facts[key] for key in KEYS}


def _bound(name: str, default: Any) -> Any:
    try:
        return gin.query_parameter(name)
    except ValueError:  # not bound
        return default


def _model() -> str:
    reference = _bound("train.train.model", None)
    return reference.selector if reference is not None else "resnet.resnet18"


def commit() -> str | None:
    """The commit of this program, ``-dirty`` where its files differ; None outside a checkout."""
    folder = Path(__file__).parents[1]

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(folder), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", __file__) is None:  # a copy inside a foreign checkout
        return None
    changed = git("status", "--porcelain", "--", str(folder))
    return f"{git('rev-parse', 'HEAD')}{'-dirty' if changed else ''}"


def select(runs: Mapping[str, Run], only: Sequence[str]) -> dict[str, Run]:
    """The runs that fit all of ``only``: a part of the name, or ``key=value``."""
    return {name: run for name, run in runs.items() if all(_fits(name, run, o) for o in only)}


def _fits(name: str, run: Run, only: str) -> bool:
    key, equals, value = only.partition("=")
    if not equals:
        return only in name
    facts = asdict(run)
    if key not in facts:
        raise ValueError(f"--only={only}: expected one of {', '.join(facts)} before the '='")
    found = facts[key]
    text = ",".join(map(str, found)) if isinstance(found, tuple) else str(found)
    return text == value


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
    failures = {}
    for number, (name, run) in enumerate(runs.items(), start=1):
        workdir = folder / name
        workdir.mkdir(parents=True, exist_ok=True)
        with locked(workdir, wait=False) as free:
            if not free or identity(grid.chosen(run)) in map(identity, read_rows(file.parent)):
                continue
            print(f"run {number} of {len(runs)}: {name}", flush=True)
            try:
                append_row(file, grid.train(run, workdir))
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
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make or list as the flags say; returns the exit code."""
    options = _parse(arguments)
    configs = tuple(options.gin_config or ["table.gin"])
    grid = Grid(configs, tuple(options.gin_bindings), options.configs_folder)
    try:
        runs = select(grid.runs, options.only)
        if not runs:
            raise ValueError(f"no run of the grid fits --only={' --only='.join(options.only)}")
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
