"""What all benchmarks share: options, contents of a result file, selection of measurements."""

import argparse
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.machine import ROOT, environment, set_allocator
from benchmarks.tables import goal_table
from benchmarks.timing import Effort, Timing
from diffstride._files import atomic_file

RESULTS = ROOT / "benchmarks" / "results"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
GOLDEN_RATIO = (math.sqrt(5) - 1) / 2

Report = dict[str, Any]


def parser_of(name: str, description: str | None, repeats: int) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks share."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    parser.set_defaults(benchmark=name)
    add = parser.add_argument
    add("--repeats", type=int, default=repeats, help="samples of each contender")
    add("--budget", type=float, default=30.0, help="seconds for a contender, then three samples do")
    add("--seed", type=int, default=0)
    add("--threads", type=int, help="threads of torch (default: torch's choice)")
    keep = "keep: freed memory is reused without page faults (needs glibc)"
    add("--allocator", choices=("default", "keep"), default="default", help=keep)
    add("--quick", action="store_true", help="tiny sizes, only to check that it runs")
    written = f"result file (default: benchmarks/results/{name}.json; none with --quick)"
    add("--out", type=Path, help=written)
    return parser


def training_parser(name: str, description: str | None, out: Path) -> argparse.ArgumentParser:
    """A parser of a benchmark that trains networks and appends rows to the file ``out``."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--dataset", default="cifar100", help="name as for load_datasets")
    add("--workdir", type=Path, default=Path("runs") / name, help="folder of the run folders")
    add("--quick", action="store_true", help="tiny sizes, only to check that it runs")
    add("--out", type=Path, default=out, help="file of the rows")
    add("--table", action="store_true", help="only write the table of the page")
    return parser


def start(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None,
    quick: Mapping[str, Any] | None = None,
) -> argparse.Namespace:
    """Parse the options and apply them; with --quick, ``quick`` replaces defaults."""
    options = parser.parse_args(arguments)
    for name, value in (quick or {}).items() if options.quick else ():
        if getattr(options, name) == parser.get_default(name):
            setattr(options, name, value)
    if options.repeats < 1:
        parser.error(f"--repeats must be at least 1, but got {options.repeats}")
    set_allocator(options.allocator)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    if options.out is None and not options.quick:
        options.out = RESULTS / f"{options.benchmark}.json"
    options.command = command_of(parser, options)
    return options


def command_of(parser: argparse.ArgumentParser, options: argparse.Namespace) -> str:
    """The command that repeats a run, with all options that differ from their defaults."""
    words = [parser.prog or ""]
    for name, value in vars(options).items():
        if name in ("out", "benchmark", "command") or value == parser.get_default(name):
            continue
        values = value if isinstance(value, list) else [] if value is True else [value]
        words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return " ".join(words)


def effort_of(options: argparse.Namespace) -> Effort:
    """How long to measure; a quick run takes few samples."""
    if options.quick:
        return Effort(min(options.repeats, 3), sample_seconds=0.0, budget=1.0, seed=options.seed)
    return Effort(options.repeats, budget=options.budget, seed=options.seed)


def new_report(options: argparse.Namespace, **parts: Any) -> Report:
    """The contents of a result file: the conditions of the run, then ``parts``."""
    contract = {
        "command": options.command,
        "allocator": options.allocator,
        "seed": options.seed,
        "quick": options.quick,
        **environment(),
    }
    return {"benchmark": options.benchmark, "contract": contract, **parts}


def finish(options: argparse.Namespace, report: Report, tables: Callable[[Report], str]) -> Report:
    """Print the tables and targets of a report, and write it to the file of the options."""
    print(tables(report))
    if report.get("goals"):
        print(f"\n{goal_table(report['goals'])}")
    if options.out is not None:
        write_json(options.out, report)
    return report


def entry(timing: Timing, **labels: Any) -> dict[str, Any]:
    """A measurement as a result file has it: labels, then numbers."""
    return {**labels, **timing._asdict()}


def select(entries: Iterable[Mapping[str, Any]], **labels: Any) -> list[Any]:
    """The measurements that have all of ``labels``.

    >>> select([{"size": 8, "median": 1.0}, {"size": 9, "median": 2.0}], size=9)
    [{'size': 9, 'median': 2.0}]
    """
    wanted = labels.items()
    return [entry for entry in entries if all(entry.get(key) == value for key, value in wanted)]


def only(entries: Iterable[Mapping[str, Any]], **labels: Any) -> Any:
    """The only measurement that has all of ``labels``."""
    found = select(entries, **labels)
    if len(found) != 1:
        raise ValueError(f"expected one measurement with {labels}, but got {len(found)}")
    return found[0]


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file; numbers that JSON does not have (NaN, infinity) are refused."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON Lines file; none if there is no file."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Append a row in one write, so that several processes may."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(row, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file as a whole: a reader finds the old text or the new one."""
    with atomic_file(path) as file:
        file.write(text.encode())


def geometric_mean(ratios: Sequence[float]) -> float:
    """The geometric mean of ratios, in which 2 and 1/2 cancel.

    >>> geometric_mean([0.5, 2.0])
    1.0
    """
    if not ratios or min(ratios) <= 0:
        raise ValueError(f"a geometric mean needs positive numbers, but got {ratios!r}")
    return math.exp(math.fsum(map(math.log, ratios)) / len(ratios))


class MovingStrides:
    """Changes strides slightly at every call, as each training step does.

    With fixed strides the layers would find their matrices in the cache, which training never does.
    The strides grow by a factor below ``1 + 1/size``, so that no map changes its size.
    """

    def __init__(self, strides: Iterable[Tensor], size: int) -> None:
        self._strides = [(parameter, parameter.detach().clone()) for parameter in strides]
        self._size, self._step = size, 0

    @torch.no_grad()
    def __call__(self) -> None:
        self._step += 1
        factor = 1 + (self._step * GOLDEN_RATIO) % 1 / self._size
        for parameter, initial in self._strides:
            parameter.copy_(initial * factor)


def strides_of(model: nn.Module) -> list[Tensor]:
    """The learnable strides of a network, the library's and the reference's."""
    return [parameter for name, parameter in model.named_parameters() if name.endswith("strides")]
