"""The picture of what conversion gains: accuracy against MACs, strided and converted."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from benchmarks.common import select
from diffstride._picture_style import COLOURS, DPI, INK, WIDTH, styled

DATASET = "cifar100"
NETWORKS = {
    "torchvision vgg11_bn": "VGG-11",
    "timm regnety_002": "RegNetY-200MF",
    "torchvision resnet18": "ResNet-18",
}
DISTANCE = 4.0  # of neighbours at the same MACs, in points
METHODS = {
    "strided": ("as built, strided", COLOURS[0]),
    "blur": ("blur pooling", INK),
    "fixed": ("converted, equal strides", COLOURS[1]),
    "measured": ("converted, learned strides", COLOURS[2]),
}


@styled
def plot_gain(rows: Sequence[dict[str, Any]], path: Path) -> Figure:
    """Draw the mean accuracy of each method at its mean MACs, for networks on one data set.

    Bars are one standard deviation of the seeds. Methods stand `DISTANCE` points apart, so that
    none hides another at the same MACs.
    """
    rows = select(rows, dataset=DATASET)
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    axes = figure.subplots()
    for number, (method, (label, colour)) in enumerate(METHODS.items()):
        points = [_point(found) for name in NETWORKS if (found := _runs(rows, name, method))]
        if points:
            costs, accuracies, spreads = zip(*points, strict=True)
            aside = DISTANCE * (number - (len(METHODS) - 1) / 2) / 72
            place = axes.transData + ScaledTranslation(aside, 0, figure.dpi_scale_trans)
            style: Any = {"fmt": "o", "ms": 4, "capsize": 2, "lw": 1.2, "transform": place}
            axes.errorbar(costs, accuracies, spreads, color=colour, label=label, **style)
            axes.update_datalim([(x, y + up) for x, y, s in points for up in (-s, s)])
    axes.margins(0.16, 0.12)
    axes.autoscale_view()
    for network, name in NETWORKS.items():
        points = [_point(found) for method in METHODS if (found := _runs(rows, network, method))]
        if points:
            top = max(accuracy + spread for _, accuracy, spread in points)
            axes.annotate(
                name,
                (mean(cost for cost, *_ in points), top),
                (0, 5),
                ha="center",
                size=7.5,
                textcoords="offset points",
            )
    axes.set_title("CIFAR-100: accuracy in %", loc="left")
    axes.set_xlabel("MACs an image, in millions")
    axes.grid()
    figure.legend(loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=DPI)
    return figure


def _runs(rows: Sequence[dict[str, Any]], network: str, method: str) -> list[dict[str, Any]]:
    return select(rows, network=network, method=method)


def _point(rows: Sequence[dict[str, Any]]) -> tuple[float, float, float]:
    accuracies = [row["test_accuracy"] for row in rows]
    spread = stdev(accuracies) if len(accuracies) > 1 else 0.0
    return mean(row["multiply_adds"] for row in rows) / 1e6, mean(accuracies), spread
