"""The file of results: one JSON line per run, whole or absent."""

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from diffstride.training.files import atomic_file, locked

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
    "width",
    "epochs",
    "test_accuracy",
    "multiply_adds_start",
    "multiply_adds_end",
    "seconds",
    "threads",
    "commit",
    "torch",
)
MEASURED = (
    "strides_end",
    "test_accuracy",
    "multiply_adds_start",
    "multiply_adds_end",
    "seconds",
    "threads",
    "commit",
    "torch",
)
CHOSEN = tuple(key for key in KEYS if key not in MEASURED)


def identity(row: Mapping[str, Any], keys: Iterable[str] = CHOSEN) -> str:
    """What was asked for in a row: two rows of one identity are the same run.

    >>> one, same, other = ({**dict.fromkeys(KEYS), "seed": seed} for seed in (0, 0.0, 1))
    >>> identity(one) == identity(same), identity(one) == identity(other)
    (True, False)
    """
    return json.dumps([_plain(row[key]) for key in keys])


def _plain(value: Any) -> Any:
    """A value of which there is one spelling: 2.0 is 2, within lists too."""
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def read_rows(folder: Path) -> list[Row]:
    """The rows of all files ``runs*.jsonl`` in a folder; of the same run only the first.

    Warns:
        UserWarning: the same run has other accuracies in a second place.

    Raises:
        ValueError: a line is no row; names file and line.
    """
    rows: dict[str, tuple[Row, Path]] = {}
    for path in sorted(folder.glob("runs*.jsonl")):
        for row in _read(path):
            first, place = rows.setdefault(identity(row), (row, path))
            if first["test_accuracy"] != row["test_accuracy"]:
                warnings.warn(
                    f"the run {identity(row)} has a test accuracy of {first['test_accuracy']} % in "
                    f"{place}, which counts, and of {row['test_accuracy']} % in {path}: remove one",
                    stacklevel=2,
                )
    return [row for row, _ in rows.values()]


def append_row(path: Path, row: Mapping[str, Any]) -> bool:
    """Add a row to a file, unless the same run is there already; whether it was added.

    The file is replaced as a whole, and locked meanwhile: neither a kill nor another process that
    appends leaves it with half a line.
    """
    if set(row) != set(KEYS):
        raise ValueError(f"a row has the keys {', '.join(KEYS)}, but got {', '.join(row)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent):
        rows = list(_read(path)) if path.exists() else []
        if identity(row) in map(identity, rows):
            return False
        rows.append({key: row[key] for key in KEYS})
        with atomic_file(path) as file:
            file.write("".join(json.dumps(each) + "\n" for each in rows).encode())
    return True


def _read(path: Path) -> Iterator[Row]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number} of {path} is no JSON: {error}") from error
        if not isinstance(row, dict) or set(row) != set(KEYS):
            raise ValueError(f"line {number} of {path} must have the keys {', '.join(KEYS)}")
        yield row
