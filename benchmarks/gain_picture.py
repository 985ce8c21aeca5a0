"""The picture of what conversion gains: accuracy against MACs, strided and converted."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib.figure import Figure

from benchmarks.common import select

NETWORK = "torchvision resnet18"
DATASETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
COLOURS = {"strided": "#c0392b", "blur": "#7f8c8d", "fixed": "#2471a3", "learned": "#1e8449"}
LABELS = {
    "strided": "as built, strided",
    "blur": "blur pooling",
    "fixed": "converted, equal strides",
    "learned": "converted, learned strides",
}


def plot_gain(rows: Sequence[dict[str, Any]], path: Path) -> Figure:
    """Draw the mean accuracy of each method at its mean MACs, a panel for each data set.

    Bars are one standard deviation of the seeds. Runs of fixed strides at several costs are joined.
    """
    rows = select(rows, network=NETWORK)
    datasets = [name for name in DATASETS if select(rows, dataset=name, method="strided")]
    figure = Figure(figsize=(4.2 * len(datasets), 3.6), layout="constrained")
    for panel, dataset in zip(
        figure.subplots(1, len(datasets), squeeze=False)[0], datasets, strict=True
    ):
        for kind, colour in COLOURS.items():
            _draw(panel, kind, colour, select(rows, dataset=dataset))
        panel.set(title=f"ResNet-18, {DATASETS[dataset]}", xlabel="MACs an image, in millions")
        panel.set_ylabel("test accuracy in %")
        most = max(row["multiply_adds"] for row in select(rows, dataset=dataset)) / 1e6
        panel.set_xlim(0.4 * most, 1.08 * most)
        panel.margins(y=0.15)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8, loc="best")
    figure.savefig(path, dpi=110)
    return figure


def _draw(panel: Any, kind: str, colour: str, rows: Sequence[dict[str, Any]]) -> None:
    # "fixed, 0.7 of the cost" belongs to the line of "fixed".
    methods = {row["method"] for row in rows if f"{row['method']}, 0.".startswith(f"{kind}, 0.")}
    points = sorted(_point(select(rows, method=method)) for method in methods)
    if points:
        costs, accuracies, spreads = zip(*points, strict=True)
        panel.errorbar(
            costs, accuracies, spreads, color=colour, marker="o", capsize=3, label=LABELS[kind]
        )


def _point(rows: Sequence[dict[str, Any]]) -> tuple[float, float, float]:
    accuracies = [row["test_accuracy"] for row in rows]
    spread = stdev(accuracies) if len(accuracies) > 1 else 0.0
    return mean(row["multiply_adds"] for row in rows) / 1e6, mean(accuracies), spread
