"""Training steps of networks of torchvision and timm: strided, converted, held to the cost before.

Each step is forward, backward, the optimiser and, held to the cost, the projection of `CostBudget`.
``measured`` is held to the cost, too, but its strides get no gradient and stay: a step with
`MeasuredStrides` that measures nothing, as most of them.
Maps are channels-last. Ratios are of medians of steps that take turns, to the strided network's.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.common import (
    MovingStrides,
    Report,
    effort_of,
    entry,
    finish,
    new_report,
    only,
    parser_of,
    start,
    strides_of,
)
from benchmarks.small_networks import NETWORKS as SMALL
from benchmarks.tables import table
from benchmarks.timing import measure
from diffstride import CostBudget, MultiplyAdds, convert

STAGES = ("strided", "converted", "held", "measured")
DTYPES = ("float32", "bf16")
CLASSES = 100


class Setting(NamedTuple):
    """A network, the size of its images and the batch."""

    network: str
    size: int
    batch: int


SETTINGS = (
    Setting("resnet18", 64, 32),
    Setting("resnet50", 128, 8),
    Setting("mobilenet_v2", 128, 16),
    *(Setting(name, 32, 128) for name in SMALL if "stem" not in name),
)
QUICK = (Setting("torchvision resnet18", 16, 2),)


def build(name: str) -> nn.Module:
    """A network of torchvision as it is, or one of `benchmarks.small_networks`."""
    if name in SMALL:
        return SMALL[name](CLASSES, 3)
    import torchvision

    return torchvision.models.get_model(name, num_classes=CLASSES)


class Step:
    """One training step of a network at a stage."""

    def __init__(self, setting: Setting, stage: str, dtype: str) -> None:
        torch.manual_seed(0)
        network, self.x = build(setting.network), torch.rand(setting.batch, 3, *[setting.size] * 2)
        example = self.x[:1]
        before = MultiplyAdds(network, example).value()
        network = network if stage == "strided" else convert(network, example)
        self.move: Callable[[], None] = lambda: None
        self.after_step: Callable[[], None] = lambda: None
        if stage in ("held", "measured"):
            budget = CostBudget(network, example, before)
            budget.held.compute_gradients(stage == "held")
            self.after_step = budget.project_ if stage == "held" else self.after_step
        self.multiply_adds = MultiplyAdds(network, example).value()
        self.network = network.train().to(memory_format=torch.channels_last)  # type: ignore
        self.x = self.x.to(memory_format=torch.channels_last)
        self.labels = torch.arange(setting.batch) % CLASSES
        self.optimiser = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9)
        if stage in ("converted", "held"):
            self.move = MovingStrides(strides_of(network), setting.size)
        bf16 = partial(torch.autocast, "cpu", torch.bfloat16)
        self.precision = bf16 if dtype == "bf16" else nullcontext

    def __call__(self) -> None:
        self.move()  # as learning does: the next layers find no matrix in the cache
        with self.precision():
            loss = F.cross_entropy(self.network(self.x), self.labels)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        self.after_step()


def rows_of(setting: Setting, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Times and ratios of a setting, one row for each dtype."""
    for dtype in DTYPES:
        steps = {stage: Step(setting, stage, dtype) for stage in STAGES}
        timings = measure(steps, effort_of(options))
        strided = timings["strided"].median
        before = steps["strided"].multiply_adds
        yield {
            **setting._asdict(),
            "dtype": dtype,
            **{stage: timings[stage].median / strided for stage in STAGES[1:]},
            "multiply_adds": {s: step.multiply_adds / before for s, step in steps.items()},
            "timings": [entry(timing, stage=stage) for stage, timing in timings.items()],
        }


def tables(report: Report) -> str:
    """A line for each network: MACs and times as converted, and times held to the cost before."""
    lines = []
    for setting in dict.fromkeys((r["network"], r["size"], r["batch"]) for r in report["rows"]):
        labels = dict(zip(Setting._fields, setting, strict=True))
        rows = [only(report["rows"], **labels, dtype=dtype) for dtype in DTYPES]
        line = [f"{setting[0]}, {setting[1]}, {setting[2]}"]
        line += [f"{rows[0]['multiply_adds']['converted']:.2f}"]
        line += [" / ".join(f"{row[stage]:.2f}" for row in rows) for stage in STAGES[1:]]
        lines.append(line)
    header = ["network, images, batch", "as converted: MACs", "time"]
    header += ["held to the cost before: time", "the same, without gradient of the strides"]
    return table(header, lines)


def main(arguments: Sequence[str] | None = None) -> Report:
    parser = parser_of("conversion_time", __doc__, repeats=15)
    parser.add_argument("--networks", nargs="+", help="only these (default: all)")
    options = start(parser, arguments)
    settings = QUICK if options.quick else SETTINGS
    report = new_report(options, rows=[])
    for setting in settings:
        if not options.networks or setting.network in options.networks:
            report["rows"] += rows_of(setting, options)
            print(tables(report), flush=True)
    return finish(options, report, tables)


if __name__ == "__main__":
    main()
