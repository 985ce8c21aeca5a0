"""Write ``docs/benchmarks.md`` and ``docs/benchmark_targets.md`` from the files of results."""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import (
    budget,
    conversion_time,
    frozen,
    layer,
    network,
    processes,
    scaling,
    signals,
    step_picture,
)
from benchmarks.common import RESULTS, Report, write_text
from benchmarks.gpu import page as gpu_page
from benchmarks.machine import ROOT
from benchmarks.tables import goal_table

PAGE = ROOT / "docs" / "benchmarks.md"
TARGETS = ROOT / "docs" / "benchmark_targets.md"
PICTURE = "images/training_step.png"  # as seen from the page
TITLES = {
    "layer": "One layer",
    "network": "A network",
    "scaling": "How the cost grows",
    "signals": "Signals",
    "frozen": "Frozen networks",
    "conversion_time": "Converted networks",
    "budget": "Budgets",
    "processes": "Several processes",
}
TABLES: dict[str, Callable[[Report], str]] = {
    "layer": layer.tables,
    "network": network.tables,
    "scaling": scaling.tables,
    "signals": signals.tables,
    "frozen": frozen.tables,
    "conversion_time": conversion_time.tables,
    "budget": budget.tables,
    "processes": processes.tables,
}
OTHER_PAGES = ("soak",)  # benchmarks whose file is shown elsewhere
HEAD = """\
# Benchmarks

<!-- Written by `python -m benchmarks.render` from the files under benchmarks/results. -->

{opening}

The sections below compare times, memory and MACs (multiply-adds) of the pooling layers with those
of their alternatives: for one layer, for whole networks, for growing sizes, and for frozen
networks. On a quiet machine `make bench` measures everything and writes this page.

## How the numbers are measured

- **Turns.** The contenders of a row take turns in one process, in a new random order each round. So
  a drift of the machine affects all of them alike.
- **Samples.** Three calls warm up, fewer for slow contenders. A sample is as many calls as fill
  10 ms. Tables show the median and, in brackets, the quartiles over the samples. Slow contenders
  have fewer samples, at least three. Files hold seconds, tables milliseconds.
- **Training** means strides that change at every step: the layers compute their matrices anew.
  **Evaluation** means strides that do not change.
- **Allocator.** By default glibc takes the memory of large tensors (always above 32 MB) from the
  kernel and returns it, at one page fault per 4 KB. This slows every function that returns a new
  tensor. `--allocator keep` keeps freed memory, as jemalloc and tcmalloc do. The tables use the
  default, which a user gets without any setting, but for frozen networks. The files also hold the
  page faults of a call.
- **Facts.** Every file holds seed, threads, processor, commit and versions.

Limits: the numbers hold for the processor, threads, dtypes and versions that a section names.
"""
TARGETS_HEAD = """\
# Targets of the benchmarks

<!-- Written by `python -m benchmarks.render` from the files under benchmarks/results. -->

This page is for developers of the library. It compares the ratios of
[Benchmarks](benchmarks.md) with their targets. A change should miss no target that is reached
today. An aim is a value that would be good to reach.
"""
OPENING = "network.json"
OPENING_TEXT = """\
A training step of a ResNet-18 of width {width} with learned strides takes {stopband} times as
long as that of the strided network, and with average pooling {average} times. The published layer
takes {reference} times as long, mostly because its maps are larger: `edge="passband"`, with maps
of those sizes, takes {passband} times. The default layer is {faster} times as fast as the published
one in this network, on {batch} images of {size} x {size} a step."""
INTRODUCTIONS = {
    "layer": """\
This section times one layer at stride 2, with both edges of the window. `passband` and `stopband`
have the window in the output (`straight_through=False`). The alternatives are:

- `reference`, the published layer on FFTs, always in float32 and contiguous;
- `average`, `F.avg_pool2d`;
- `convolution`, a strided 3 x 3 convolution of as many channels;
- `interpolation`, `F.interpolate(antialias=True)` to the same sizes, contiguous.

The floor of a row is a lower limit of its time. It is the larger of two times: its MACs over the
measured rate of matrix products (the best of a few large squares), and its bytes in and out over
the measured rate of copying its input into a new tensor. Forward and backward has twice the floor
of forward, for the products and the traffic of the input's gradient. The products of the strides'
gradient are not counted. A dtype that the processor cannot multiply is computed in float32, and has
the rate of float32.""",
    "network": """\
This section measures resnet18 with every pooling.

- `average` is the network with `F.avg_pool2d` as its pooling, at the map sizes of `stopband`. A
  pooling of stride 1 is left out.
- `average, passband sizes` averages adaptively to the sizes of `passband`, which `reference` has,
  too.
- Every learned stride of a network is used as published, the strides of 1 included.

Peak memory is the rise of the resident memory of a process of its own, which returns freed memory
at once. It holds weights, gradients, momenta, activations, and the work space of convolutions and
FFTs. MACs are those of convolutions and matrix products; FFTs are not counted.""",
    "scaling": """\
This section shows how time grows with the map size, the batch and the channels. Stride 2, the
published window, float32, next to the published layer on FFTs. In the tables of growing size each
tensor has 2 to 4 million elements.""",
    "signals": """\
This section times the default layer on maps of one axis, in float32, contiguous, of 64 channels and
about 2 million samples in all. `transforms` is the layer where it transforms signals of all lengths
that then take fewer MACs, `products` where it has matrices at all lengths, and `average` is
`F.avg_pool1d`. [Long axes](layer.md#long-axes) says which of the two the layer takes.""",
    "frozen": """\
This section times inference in float32. The strides are those that networks start from, so all maps
have the sizes of the `strided` network.

- Freed memory is kept (`--allocator keep`). By default glibc has one network or another fetch
  memory from the kernel in every call, as chance has it, which takes longer than all pooling. In a
  program of yours, jemalloc or tcmalloc keep it, too.
- `learned` has the layers as they are trained, `frozen` has constant matrices.
- `compiled` is `torch.compile` with its defaults.
- onnxruntime runs on as many threads as torch, from the file that
  `torch.onnx.export(dynamo=True)` writes for any batch.""",
    "conversion_time": """\
This section times a training step (forward, backward, optimiser) of networks that stride, as they
are and after `convert`. Held to the cost before, the strides cost at most the MACs of the strided
network, and `CostBudget.project_` is part of the step. The last column is such a network whose
strides get no gradient and stay, as in the steps of `MeasuredStrides` that measure nothing. MACs
and times are ratios to the strided network. Times are those of float32 and of bf16 under autocast,
channels-last. "images" is their height and width.""",
    "budget": """\
This section times `CostBudget.project_`, the call after each training step that holds a converted
network of torchvision to its budget. The strides move by SGD with momentum 0.9 on noisy gradients
that pull them towards random targets. The learning rate says how fast: at the largest one almost
every step changes a map size, far more often than in a training.

- `project_` is measured alone, by the clock of the wall: the median and, in brackets, the quartiles
  over the steps, and the longest step. Garbage collection is off meanwhile.
- Processor time is that of the process, which other programs on the machine affect less.
- The time does not depend on the batch or on the weights. A training step of resnet18 gives the
  scale.""",
    "processes": """\
The same training on one, two and four processes of one host, connected by gloo on its CPU. Each
takes its share of one batch. Batch norm is in evaluation mode. `project` clamps the strides after a
step, `budget` holds the cost. Differences are the largest over all steps, layers and axes. Bytes
are what a process gives to gloo in a step. Host reads are counted by the rule for accelerators,
where each of them waits for the device. Without a budget each layer reads its own strides once a
step; a budget reads those of all layers at once. There are no times, as the processes share the
cores of the host.""",
}
FACTS = {
    "command": "command",
    "processor": "processor",
    "threads": "threads",
    "multiplies_bfloat16": "multiplies bf16 itself",
    "allocator": "allocator",
    "seed": "seed",
    "commit": "commit",
    "torch": "torch",
    "python": "Python",
    "diffstride": "diffstride",
    "system": "system",
    "date": "date",
}


