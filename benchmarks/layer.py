"""Time of one pooling layer beside its alternatives, at shapes of common networks."""

import argparse
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from benchmarks.common import (
    DTYPES,
    FORMATS,
    Report,
    effort_of,
    entry,
    finish,
    geometric_mean,
    new_report,
    only,
    parser_of,
    select,
    start,
)
from benchmarks.contenders import (
    COPIES,
    DIRECTIONS,
    REFERENCE,
    STRIDE,
    Case,
    Row,
    calls_of,
    cases,
    unsupported,
)
from benchmarks.machine import floor_seconds, product_rate
from benchmarks.tables import goal, milliseconds, number, ratio_table, split_table
from benchmarks.timing import Timing, measure
from diffstride.spectral.axis_plan import EDGES, Edge, plan_axis
from diffstride.spectral.map_product import multiply_adds
from diffstride.spectral.memory_format import compute_dtype

ROWS = (
    Row(128, 64, 32),
    Row(128, 128, 24),
    Row(128, 256, 20),
    Row(128, 512, 18),
    Row(32, 64, 56),
    Row(16, 64, 112),
)
QUICK_ROWS = (Row(2, 3, 12), Row(1, 4, 18))
LABELS = ("batch", "channels", "size", "direction")


class Costs(NamedTuple):
    """MACs of a pooling, and bytes of its input and output."""

    multiply_adds: float
    moved_bytes: int


def costs(row: Row, edge: Edge, dtype: str) -> Costs:
    """Costs of a forward pass.

    >>> costs(Row(1, 1, 32), "passband", "float32")
    Costs(multiply_adds=43008, moved_bytes=6400)
    """
    axis, maps = plan_axis(row.size, STRIDE, edge=edge), row.batch * row.channels
    samples = row.size**2 + axis.output_size**2
    return Costs(maps * multiply_adds((axis, axis)), maps * samples * DTYPES[dtype].itemsize)


def floors(
    row: Row, direction: str, timings: dict[Case, Timing], rates: dict[str, float]
) -> list[dict[str, Any]]:
    """Lower bounds of the times of a row, for each edge and dtype.

    The backward pass needs the products and the traffic of the forward pass once more, for the
    gradient of the input. Products for the gradient of the strides are not counted. ``floor``
    assumes the rate of copying into a new tensor, which a layer has to allocate.
    ``floor_existing`` assumes the rate of copying into existing memory.
    """
    passes = 1 if direction == "forward" else 2
    found = []
    for dtype in rates:
        for edge in EDGES:
            cost = costs(row, edge, dtype)
            seconds = [
                passes * floor_seconds(*cost, rates[dtype], _copy_rate(row, kind, dtype, timings))
                for kind in COPIES
            ]
            labels = {**row._asdict(), "direction": direction, "edge": edge, "dtype": dtype}
            numbers = {**cost._asdict(), "floor": seconds[0], "floor_existing": seconds[1]}
            found.append({**labels, **numbers, "multiply_adds_per_second": rates[dtype]})
    return found


def _copy_rate(row: Row, kind: str, dtype: str, timings: dict[Case, Timing]) -> float:
    elements = row.batch * row.channels * row.size**2
    read_and_written = 2 * elements * DTYPES[dtype].itemsize
    return read_and_written / timings[Case(kind, dtype, "contiguous")].median


def product_rates(dtypes: Iterable[str], quick: bool) -> dict[str, float]:
    """MACs a second for each dtype; a dtype that is computed in another has the rate of that."""
    sizes = (64,) if quick else (1024, 1536, 2048)
    computed = {dtype: compute_dtype(DTYPES[dtype], "cpu") for dtype in dtypes}
    rates = {dtype: product_rate(dtype, sizes) for dtype in {*computed.values()}}
    return {dtype: rates[computed[dtype]] for dtype in computed}


def run(options: argparse.Namespace) -> Report:
    """Measure all rows."""
    contenders, skipped = [], []
    for case in cases(options.dtypes):
        reason = unsupported(case)
        if reason is None:
            contenders.append(case)
        else:
            skipped.append({**case._asdict(), "reason": reason})
    report = new_report(options, measurements=[], floors=[], skipped=skipped)
    for row in options.rows:
        for direction in DIRECTIONS:
            _measure_row(row, direction, contenders, options, report)
    report["goals"] = goals(report)
    return report


def _measure_row(
    row: Row, direction: str, contenders: list[Case], options: argparse.Namespace, report: Report
) -> None:
    print(f"{direction}: batch {row.batch}, {row.channels} channels, size {row.size}", flush=True)
    rates = product_rates(options.dtypes, options.quick)
    timings = measure(calls_of(row, direction, contenders), effort_of(options))
    labels = {**row._asdict(), "direction": direction}
    report["measurements"] += [
        entry(timing, **labels, **case._asdict()) for case, timing in timings.items()
    ]
    report["floors"] += floors(row, direction, timings, rates)


