"""The files of results: one JSON line (a row) for each finished run."""

import json
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from diffstride._files import atomic_file
from diffstride.resnet import ORDERS
from diffstride.spectral.axis_plan import EDGES
from diffstride.training.files import locked
from experiments.groups import POOLINGS
from experiments.values import (
    Rule,
    are_stage_strides,
    check_values,
    is_budget,
    is_count,
    is_fold,
    is_integer,
    is_name,
    is_number,
    is_stride,
    list_of,
    one_of,
)

Row = dict[str, Any]

KEYS = (
    "config",
    "dataset",
    "pooling",
    "edge",
    "budget",
    "order",
    "strides_start",
    "strides_end",
    "seed",
    "fold",
    "width",
    "epochs",
    "test_accuracy",
    "multiply_adds_start",
    "multiply_adds_end",
    "seconds",
    "precision",
    "threads",
    "commit",
    "torch",
)
MEASURED = ("strides_end", *KEYS[KEYS.index("test_accuracy") :])
CHOSEN = tuple(key for key in KEYS if key not in MEASURED)
"""Keys of what the grid asks for. Two rows with the same values here are the same run."""
OPTIONAL = ("fold", "precision")
"""Keys that a line of a file lacks where they are None."""
HOLDOUT = "holdout"


RULES = {
    "config": Rule(is_name, "a name"),
    "dataset": Rule(is_name, "a name"),
    "pooling": Rule(one_of([*POOLINGS]), f"one of {', '.join(POOLINGS)}"),
    "edge": Rule(one_of([None, *EDGES]), "None or the name of an edge"),
    "budget": Rule(is_budget, "None, 'strided' or a number above 0"),
    "order": Rule(one_of([None, *ORDERS]), f"None or one of {', '.join(ORDERS)}"),
    "strides_start": Rule(are_stage_strides, "a list of strides of at least 1"),
    "strides_end": Rule(
        lambda value: value is None or _are_learned(value),
        "None or a dictionary with a list of strides of at least 1 for each layer",
    ),
    "seed": Rule(is_integer, "a whole number"),
    "fold": Rule(is_fold, "None or a whole number from 0"),
    "width": Rule(lambda value: value is None or is_count(value), "None or a whole number above 0"),
    "epochs": Rule(is_count, "a whole number above 0"),
    "test_accuracy": Rule(
        lambda value: is_number(value) and 0 <= value <= 100, "a number from 0 to 100"
    ),
    "multiply_adds_start": Rule(lambda value: is_number(value) and value > 0, "a number above 0"),
    "multiply_adds_end": Rule(lambda value: is_number(value) and value > 0, "a number above 0"),
    "seconds": Rule(lambda value: is_number(value) and value >= 0, "a number of at least 0"),
    "precision": Rule(lambda value: value is None or is_name(value), "None or a precision"),
    "threads": Rule(is_count, "a whole number above 0"),
    "commit": Rule(lambda value: value is None or is_name(value), "None or a commit"),
    "torch": Rule(is_name, "a version"),
}
"""What the values of a row have to be."""


def _are_learned(value: Any) -> bool:
    return isinstance(value, dict) and all(map(list_of(is_stride), value.values()))


def check_row(row: Row) -> Row:
    """Return a row whose keys and values are valid.

    Raises:
        ValueError: a key is missing or unknown, or a value is not valid; names it.
    """
    if set(row) != set(KEYS):
        raise ValueError(f"a row must have the keys {', '.join(KEYS)}, but got {', '.join(row)}")
    check_values(row, RULES)
    return row


def identity(row: Mapping[str, Any], keys: Iterable[str] = CHOSEN) -> str:
    """Text that is equal for two rows of the same run.

    >>> one, same, other = ({**dict.fromkeys(KEYS), "seed": seed} for seed in (0, 0.0, 1))
    >>> identity(one) == identity(same), identity(one) == identity(other)
    (True, False)
    """
    return json.dumps([_normalized(row[key]) for key in keys])


