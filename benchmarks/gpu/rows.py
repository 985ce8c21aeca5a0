"""The file of a part: rows that are written one by one, so that a stopped call resumes."""

import gc
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import Report, select, write_json

# They differ between two calls that continue each other.
NOT_COMPARED = ("command", "date", "uncommitted_changes")


class OutOfTimeError(Exception):
    """A row had to stop before its end; it saved what it needs to resume."""


class Rows:
    """The rows of one part, in a file that is replaced whole after each row.

    Rows that are in the file already, with the same contract, are not measured again. A file of
    another contract is set aside as ``NAME.json.old``.

    Args:
        path: the file.
        part: name of the part, such as ``"layer"``.
        contract: facts on which the numbers depend.
        seconds: time limit; a row starts only if the longest row so far would still fit.
    """

    def __init__(self, path: Path, part: str, contract: dict[str, Any], seconds: float) -> None:
        self.path, self.seconds, self.started = path, seconds, time.monotonic()
        self.longest = 0.0
        self.left: list[dict[str, Any]] = []
        new = {"benchmark": f"gpu {part}", "contract": contract, "rows": []}
        self.report: Report = self._resumed(contract) or new

    def _resumed(self, contract: dict[str, Any]) -> Report | None:
        if not self.path.exists():
            return None
        report = json.loads(self.path.read_text(encoding="utf-8"))
        there, here = report["contract"], json.loads(json.dumps(contract))
        names = {*there, *here} - {*NOT_COMPARED}
        different = sorted(name for name in names if there.get(name) != here.get(name))
        if not different:
            return report
        aside = self.path.with_name(self.path.name + ".old")
        self.path.replace(aside)
        print(f"{self.path.name} differs in {', '.join(different)}: it is now {aside.name}")
        return None

    def measure(self, labels: dict[str, Any], make: Callable[[], dict[str, Any]]) -> None:
        """Add the row of these labels by calling ``make``, unless it is there or time is short.

        An error of the device, such as too little memory, is the content of the row; the next call
        tries such a row again.
        """
        if self.has(labels):
            return
        if self.left or self.remaining() < self.longest:
            self.left.append(labels)
            return
        print(", ".join(map(str, labels.values())), flush=True)
        start, values = time.monotonic(), {}
        try:
            values = make()
        except OutOfTimeError:
            self.left.append(labels)
            return
        except RuntimeError as error:  # also of the compiler, and out of memory
            first, *_ = [*str(error).strip().splitlines(), ""]
            values = {"error": f"{type(error).__name__}: {first}"}
        if "error" in values:  # only now the tensors of the failed call are free
            gc.collect()
            torch.cuda.empty_cache()
        seconds = time.monotonic() - start
        self.longest = max(self.longest, seconds)
        self.add(labels, {**values, "row_seconds": round(seconds, 1)})

    def has(self, labels: dict[str, Any]) -> bool:
        """Whether the file has a row of these labels, which is not one of an error."""
        return any("error" not in row for row in select(self.report["rows"], **labels))

    def add(self, labels: dict[str, Any], values: dict[str, Any]) -> None:
        """Add a row in place of one with the same labels, and write the file."""
        earlier = select(self.report["rows"], **labels)
        rows = [row for row in self.report["rows"] if row not in earlier]
        self.report["rows"] = [*rows, {**labels, **values}]
        self.write()

    def write(self) -> None:
        """Replace the file by what is measured so far."""
        write_json(self.path, self.report)

    def remaining(self) -> float:
        """Seconds until the time limit, below 0 after it."""
        return self.seconds - (time.monotonic() - self.started)

    def message(self) -> str:
        """What was measured and what is left."""
        errors = sum("error" in row for row in self.report["rows"])
        done = f"{len(self.report['rows'])} rows in {self.path}, {errors} of them with an error"
        if not self.left:
            return f"{done}; nothing is left"
        left = "\n".join(f"  {', '.join(map(str, labels.values()))}" for labels in self.left)
        return f"{done}; {len(self.left)} left, the same command continues with:\n{left}"
