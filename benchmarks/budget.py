"""Time of holding converted networks to a budget: `CostBudget.project_` after a step."""

import argparse
import gc
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common import (
    Report,
    effort_of,
    entry,
    finish,
    new_report,
    parser_of,
    start,
    strides_of,
)
from benchmarks.tables import goal, milliseconds, number, ratio_table, split_table
from benchmarks.timing import measure, summary_of
from diffstride import CostBudget, convert

NETWORKS = {
    "resnet18": (3, 224, 224),
    "resnet50": (3, 224, 224),
    "mobilenet_v2": (3, 224, 224),
    "video.s3d": (3, 16, 224, 224),
}
RATES = (0.0005, 0.005, 0.03)
BUDGET = 0.8
NEW_TARGETS = 100  # steps
CLASSES = 10
QUICK = {"networks": ["resnet18"], "rates": [0.03], "steps": 4, "batch": 2}
QUICK_SIZE = 64


def build(name: str, quick: bool) -> tuple[nn.Module, Tensor]:
    """A network of torchvision with learnable strides, and an input."""
    import torchvision

    *rest, height, width = (1, *NETWORKS[name])
    image = torch.randn(*rest, *((QUICK_SIZE, QUICK_SIZE) if quick else (height, width)))
    model = torchvision.models.get_model(name.removeprefix("video."), num_classes=CLASSES)
    return convert(model, image), image


class Movement:
    """Steps of SGD with momentum 0.9 on noisy gradients of the strides.

    The gradient of a stride is 0.3 times its distance from a target, plus noise of standard
    deviation 1. The targets are random, and new ones follow every `NEW_TARGETS` steps.
    """

    def __init__(self, strides: Sequence[Tensor], rate: float, seed: int) -> None:
        self.strides, self.generator = strides, torch.Generator().manual_seed(seed)
        self.optimiser = torch.optim.SGD(strides, lr=rate, momentum=0.9)
        self.steps = 0

    def __call__(self) -> None:
        if self.steps % NEW_TARGETS == 0:
            self.targets = [
                (stride.detach() * (0.5 * self._noise(stride)).exp()).clamp(1.05, 5.0)
                for stride in self.strides
            ]
        self.steps += 1
        for stride, target in zip(self.strides, self.targets, strict=True):
            stride.grad = 0.3 * (stride.detach() - target) + self._noise(stride)
        self.optimiser.step()

    def _noise(self, stride: Tensor) -> Tensor:
        return torch.randn(stride.shape, generator=self.generator)


def walk(budget: CostBudget, move: Callable[[], None], steps: int) -> dict[str, Any]:
    """Times of `project_` after each step, how often map sizes changed, and the budget used."""
    seconds, cpu_seconds, shares, sizes = [], [], [], []
    gc.collect()
    gc.disable()  # it takes milliseconds, for the objects of the whole program
    try:
        for _ in range(steps):
            move()
            at, cpu_at = time.perf_counter(), time.process_time()
            budget.project_()
            seconds.append(time.perf_counter() - at)
            cpu_seconds.append(time.process_time() - cpu_at)
            shares.append(budget.cost.value() / budget.multiply_adds)
            maps = budget.cost.maps().values()
            sizes.append([axis.output_size for axes in maps for axis in axes])
    finally:
        gc.enable()
    median, lower, upper = summary_of(seconds)
    return {
        "median": median,
        "lower_quartile": lower,
        "upper_quartile": upper,
        "worst": max(seconds),
        "cpu_median": summary_of(cpu_seconds)[0],
        "cpu_worst": max(cpu_seconds),
        "steps": steps,
        "size_changes": sum(before != after for before, after in pairwise(sizes)),
        "least_share": min(shares),
        "largest_share": max(shares),
    }


def training_step(model: nn.Module, image: Tensor, batch: int) -> Callable[[], None]:
    """Forward, loss, backward and SGD with momentum, without a budget."""
    model.train()
    images = torch.randn(batch, *image.shape[1:])
    labels = torch.arange(batch) % CLASSES
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    def step() -> None:
        optimiser.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimiser.step()

    return step


def run(options: argparse.Namespace) -> Report:
    """Measure all networks at all learning rates, and a training step."""
    report = new_report(options, budget=BUDGET, measurements=[])
    for name in options.networks:
        for rate in options.rates:
            print(f"{name}, learning rate {rate:g}", flush=True)
            torch.manual_seed(options.seed)
            model, image = build(name, options.quick)
            budget, strides = CostBudget(model, image, BUDGET), strides_of(model)
            found = walk(budget, Movement(strides, rate, options.seed), options.steps)
            labels = {"network": name, "size": list(image.shape[2:]), "rate": rate}
            layers = {"layers": len(strides), "strides": sum(map(len, strides))}
            report["measurements"].append({**labels, **layers, **found})
    model, image = build("resnet18", options.quick)
    step = training_step(model, image, options.batch)
    timing = measure({"resnet18": step}, effort_of(options))["resnet18"]
    report["training_step"] = entry(timing, batch=options.batch, size=list(image.shape[2:]))
    report["goals"] = goals(report)
    return report


def goals(report: Report) -> list[dict[str, Any]]:
    """The largest median and the longest time of all rows, and the budgets used."""
    rows = report["measurements"]
    return [
        goal("median, ms, of the slowest row", 1e3 * max(r["median"] for r in rows), at_most=2.0),
        goal("longest, ms, of all rows", 1e3 * max(r["worst"] for r in rows), at_most=20.0),
        goal("largest share of a budget", max(r["largest_share"] for r in rows), at_most=1.0),
    ]


HEADER = (
    "network",
    "learning rate",
    "input",
    "layers",
    "strides",
    "steps with other map sizes",
    "project_, ms",
    "longest, ms",
    "processor time, ms",
    "longest, ms",
    "share of the budget, %",
)


def tables(report: Report) -> str:
    """All tables of a report, in Markdown."""
    step = report["training_step"]
    return "\n\n".join(
        [
            ratio_table(report["goals"]),
            f"A budget of {report['budget']:g} times the cost of the converted network:",
            split_table(HEADER, map(_line, report["measurements"]), keys=2),
            f"A training step of the converted resnet18, without a budget, for a batch of "
            f"{step['batch']} images of {_size(step)}: {milliseconds(step)} ms.",
        ]
    )


def _line(row: dict[str, Any]) -> list[str]:
    return [
        row["network"],
        f"{row['rate']:g}",
        _size(row),
        row["layers"],
        row["strides"],
        f"{row['size_changes']} of {row['steps']}",
        milliseconds(row),
        *(number(1e3 * row[key]) for key in ("worst", "cpu_median", "cpu_worst")),
        f"{100 * row['least_share']:.1f} to {100 * row['largest_share']:.1f}",
    ]


def _size(row: dict[str, Any]) -> str:
    return " x ".join(map(str, row["size"]))


def main(arguments: Sequence[str] | None = None) -> Report:
    parser = parser_of("budget", __doc__, repeats=5)
    add = parser.add_argument
    add("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    add("--rates", nargs="+", type=float, default=list(RATES), help="learning rates of the strides")
    add("--steps", type=int, default=300, help="steps of each network and rate")
    add("--batch", type=int, default=16, help="images of the training step")
    options = start(parser, arguments, QUICK)
    return finish(options, run(options), tables)


if __name__ == "__main__":
    main()
