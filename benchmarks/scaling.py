"""Time of a layer against map size, batch and channels, beside the reference."""

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.common import (
    Report,
    effort_of,
    entry,
    finish,
    new_report,
    only,
    parser_of,
    select,
    start,
)
from benchmarks.contenders import DIRECTIONS, REFERENCE, Case, Row, calls_of
from benchmarks.tables import goal, milliseconds, number, ratio_table, table
from benchmarks.timing import measure

SAMPLES = 1 << 22
OURS = (
    Case("passband", "float32", "contiguous"),
    Case("passband", "float32", "channels_last"),
)
SWEEPS = ("size", "batch", "channels")


def row_of_size(size: int, samples: int = SAMPLES) -> Row:
    """A row of map size ``size`` with about ``samples`` elements, in up to 64 channels.

    >>> row_of_size(8), row_of_size(512)
    (Row(batch=1024, channels=64, size=8), Row(batch=1, channels=16, size=512))
    """
    maps = max(1, samples // size**2)
    channels = min(64, maps)
    return Row(maps // channels, channels, size)


def sweeps(quick: bool) -> dict[str, list[Row]]:
    """The rows of each sweep, in which one number grows."""
    if quick:
        return {
            "size": [row_of_size(8, 256), row_of_size(32, 1024)],
            "batch": [Row(2, 2, 8)],
            "channels": [Row(1, 4, 8)],
        }
    sizes = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
    return {
        "size": [row_of_size(size) for size in sizes],
        "batch": [Row(batch, 64, 32) for batch in (1, 4, 16, 64, 256)],
        "channels": [Row(16, channels, 32) for channels in (1, 4, 16, 64, 256, 1024)],
    }


def run(options: argparse.Namespace) -> Report:
    """Measure all sweeps."""
    report = new_report(options, measurements=[])
    for sweep, rows in sweeps(options.quick).items():
        for row in rows:
            for direction in DIRECTIONS:
                print(f"{sweep}: {row}, {direction}", flush=True)
                calls = calls_of(row, direction, [REFERENCE, *OURS])
                labels = {"sweep": sweep, **row._asdict(), "direction": direction}
                report["measurements"] += [
                    entry(timing, **labels, **case._asdict())
                    for case, timing in measure(calls, effort_of(options)).items()
                ]
    report["goals"] = goals(report)
    return report


def ratios(report: Report, sweep: str, direction: str) -> Iterator[dict[str, Any]]:
    """For each row of a sweep: its timings, and the time of the reference over ours."""
    where = {"sweep": sweep, "direction": direction}
    for theirs in select(report["measurements"], **where, **REFERENCE._asdict()):
        row = {key: theirs[key] for key in ("batch", "channels", "size")}
        ours = [only(report["measurements"], **where, **row, **case._asdict()) for case in OURS]
        speedups = [theirs["median"] / timing["median"] for timing in ours]
        yield {**row, "timings": [*ours, theirs], "speedups": speedups}


def goals(report: Report) -> list[dict[str, Any]]:
    """The smallest ratio of each sweep, with the target of 1."""
    found = []
    for direction in DIRECTIONS:
        for sweep in SWEEPS:
            rows = list(ratios(report, sweep, direction))
            for index, case in enumerate(OURS):
                worst = min(row["speedups"][index] for row in rows)
                name = f"reference / ours, worst of {sweep}, {direction}: {case.format}"
                found.append(goal(name, worst, at_least=1))
    return found


HEADER = (
    "batch, channels, size",
    *(case.format for case in OURS),
    "reference",
    *(f"reference / {case.format}" for case in OURS),
)


def tables(report: Report) -> str:
    """All tables of a report, in Markdown."""
    parts = [ratio_table(report["goals"])]
    for direction in DIRECTIONS:
        for sweep in SWEEPS:
            parts.append(f"Milliseconds, {direction}, growing {sweep}:")
            parts.append(table(HEADER, map(_line, ratios(report, sweep, direction))))
    return "\n\n".join(parts)


def _line(row: dict[str, Any]) -> list[str]:
    shape = f"{row['batch']}, {row['channels']}, {row['size']}"
    return [shape, *map(milliseconds, row["timings"]), *map(number, row["speedups"])]


def main(arguments: Sequence[str] | None = None) -> Report:
    options = start(parser_of("scaling", __doc__, repeats=15), arguments)
    return finish(options, run(options), tables)


if __name__ == "__main__":
    main()
