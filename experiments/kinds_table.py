"""The short table of README.md: poolings on three kinds of data, each at one cost.

python3 -m experiments.kinds_table
"""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.averages import Entry, average_seeds
from experiments.markdown import table, write_table
from experiments.results import read_rows
from experiments.tables import mean_of_folds, seed_spread

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
MARK = "kinds"


class Kind(NamedTuple):
    """Where the rows of a kind of data are.

    Args:
        title: header of its column.
        fixed: folder and recipe of the strides that stay, and their start.
        learned: folder and recipe of strides by measured losses.
        starts: the usual start of these, and a poor one.
        dataset: name of the data set.
    """

    title: str
    fixed: tuple[str, str, str]
    learned: tuple[str, str]
    starts: tuple[str, str]
    dataset: str


KINDS = (
    Kind(
        "images: CIFAR-100",
        (".", "cifar10_small", "1,1,2,2,2"),
        ("guesses", "measured strides"),
        ("1,1,2.07,2.14,2.33", "1,1,1.94x1.83,1.62x1.9,16.5x15"),
        "cifar100",
    ),
    *(
        Kind(
            f"digits: {title}",
            ("fsdd", recipe, usual),
            ("fsdd", f"{recipe}, {rule}"),
            (usual, poor),
            "fsdd",
        )
        for title, recipe, rule, usual, poor in (
            ("log-mel", "fsdd_mel", "measured strides", "2,1,2,2,2", "2,1,3,1,4"),
            ("waveform", "fsdd_wave", "measured strides", "4,1,4,4,4", "4,1,8,2,4"),
        )
    ),
)
FIXED = {
    "strided": "strided convolutions",
    "max": "max pooling",
    "blur": "blur pooling",
    "spectral": "fixed spectral pooling",
}
LEARNED = ("learned, from the usual strides", "learned, from poor strides")


def kinds_table(results: Path = ROOT / "results") -> str:
    """A line for each pooling, a column for each kind of data."""
    columns = [_column(kind, results) for kind in KINDS]
    lines = [
        [label, *(_cell(column[label]) for column in columns)]
        for label in (*FIXED.values(), *LEARNED)
    ]
    costs = (_cost(column.values()) for column in columns)
    header = [f"{kind.title}, {cost}" for kind, cost in zip(KINDS, costs, strict=True)]
    return table(["pooling", *header], lines)


def _column(kind: Kind, results: Path) -> dict[str, Entry]:
    folder, recipe, start = kind.fixed
    entries = average_seeds(read_rows(results / folder))
    found = {
        label: _only(entries, kind, config=recipe, pooling=pooling, start=start)
        for pooling, label in FIXED.items()
    }
    folder, recipe = kind.learned
    entries = average_seeds(read_rows(results / folder))
    for label, start in zip(LEARNED, kind.starts, strict=True):
        found[label] = _only(entries, kind, config=recipe, pooling="diffstride", start=start)
    return found


def _only(entries: Iterable[Entry], kind: Kind, start: str, **values: str) -> Entry:
    folded = kind.dataset == "fsdd"
    found = [
        each
        for each in entries
        if each.start == start
        and each["dataset"] == kind.dataset
        and (each["fold"] is not None) == folded
        and all(each[key] == value for key, value in values.items())
    ]
    if len(found) != 1:
        raise ValueError(f"{len(found)} entries have {values} and start at {start}: expected one")
    return found[0]


def _cell(entry: Entry) -> str:
    """The mean over the folds, if there are any, and the spread over the seeds."""
    folds = list({row["fold"] for row in entry.rows})
    return f"{mean_of_folds(entry, folds):.1f}{seed_spread(entry)} %"


def _cost(entries: Iterable[Entry]) -> str:
    costs = [cost / 1e6 for entry in entries for cost in entry.cost_range("end")]
    return "–".join(dict.fromkeys(f"{end(costs):.1f}" for end in (min, max))) + " M"


def main(arguments: Sequence[str] | None = None) -> None:
    summary = "Write the table of three kinds of data into README.md, from the results."
    argparse.ArgumentParser("python3 -m experiments.kinds_table", description=summary).parse_args(
        arguments
    )
    write_table(README, MARK, kinds_table())
    print(f"wrote {README}")


if __name__ == "__main__":
    main()
