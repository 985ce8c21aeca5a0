"""The short table of README.md: what conversion gains at equal cost, and how long a step takes."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from benchmarks.common import select
from experiments.markdown import table

NETWORK = "torchvision resnet18"
METHODS = {
    "strided": "strided, as built",
    "blur": "blur pooling before each strided convolution",
    "fixed": "converted, equal fixed strides",
    "measured": "converted, strides by measured losses",
    "learned": "converted, strides by gradients",
}
DATASETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}


def gain_table(rows: Sequence[Mapping[str, Any]], times: Iterable[Mapping[str, Any]]) -> str:
    """A line for each method with the accuracy on each data set, and a sentence on the time.

    Args:
        rows: rows of `benchmarks.scratch`.
        times: rows of `benchmarks.conversion_time`.
    """
    lines = []
    for method, label in METHODS.items():
        found = {name: _of(rows, method, name) for name in DATASETS}
        costs = [row["multiply_adds"] for each in found.values() for row in each]
        lines.append([label, *map(_accuracy, found.values()), _range(costs)])
    header = ["ResNet-18", *DATASETS.values(), "MACs an image"]
    return f"{table(header, lines)}\n\n{_legend(rows, times)}"


def _of(rows: Iterable[Mapping[str, Any]], method: str, dataset: str) -> list[Any]:
    return select(rows, network=NETWORK, method=method, dataset=dataset)


def _accuracy(rows: Sequence[Mapping[str, Any]]) -> str:
    values = [row["test_accuracy"] for row in rows]
    return f"{mean(values):.1f} ± {stdev(values):.1f} %"


def _range(costs: Sequence[float]) -> str:
    ends = dict.fromkeys(f"{end(costs) / 1e6:.1f}" for end in (min, max))
    return f"{'–'.join(ends)} M"


def _legend(rows: Sequence[Mapping[str, Any]], times: Iterable[Mapping[str, Any]]) -> str:
    seeds = {len(_of(rows, method, name)) for method in METHODS for name in DATASETS}
    if len(seeds) > 1:
        raise ValueError(f"methods have {sorted(seeds)} seeds: train the missing ones first")
    ratios = {row["dtype"]: row["measured"] for row in times if row["network"] == NETWORK}
    return (
        f"Mean ± standard deviation of {seeds.pop()} seeds. A training step of the converted\n"
        f"network takes {ratios['float32']:.2f} times as long as one of the strided network in\n"
        f"float32, and {ratios['bf16']:.2f} times in bfloat16, on two CPU cores, without\n"
        "gradients of the strides and without the further passes that measure losses now and then."
    )
