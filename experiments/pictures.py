"""The pictures of the results."""

from collections.abc import Iterable
from pathlib import Path

from diffstride.plots import (
    CostPoint,
    LearnedStrides,
    plot_accuracy_against_cost,
    plot_learned_strides,
)
from experiments.result_rows import Row
from experiments.seed_averages import average, tell_apart

FOLDER = "images"
COSTS, STRIDES = "accuracy_against_cost.png", "learned_strides.png"


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
            entry.cost_range("end"),
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
        plot_accuracy_against_cost(points, folder / COSTS)
    if strides:
        plot_learned_strides(strides, folder / STRIDES)
    return [folder / name for name, shown in ((COSTS, points), (STRIDES, strides)) if shown]
