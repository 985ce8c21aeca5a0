"""Training and inference steps of resnet18 with every pooling, up to 224 x 224."""

import argparse
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch

from benchmarks.common import DTYPES, FORMATS, entry
from benchmarks.gpu.device import PRECISIONS, peak_memory, product_rate, sampler, tf32
from benchmarks.gpu.layer import BACKEND, RUNNERS, SQUARES, TINY_BACKEND, TINY_SQUARES
from benchmarks.gpu.options import effort
from benchmarks.gpu.rows import Rows
from benchmarks.steps import (
    FEWEST_CHANNELS,
    PHASES,
    POOLINGS,
    Task,
    eager,
    multiply_adds,
    step_of,
)
from benchmarks.timing import measure

# As in the file of the CPU, "bf16-mixed" is autocast to bf16.
NETWORK_PRECISIONS = {name: name.replace("bf16", "bf16-mixed") for name in PRECISIONS}
COMPILED = ("strided", "average", "stopband", "passband")
TINY_POOLINGS = ("strided", "stopband")
PASSES = {"training": 3, "inference": 1}  # products with a kernel in a step


class Size(NamedTuple):
    """The size of a network and of its input."""

    width: int
    batch: int
    size: int


PUBLISHED = Size(64, 128, 32)
SIZES = (PUBLISHED, Size(16, 128, 224))
TINY = Size(FEWEST_CHANNELS, 2, 16)


class Group(NamedTuple):
    """What is measured together: its networks take turns."""

    size: Size
    phase: str
    precision: str
    format: str
    runner: str
    poolings: tuple[str, ...]

    def labels(self) -> dict[str, Any]:
        names = ("phase", "precision", "format", "runner")
        chosen = {name: getattr(self, name) for name in names}
        return {**self.size._asdict(), **chosen, "poolings": ", ".join(self.poolings)}

    def tasks(self, seed: int) -> list[Task]:
        # Task knows autocast only; TF32 is a setting of the process.
        mixed = NETWORK_PRECISIONS[self.precision]
        return [Task(name, mixed, self.format, *self.size, seed) for name in self.poolings]


def groups(tiny: bool) -> Iterator[Group]:
    """All groups, eager ones first.

    >>> len(list(groups(tiny=False)))
    26
    """
    for size in (TINY,) if tiny else SIZES:
        for precision in PRECISIONS:
            for layout in FORMATS if size == PUBLISHED else ["channels_last"]:
                for phase in PHASES:
                    poolings = TINY_POOLINGS if tiny else tuple(POOLINGS)
                    yield Group(size, phase, precision, layout, RUNNERS[0], poolings)
    # One network at a time, as compiling one takes up to a minute.
    for pooling in TINY_POOLINGS[1:] if tiny else COMPILED:
        for phase in PHASES[1:] if tiny else PHASES:
            size = TINY if tiny else PUBLISHED
            yield Group(size, phase, "bf16", "channels_last", RUNNERS[1], (pooling,))


def run(options: argparse.Namespace, rows: Rows) -> None:
    """Measure all groups that are not in the file."""
    for group in groups(options.tiny):
        rows.measure(group.labels(), lambda group=group: measure_group(group, options))


def measure_group(group: Group, options: argparse.Namespace) -> dict[str, Any]:
    """Times, peak memory and multiply-adds of the networks of a group."""
    device, precision = options.device, PRECISIONS[group.precision]
    torch.compiler.reset()
    backend = TINY_BACKEND if options.tiny else BACKEND
    wrap = partial(torch.compile, backend=backend) if group.runner == "compiled" else eager

    def make(task: Task) -> Any:
        with torch.device(device):
            return step_of(task, group.phase, wrap)

    tasks = group.tasks(options.seed)
    with tf32(precision.tf32):
        rate = product_rate(
            device, DTYPES[precision.dtype], TINY_SQUARES if options.tiny else SQUARES
        )
        memory = {task: peak_memory(device, lambda task=task: make(task)) for task in tasks}
        steps = {task: make(task) for task in tasks}
        if group.runner == "compiled":
            for step in steps.values():
                step()  # compiles, which the warm-up would take for the time of a step
        timings = measure(steps, effort(options), sampler(device))
    found = [
        entry(timing, pooling=task.pooling, peak_memory=memory[task], **floor_of(task, group, rate))
        for task, timing in timings.items()
    ]
    return {"measurements": found, "multiply_adds_per_second": rate}


def floor_of(task: Task, group: Group, rate: float) -> dict[str, Any]:
    """Multiply-adds of an image, and the seconds that those of a step take at ``rate``.

    A training step multiplies three times: forward, and for the gradients of input and kernel.
    """
    cost = multiply_adds(task._replace(precision="float32"))
    return {
        "multiply_adds": cost,
        "floor": PASSES[group.phase] * cost * group.size.batch / rate,
    }