def ratios(report: Report, direction: str, edge: str, dtype: str, layout: str) -> dict[str, list]:
    """For each row: reference over ours (``speedup``), and ours over the two floors."""
    speedups, multiples, existing = [], [], []
    for ours in select(
        report["measurements"], direction=direction, contender=edge, dtype=dtype, format=layout
    ):
        row = {label: ours[label] for label in LABELS}
        theirs = only(report["measurements"], **row, **REFERENCE._asdict())
        least = only(report["floors"], **row, edge=edge, dtype=dtype)
        speedups.append(theirs["median"] / ours["median"])
        multiples.append(ours["median"] / least["floor"])
        existing.append(ours["median"] / least["floor_existing"])
    return {"speedup": speedups, "floor": multiples, "floor_existing": existing}


def goals(report: Report) -> list[dict[str, Any]]:
    """Geometric means over the rows for the published window, with their targets."""
    dtypes = [dtype for dtype in DTYPES if select(report["measurements"], dtype=dtype)]
    return [
        line for dtype in dtypes for layout in FORMATS for line in _goals(report, dtype, layout)
    ]


def _goals(report: Report, dtype: str, layout: str) -> list[dict[str, Any]]:
    forward = ratios(report, DIRECTIONS[0], "passband", dtype, layout)
    both = ratios(report, DIRECTIONS[1], "passband", dtype, layout)
    target, aim, lowest = (7, 10, 4) if dtype == "float32" else (10, 15, None)
    speedup, where = "reference (float32) / ours", f"{dtype}, {layout}"
    mean = geometric_mean
    return [
        goal(f"{speedup}, forward and backward: {where}", mean(both["speedup"]), target, aim=aim),
        goal(f"worst row of that: {where}", min(both["speedup"]), lowest),
        goal(f"{speedup}, forward: {where}", mean(forward["speedup"]), 8),
        goal(f"ours / floor, forward and backward: {where}", mean(both["floor"]), None, 3, 2),
        goal(f"that, with a floor that takes no new memory: {where}", mean(both["floor_existing"])),
        goal(f"ours / floor, forward: {where}", mean(forward["floor"])),
    ]


def tables(report: Report) -> str:
    """All tables of a report, in Markdown."""
    parts = ["Geometric means over the rows, published window:", ratio_table(report["goals"])]
    for direction in DIRECTIONS:
        for dtype in DTYPES:
            for layout in FORMATS:
                if select(report["measurements"], dtype=dtype):
                    parts.append(f"Milliseconds, {direction}, {dtype}, {layout}:")
                    parts.append(_times(report, direction, dtype, layout))
    parts += [
        f"Not measured: {case['contender']}, {case['dtype']}: {case['reason']}."
        for case in report["skipped"]
    ]
    return "\n\n".join(parts)


HEADER = (
    "batch, channels, size",
    *EDGES,
    "reference",
    "average",
    "convolution",
    *(f"interpolation, {edge}" for edge in EDGES),
    "floor, passband",
    "passband / floor",
    "stopband / floor",
    "reference / passband",
)


def _times(report: Report, direction: str, dtype: str, layout: str) -> str:
    # The reference and the interpolation are timed in contiguous format only.
    own = Case("", dtype, layout)
    columns = [own._replace(contender=name) for name in (*EDGES, "average", "convolution")]
    columns.insert(2, REFERENCE)
    columns += [Case(f"interpolation, {edge}", dtype, "contiguous") for edge in EDGES]
    ours = {edge: ratios(report, direction, edge, dtype, layout) for edge in EDGES}
    lines = []
    marks = select(report["measurements"], direction=direction, **columns[0]._asdict())
    for index, mark in enumerate(marks):
        row = {label: mark[label] for label in LABELS}
        least = only(report["floors"], **row, edge="passband", dtype=dtype)
        times = [select(report["measurements"], **row, **case._asdict()) for case in columns]
        relative = (ours["passband"]["floor"], ours["stopband"]["floor"])
        lines.append(
            [
                f"{mark['batch']}, {mark['channels']}, {mark['size']}",
                *(milliseconds(found[0] if found else None) for found in times),
                number(1e3 * least["floor"]),
                *(number(values[index]) for values in (*relative, ours["passband"]["speedup"])),
            ]
        )
    return split_table(HEADER, lines)


def _row(text: str) -> Row:
    try:
        return Row(*map(int, text.split(",")))
    except (TypeError, ValueError):
        raise argparse.ArgumentTypeError(
            f"a row is batch,channels,size, such as 128,64,32, but got {text!r}"
        ) from None


def main(arguments: Sequence[str] | None = None) -> Report:
    parser = parser_of("layer", __doc__, repeats=15)
    parser.add_argument("--rows", type=_row, nargs="+", help="batch,channels,size (default: six)")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    options = start(parser, arguments)
    options.rows = options.rows or (QUICK_ROWS if options.quick else ROWS)
    report = run(options)
    return finish(options, report, tables)


if __name__ == "__main__":
    main()
