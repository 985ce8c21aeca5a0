"""A Lightning logger to a CSV file that a resumed run continues, with one row per step."""

import csv
import io
from pathlib import Path
from typing import Any

from diffstride._files import atomic_file
from diffstride.training.lightning_compat import loggers, rank_zero_only


class MetricsFile(loggers.Logger):
    """Logs to a CSV file with one row per step.

    Lightning's `CSVLogger` deletes the file when a run starts again in the same folder.

    Args:
        path: the file; its rows up to ``step`` are kept.
        step: number of steps the run has taken so far, 0 for a new run.
    """

    def __init__(self, path: Path, step: int = 0) -> None:
        super().__init__()
        self.path = path
        self.rows: dict[int, dict[str, Any]] = {}
        if path.exists():
            with path.open(newline="") as file:
                try:
                    rows = {int(row["step"]): row for row in csv.DictReader(file)}
                except (KeyError, TypeError, ValueError) as error:
                    raise ValueError(
                        f"{path} is not the log of a run, it needs a whole number as step in every "
                        "row: move it away, or choose another workdir"
                    ) from error
            self.rows = {key: row for key, row in rows.items() if key <= step}

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the operative configuration is saved beside the file."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        step = max(self.rows, default=0) if step is None else step
        self.rows.setdefault(step, {"step": step}).update(metrics)

    @rank_zero_only
    def save(self) -> None:
        columns = dict.fromkeys(name for row in self.rows.values() for name in row)
        text = io.StringIO()
        writer = csv.DictWriter(text, list(columns), restval="")
        writer.writeheader()
        writer.writerows(self.rows[step] for step in sorted(self.rows))
        with atomic_file(self.path) as file:
            file.write(text.getvalue().encode())

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()