def read_reports(folder: Path) -> dict[str, Report]:
    """The reports in a folder by file name, those of one benchmark together."""
    found = {path.name: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    reports = {k: report for k, report in found.items() if report["benchmark"] not in OTHER_PAGES}
    rank = list(TABLES).index
    for name, report in reports.items():
        if report["benchmark"] not in TABLES:
            raise ValueError(
                f"{name} is of benchmark {report['benchmark']!r}, expected one of {list(TABLES)}"
            )
    ordered = dict(sorted(reports.items(), key=lambda item: rank(item[1]["benchmark"])))
    return ordered | gpu_page.read_reports(folder / "gpu")


def page(reports: Mapping[str, Report]) -> str:
    """The page of results, from its reports alone."""
    sections = [HEAD.rstrip().replace("{opening}", _opening(reports))]
    for benchmark, title in TITLES.items():
        sections.append(f"## {title}\n\n{INTRODUCTIONS[benchmark]}")
        found = {name: r for name, r in reports.items() if r["benchmark"] == benchmark}
        sections += [_section(name, report) for name, report in found.items()]
        if not found:
            sections.append(f"No results yet: `python -m benchmarks.{benchmark}`.")
    sections.append(gpu_page.section(reports))
    return "\n\n".join(sections) + "\n"


def targets_page(reports: Mapping[str, Report]) -> str:
    """The page of targets, from the reports of the page of results."""
    sections = [TARGETS_HEAD.rstrip()]
    for name, report in reports.items():
        if any(goal["reached"] is not None for goal in report.get("goals", ())):
            sections.append(f"## {name}\n\n{goal_table(report['goals'])}")
    return "\n\n".join(sections) + "\n"


def _opening(reports: Mapping[str, Report]) -> str:
    """The bar chart of a training step, and what it shows."""
    if OPENING not in reports or reports[OPENING]["contract"]["quick"]:
        return f"No results yet: `python -m benchmarks.{OPENING.removesuffix('.json')}`."
    report = reports[OPENING]
    seconds = step_picture.step_seconds(report)
    ratio = {name: f"{each / seconds['strided']:.1f}" for name, each in seconds.items()}
    faster = seconds["reference"] / seconds["stopband"]
    text = OPENING_TEXT.format(**ratio, faster=f"{faster:.1f}", **report["network"])
    contract = report["contract"]
    where = f"{contract['threads']} threads of {contract['processor']}, in float32"
    return f"![A training step with each pooling]({PICTURE})\n\n{text}\n\n*Measured on {where}.*"


def _section(name: str, report: Report) -> str:
    tables = TABLES[report["benchmark"]](report)
    return f"### {name}\n\n{_facts(report['contract'])}\n\n{tables}"


def _facts(contract: Mapping[str, Any]) -> str:
    lines = [f"- {label}: {_shown(key, contract)}" for key, label in FACTS.items()]
    if contract["quick"]:
        lines.insert(0, "- **A trial run at tiny sizes, no result.**")
    return "\n".join(lines)


def _shown(key: str, contract: Mapping[str, Any]) -> str:
    value = contract[key]
    if isinstance(value, bool):
        return "yes" if value else "no"
    if key == "commit" and contract["uncommitted_changes"]:
        return f"{value}, with uncommitted changes"
    return f"`{value}`" if key in ("command", "commit") else str(value)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.render", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the files")
    parser.add_argument("--page", type=Path, default=PAGE, help="file to write")
    parser.add_argument("--targets", type=Path, default=TARGETS, help="file of the targets")
    options = parser.parse_args(arguments)
    reports = read_reports(options.results)
    write_text(options.page, page(reports))
    write_text(options.targets, targets_page(reports))
    if OPENING in reports and not reports[OPENING]["contract"]["quick"]:
        picture = options.page.parent / PICTURE
        picture.parent.mkdir(parents=True, exist_ok=True)
        step_picture.plot_steps(reports[OPENING], picture)


if __name__ == "__main__":
    main()
