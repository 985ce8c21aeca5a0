"""The pictures of the results."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from diffstride.examples.averages import Entry, average, tell_apart
from diffstride.examples.rows import Row
from diffstride.plots import (
    CostPoint,
    LearnedStrides,
    plot_accuracy_against_cost,
    plot_learned_strides,
)

FOLDER = "images"
COSTS, STRIDES = "accuracy_against_cost.png", "learned_strides.png"
DPI = 120


def draw(rows: Iterable[Row], folder: Path) -> list[Path]:
    """Draw accuracy against cost, and the learned strides; returns the pictures there are."""
    entries = average(rows)
    labels = tell_apart(entries)
    points = [
        CostPoint(
            entry.dataset,
            label,
            entry.start,
            entry["multiply_adds_end"],
            entry.accuracy,
            entry.spread,
        )
        for entry, label in zip(entries, labels, strict=True)
    ]
    strides = [
        LearnedStrides(
            entry.dataset,
            f"{label}, from {entry.start}",
            row["strides_end"],
        )
        for entry, label in zip(entries, labels, strict=True)
        for row in entry.rows
        if row["strides_end"]
    ]
    folder.mkdir(parents=True, exist_ok=True)
    if points:
        figure = plot_accuracy_against_cost(points, folder / COSTS)
        _add_cost_ranges(figure, entries, points)
        figure.savefig(folder / COSTS, dpi=DPI)
    if strides:
        figure = plot_learned_strides(strides, folder / STRIDES)
        figure.suptitle("Learned strides, height solid and width dashed")
        figure.savefig(folder / STRIDES, dpi=DPI)
    return [folder / name for name, shown in ((COSTS, points), (STRIDES, strides)) if shown]


def _add_cost_ranges(figure: Figure, entries: Sequence[Entry], points: Sequence[CostPoint]) -> None:
    """A horizontal bar from the cheapest to the dearest network that a point is the mean of."""
    panels = {axes.get_title(): axes for axes in figure.axes}
    for entry, point in zip(entries, points, strict=True):
        low, high = entry.cost_range("end")
        if low < high:
            axes, mean = panels[point.panel], point.multiply_adds
            drawn = next(each for each in axes.containers if each.get_label() == _name(point))
            axes.errorbar(
                mean / 1e6,
                point.accuracy,
                xerr=[[(mean - low) / 1e6], [(high - mean) / 1e6]],
                fmt="none",
                capsize=3,
                ecolor=drawn[0].get_color(),
            )


def _name(point: CostPoint) -> str:
    return f"{point.label}, from {point.start}"
