"""The picture of what conversion gains: accuracy against MACs, strided and converted."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib.figure import Figure

from benchmarks.common import select
from diffstride._picture_style import COLOURS, DPI, INK, WIDTH, label_right, styled, wrapped

NETWORK = "torchvision resnet18"
DATASETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
LINES = {
    "strided": ("as built, strided", COLOURS[0]),
    "blur": ("blur pooling", INK),
    "fixed": ("converted, equal strides", COLOURS[1]),
    "measured": ("converted, learned strides", COLOURS[2]),
}


@styled
def plot_gain(rows: Sequence[dict[str, Any]], path: Path) -> Figure:
    """Draw the mean accuracy of each method at its mean MACs, a panel for each data set.

    Bars are one standard deviation of the seeds. Runs of fixed strides at several costs are joined.
    """
    rows = select(rows, network=NETWORK)
    datasets = [name for name in DATASETS if select(rows, dataset=name, method="strided")]
    height = 0.7 + 1.9 * len(datasets)
    figure = Figure(figsize=(WIDTH, height))
    figure.subplots_adjust(0.12, 0.42 / height, 0.67, 1 - 0.28 / height, hspace=0.32)
    panels = figure.subplots(len(datasets), 1, squeeze=False)[:, 0]
    for panel, dataset in zip(panels, datasets, strict=True):
        shown = select(rows, dataset=dataset)
        lines = {kind: _points(kind, shown) for kind in LINES}
        for kind, points in lines.items():
            _draw(panel, LINES[kind][1], points)
        panel.set_title(f"ResNet-18, {DATASETS[dataset]}: accuracy in %", loc="left")
        most = max(row["multiply_adds"] for row in shown) / 1e6
        panel.set_xlim(0.4 * most, 1.08 * most)
        panel.margins(y=0.15)
        panel.grid()
        ends = [(*points[-1][:2], *LINES[kind]) for kind, points in lines.items() if points]
        label_right(panel, [(x, y, wrapped(text, 18), colour) for x, y, text, colour in ends])
    panels[-1].set_xlabel("MACs an image, in millions")
    figure.savefig(path, dpi=DPI)
    return figure


def _points(kind: str, rows: Sequence[dict[str, Any]]) -> list[tuple[float, float, float]]:
    # "fixed, 0.7 of the cost" belongs to the line of "fixed".
    methods = {row["method"] for row in rows if f"{row['method']}, 0.".startswith(f"{kind}, 0.")}
    return sorted(_point(select(rows, method=method)) for method in methods)


def _draw(panel: Any, colour: str, points: Sequence[tuple[float, float, float]]) -> None:
    if points:
        costs, accuracies, spreads = zip(*points, strict=True)
        panel.errorbar(
            costs, accuracies, spreads, color=colour, marker="o", ms=4, capsize=2.5, lw=1.2
        )


def _point(rows: Sequence[dict[str, Any]]) -> tuple[float, float, float]:
    accuracies = [row["test_accuracy"] for row in rows]
    spread = stdev(accuracies) if len(accuracies) > 1 else 0.0
    return mean(row["multiply_adds"] for row in rows) / 1e6, mean(accuracies), spread
