"""Time of pooling signals by Fourier transforms, beside matrix products and a strided average."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.common import (
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
from benchmarks.contenders import DIRECTIONS, forward, forward_backward
from benchmarks.tables import goal, milliseconds, number, ratio_table, table
from benchmarks.timing import measure
from diffstride import DiffStride
from diffstride.spectral import axis_product

SAMPLES = 1 << 21
CHANNELS = 64
# A power of 2, a product of small primes, and a prime or twice one, of each magnitude.
LENGTHS = (16, 30, 64, 100, 127, 256, 250, 254, 512, 500, 509, 797, 1000, 2048, 2000, 4000)
STRIDES = (2.0, 4.0)
NEVER = 1 << 62
WAYS = {"transforms": 1, "products": NEVER}  # from which length signals are transformed
LABELS = ("length", "stride")


def calls_of(length: int, stride: float, direction: str, samples: int) -> dict[str, Callable]:
    """The functions to time, on as many signals as have about ``samples`` in all."""
    batch = max(1, samples // (CHANNELS * length))
    x = torch.randn(batch, CHANNELS, length).requires_grad_()
    prepare = forward if direction == DIRECTIONS[0] else forward_backward
    calls: dict[str, Callable] = {
        way: partial(_transformed_from, first, prepare(DiffStride((stride,), edge="stopband"), x))
        for way, first in WAYS.items()
    }
    return calls | {"average": prepare(partial(F.avg_pool1d, kernel_size=int(stride)), x)}


def _transformed_from(length: int, call: Callable[[], Any]) -> Any:
    """A call during which signals are transformed from this length on, where it costs less."""
    kept = axis_product.LONG_SIGNAL, axis_product.LONG_AXIS
    axis_product.LONG_SIGNAL = axis_product.LONG_AXIS = length
    try:
        return call()
    finally:
        axis_product.LONG_SIGNAL, axis_product.LONG_AXIS = kept


def run(options: argparse.Namespace) -> Report:
    """Measure all lengths and strides."""
    report = new_report(options, measurements=[])
    samples, lengths = (1 << 12, LENGTHS[:3]) if options.quick else (SAMPLES, LENGTHS)
    for direction in DIRECTIONS:
        for length in lengths:
            for stride in STRIDES:
                print(f"{direction}: length {length}, stride {stride:g}", flush=True)
                calls = calls_of(length, stride, direction, samples)
                labels = {"direction": direction, "length": length, "stride": stride}
                report["measurements"] += [
                    entry(timing, **labels, contender=name)
                    for name, timing in measure(calls, effort_of(options)).items()
                ]
    report["goals"] = goals(report)
    return report


def rows(report: Report, direction: str) -> Iterator[dict[str, Any]]:
    """For each length and stride: the timings, and that of transforms over that of products."""
    for ours in select(report["measurements"], direction=direction, contender="transforms"):
        row = {label: ours[label] for label in LABELS}
        others = [
            only(report["measurements"], direction=direction, contender=name, **row)
            for name in ("products", "average")
        ]
        ratios = [ours["median"] / other["median"] for other in others]
        yield {**row, "timings": [ours, *others], "ratios": ratios}


def goals(report: Report) -> list[dict[str, Any]]:
    """Geometric means and extremes of transforms over products."""
    found = []
    for direction in DIRECTIONS:
        ratios = [row["ratios"][0] for row in rows(report, direction)]
        each = {"mean": geometric_mean(ratios), "largest": max(ratios), "smallest": min(ratios)}
        found += [
            goal(f"transforms / products, {direction}: {name}", ratio)
            for name, ratio in each.items()
        ]
    return found


HEADER = (
    "length, stride",
    *WAYS,
    "average",
    "transforms / products",
    "transforms / average",
)


def tables(report: Report) -> str:
    """All tables of a report, in Markdown."""
    parts = [ratio_table(report["goals"])]
    for direction in DIRECTIONS:
        parts.append(f"Milliseconds, {direction}:")
        parts.append(table(HEADER, map(_line, rows(report, direction))))
    return "\n\n".join(parts)


def _line(row: dict[str, Any]) -> list[str]:
    shape = f"{row['length']}, {row['stride']:g}"
    return [shape, *map(milliseconds, row["timings"]), *map(number, row["ratios"])]


def main(arguments: Sequence[str] | None = None) -> Report:
    options = start(parser_of("signals", __doc__, repeats=15), arguments)
    return finish(options, run(options), tables)


if __name__ == "__main__":
    main()