def _normalized(value: Any) -> Any:
    """Write whole numbers as integers (2.0 as 2), also inside lists."""
    if isinstance(value, (list, tuple)):
        return [_normalized(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def read_rows(folder: Path) -> list[Row]:
    """Read the rows of all files ``runs*.jsonl`` in a folder, each run once.

    Warns:
        UserWarning: two rows of the same run have different accuracies. The first one is used.

    Raises:
        ValueError: a line is not a row, or has a value that is not valid; the message names file
            and line.
    """
    rows: dict[str, tuple[Row, Path]] = {}
    for path in sorted(folder.glob("runs*.jsonl")):
        for row in _read(path):
            first, source = rows.setdefault(identity(row), (row, path))
            if first["test_accuracy"] != row["test_accuracy"]:
                warnings.warn(
                    f"the run {identity(row)} has a test accuracy of {first['test_accuracy']} % in "
                    f"{source}, which is used, and of {row['test_accuracy']} % in {path}: remove "
                    "one of these lines",
                    stacklevel=2,
                )
    return [row for row, _ in rows.values()]


def append_row(path: Path, row: Mapping[str, Any]) -> bool:
    """Add a row to a file unless the file has this run; returns whether it was added.

    The file is locked and replaced as a whole. So neither a kill nor another process that appends
    leaves half a line. If it is a symbolic link, this is done where it points to.
    """
    if set(row) != set(KEYS):
        raise ValueError(f"a row has the keys {', '.join(KEYS)}, but got {', '.join(row)}")
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent):
        rows = list(_read(path)) if path.exists() else []
        if identity(row) in map(identity, rows):
            return False
        _write(path, [*rows, {key: row[key] for key in KEYS}])
    return True


def _write(path: Path, rows: Iterable[Row]) -> None:
    with atomic_file(path) as file:
        for row in rows:
            file.write(json.dumps(_without_missing(row), allow_nan=False).encode() + b"\n")


def _without_missing(row: Row) -> Row:
    return {key: value for key, value in row.items() if key not in OPTIONAL or value is not None}


def _read(path: Path) -> Iterator[Row]:
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # also of text that is not UTF-8
            raise ValueError(f"line {number} of {path} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"line {number} of {path} must be a row, but is {row!r:.100}")
        try:
            row = check_row(dict.fromkeys(OPTIONAL) | row)
            yield {key: row[key] for key in KEYS}
        except ValueError as error:
            raise ValueError(f"line {number} of {path}: {error}: remove or correct it") from error


def check_holdout(folder: Path, run: str, holdout: int) -> None:
    """Keep accuracies on held-out training images apart from those on test images.

    No key of a row says which images a run was tested on. So rows of runs that hold out images
    belong in a folder named ``holdout``, and no others do.

    Raises:
        ValueError: the folder is for accuracies of the other kind.

    >>> check_holdout(Path("results/holdout"), "mine", 5000)
    >>> check_holdout(Path("results"), "mine", 5000)
    Traceback (most recent call last):
    ...
    ValueError: mine has data.load_datasets.holdout = 5000, but the folder results is for accuracies
    on test images: set --results or table.grid.results to a folder named 'holdout'
    """
    if (folder.resolve().name == HOLDOUT) != bool(holdout):
        kind, other = ("test", "named") if holdout else ("held-out", "not named")
        raise ValueError(
            f"{run} has data.load_datasets.holdout = {holdout}, but the folder {folder} is for "
            f"accuracies on {kind} images: set --results or table.grid.results to a folder "
            f"{other} {HOLDOUT!r}"
        )


def initial_strides(row: Row) -> dict[str, tuple[float, ...]]:
    """The initial strides of the layers that learn, one for each axis.

    A row has them by stage: the stem and its blocks, or the blocks alone.

    >>> end = {"blocks.1.0.pooling": [1.9, 1.9], "blocks.2.0.pooling": [1.8, 2.0]}
    >>> initial_strides({"strides_start": [1, 1, 2, [3, 2]], "strides_end": end})
    {'blocks.1.0.pooling': (2, 2), 'blocks.2.0.pooling': (3, 2)}
    """
    stages = row["strides_start"]
    has_stem = any(
        re.fullmatch(r"stem\..*|blocks\.\d+\.\d+\..*", name) for name in row["strides_end"]
    )
    found = {}
    for name in row["strides_end"]:
        block = re.match(r"blocks\.(\d+)\.|stem\.", name)
        if block:
            stride = stages[int(block[1]) + has_stem if block[1] else 0]
            found[name] = tuple(stride) if isinstance(stride, list | tuple) else (stride, stride)
    return found
