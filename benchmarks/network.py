"""Time, memory and MACs of training and inference of resnet18 with each pooling."""

import argparse
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.common import (
    FORMATS,
    Report,
    effort_of,
    entry,
    finish,
    new_report,
    parser_of,
    select,
    start,
)
from benchmarks.machine import multiplies_bfloat16
from benchmarks.memory import peaks
from benchmarks.steps import (
    FEWEST_CHANNELS,
    PHASES,
    POOLINGS,
    PRECISIONS,
    Task,
    multiply_adds,
    step_of,
)
from benchmarks.tables import goal, milliseconds, number, ratio_table, table
from benchmarks.timing import measure

QUICK = {
    "width": FEWEST_CHANNELS,
    "batch": 2,
    "size": 16,
    "poolings": ["average", "stopband"],
    "formats": ["contiguous"],
}
# (ours, theirs, largest ratio allowed); a ratio with None is only shown.
TIME_RATIOS = (
    ("stopband", "average", 1.15),
    ("stopband", "strided", None),
    ("passband", "average, passband sizes", None),
    ("passband", "strided", None),
    ("spectral", "strided", None),
    ("reference", "passband", None),
)
MEMORY_RATIOS = (
    ("stopband", "average", 1.2),
    ("passband", "average, passband sizes", 1.2),
    ("stopband", "strided", None),
    ("reference", "passband", None),
)


def run(options: argparse.Namespace) -> Report:
    """Measure all networks."""
    report = new_report(
        options,
        network={name: getattr(options, name) for name in ("width", "batch", "size")},
        measurements=[],
        memory=[],
        multiply_adds={},
        skipped=[],
    )
    for precision in PRECISIONS:
        if precision == "bf16-mixed" and not multiplies_bfloat16():
            reason = "this processor has no bf16 products, torch would emulate them"
            report["skipped"].append({"precision": precision, "reason": reason})
            continue
        for layout in options.formats:
            _measure(tasks(options, precision, layout), options, report)
    report["goals"] = goals(report)
    return report


def tasks(options: argparse.Namespace, precision: str, layout: str) -> list[Task]:
    """One task for each pooling."""
    size = (options.width, options.batch, options.size, options.seed)
    return [Task(pooling, precision, layout, *size) for pooling in options.poolings]


def _measure(networks: list[Task], options: argparse.Namespace, report: Report) -> None:
    for phase in PHASES:
        print(f"{phase}: {networks[0].precision}, {networks[0].format}", flush=True)
        steps = {task: step_of(task, phase) for task in networks}
        report["measurements"] += [
            entry(timing, **_labels(task), phase=phase)
            for task, timing in measure(steps, effort_of(options)).items()
        ]
    for task in networks:
        print(f"memory: {task.pooling}, {task.precision}, {task.format}", flush=True)
        report["memory"].append({**_labels(task), **peaks(task)})
        report["multiply_adds"][task.pooling] = multiply_adds(task)


def _labels(task: Task) -> dict[str, str]:
    return {"pooling": task.pooling, "precision": task.precision, "format": task.format}


def goals(report: Report) -> list[dict[str, Any]]:
    """Ratios between poolings, with their targets."""
    found = []
    for precision in PRECISIONS:
        for layout in FORMATS:
            where = {"precision": precision, "format": layout}
            found += _time_goals(report, where)
            found += _memory_goals(report, where)
    return found


def _time_goals(report: Report, where: dict[str, str]) -> Iterable[dict[str, Any]]:
    entries = select(report["measurements"], phase="training", **where)
    times = {entry["pooling"]: entry["median"] for entry in entries}
    return _ratios("training step", times, TIME_RATIOS, where)


def _memory_goals(report: Report, where: dict[str, str]) -> Iterable[dict[str, Any]]:
    entries = select(report["memory"], **where)
    peak = {entry["pooling"]: entry["training"] for entry in entries if entry["training"]}
    return _ratios("peak memory of training", peak, MEMORY_RATIOS, where)


def _ratios(
    what: str,
    values: dict[str, float],
    ratios: Iterable[tuple[str, str, float | None]],
    where: dict[str, str],
) -> Iterable[dict[str, Any]]:
    for ours, theirs, at_most in ratios:
        if ours in values and theirs in values:
            name = f"{what}, {ours} / {theirs}: {', '.join(where.values())}"
            yield goal(name, values[ours] / values[theirs], at_most=at_most)


HEADER = (
    "pooling",
    *(f"{phase} step, ms" for phase in PHASES),
    *(f"peak of {phase}, MB" for phase in PHASES),
    "multiply-adds an image, G",
)


def tables(report: Report) -> str:
    """All tables of a report, in Markdown."""
    parts = [ratio_table(report["goals"])]
    size = "width {width}, batch {batch}, images of {size} x {size}".format(**report["network"])
    for precision in PRECISIONS:
        for layout in FORMATS:
            memory = select(report["memory"], precision=precision, format=layout)
            if memory:
                parts.append(f"{size}, {precision}, {layout}:")
                parts.append(table(HEADER, [_line(report, peak) for peak in memory]))
    parts += [f"Not measured: {item['precision']}: {item['reason']}." for item in report["skipped"]]
    return "\n\n".join(parts)


def _line(report: Report, peak: dict[str, Any]) -> list[str]:
    where = {key: peak[key] for key in ("pooling", "precision", "format")}
    times = {entry["phase"]: entry for entry in select(report["measurements"], **where)}
    return [
        peak["pooling"],
        *(milliseconds(times[phase]) for phase in PHASES),
        *("–" if peak[phase] is None else f"{peak[phase] / 1e6:.1f}" for phase in PHASES),
        number(report["multiply_adds"][peak["pooling"]] / 1e9),
    ]


def main(arguments: Sequence[str] | None = None) -> Report:
    parser = parser_of("network", __doc__, repeats=9)
    add = parser.add_argument
    add("--width", type=int, default=64, help="channels of the first convolution, at least 8")
    add("--batch", type=int, default=32, help="images in a step")
    add("--size", type=int, default=32, help="height and width of an image")
    add("--poolings", nargs="+", choices=POOLINGS, default=list(POOLINGS))
    add("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    options = start(parser, arguments, QUICK)
    return finish(options, run(options), tables)


if __name__ == "__main__":
    main()
