"""One pooling layer against its alternatives, up to 224 x 224 at a batch of 128."""

import argparse
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from benchmarks import layer as cpu_layer
from benchmarks.common import DTYPES, entry
from benchmarks.contenders import (
    DIRECTIONS,
    REFERENCE,
    Case,
    Operation,
    Row,
    cases,
    contender,
    converted,
    copies_of,
    forward,
    forward_backward,
    new_input,
    unsupported,
)
from benchmarks.gpu.device import PRECISIONS, peak_of_call, product_rate, sampler, tf32
from benchmarks.gpu.options import effort
from benchmarks.gpu.rows import Rows
from benchmarks.timing import measure

ROWS = (*cpu_layer.ROWS, Row(128, 64, 56), Row(128, 64, 112), Row(128, 64, 224))
TINY_ROWS = (Row(2, 3, 12),)
# Compiling takes seconds for each contender, hence two rows.
COMPILED_ROWS = (Row(128, 64, 32), Row(128, 64, 112))
RUNNERS = ("eager", "compiled")
BACKEND, TINY_BACKEND = "inductor", "aot_eager"  # the latter needs no compiler of C++
SQUARES, TINY_SQUARES = (4096, 8192), (64,)

Calls = dict[Case, Callable[[], Any]]


class Group(NamedTuple):
    """What is measured together: its contenders take turns."""

    row: Row
    direction: str
    precision: str
    runner: str

    def labels(self) -> dict[str, Any]:
        names = ("direction", "precision", "runner")
        return {**self.row._asdict(), **{name: getattr(self, name) for name in names}}


def groups(tiny: bool) -> Iterator[Group]:
    """All groups, eager ones first.

    >>> len(list(groups(tiny=False)))
    66
    """
    for runner in RUNNERS:
        rows = COMPILED_ROWS if runner == "compiled" else ROWS
        for row in TINY_ROWS if tiny else rows:
            for direction in DIRECTIONS:
                several = list(PRECISIONS)
                for precision in several[:1] if tiny and runner == "compiled" else several:
                    yield Group(row, direction, precision, runner)


def run(options: argparse.Namespace, rows: Rows) -> None:
    """Measure all groups that are not in the file."""
    for group in groups(options.tiny):
        rows.measure(group.labels(), lambda group=group: measure_group(group, options))


def measure_group(group: Group, options: argparse.Namespace) -> dict[str, Any]:
    """Times, peak memory and floors of one group."""
    device, precision = options.device, PRECISIONS[group.precision]
    contenders, skipped = contenders_of(group, device)
    with tf32(precision.tf32):
        calls = calls_of(group, contenders, options)
        timings = measure(calls, effort(options), sampler(device))
        memory = {case: peak_of_call(device, calls[case]) for case in contenders}
        sizes = TINY_SQUARES if options.tiny else SQUARES
        rates = {precision.dtype: product_rate(device, DTYPES[precision.dtype], sizes)}
    return {
        "measurements": [
            entry(timing, **case._asdict(), peak_memory=memory.get(case))
            for case, timing in timings.items()
        ],
        "floors": cpu_layer.floors(group.row, group.direction, timings, rates),
        "skipped": skipped,
    }


def contenders_of(group: Group, device: torch.device) -> tuple[list[Case], list[dict[str, str]]]:
    """The contenders of a group, and those that torch cannot run with the reason."""
    chosen, skipped = [], []
    for case in cases([PRECISIONS[group.precision].dtype]):
        # The compiler leaves complex transforms to eager execution.
        if group.runner == "compiled" and case == REFERENCE:
            continue
        with torch.device(device):
            reason = unsupported(case)
        if reason is None:
            chosen.append(case)
        else:
            skipped.append({**case._asdict(), "reason": reason})
    return chosen, skipped


def calls_of(group: Group, contenders: list[Case], options: argparse.Namespace) -> Calls:
    """The contenders of a group and the copies of its input, ready to be timed."""
    device, backend = options.device, TINY_BACKEND if options.tiny else BACKEND
    row, dtype = group.row, PRECISIONS[group.precision].dtype
    prepare = forward if group.direction == "forward" else forward_backward
    # The device is the default only here: the mode that makes it so would slow every call.
    with torch.device(device):
        layouts = dict.fromkeys([*((case.dtype, case.format) for case in contenders)])
        layouts |= {(dtype, "contiguous"): None}
        inputs = {key: new_input(row, *key) for key in layouts}
        operations = {case: converted(contender(case.contender, row), case) for case in contenders}
    calls: Calls = {}
    torch.compiler.reset()
    for case, operation in operations.items():
        ready = compiled(operation, backend) if group.runner == "compiled" else operation
        calls[case] = prepare(ready, inputs[case.dtype, case.format])
        if group.runner == "compiled":
            calls[case]()  # compiles, which the warm-up would take for the time of a call
    return calls | copies_of({(dtype, "contiguous"): inputs[dtype, "contiguous"]})


def compiled(operation: Operation, backend: str) -> Operation:
    """The operation by ``torch.compile``, for one size."""
    function = operation if isinstance(operation, torch.nn.Module) else lambda x: operation(x)
    return torch.compile(function, backend=backend, dynamic=False)
