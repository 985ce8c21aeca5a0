"""The pictures of the results."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mode

from diffstride.examples.averages import Entry, average
from diffstride.examples.rows import Row
from diffstride.plots import (
    CostPoint,
    LearnedStrides,
    plot_accuracy_against_cost,
    plot_learned_strides,
)

FOLDER = "images"
COSTS, STRIDES = "accuracy_against_cost.png", "learned_strides.png"


def draw(rows: Iterable[Row], folder: Path) -> list[Path]:
    """Draw accuracy against cost, and the learned strides; returns the pictures there are."""
    entries = average(rows)
    labels = _labels(entries)
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
        plot_accuracy_against_cost(points, folder / COSTS)
    if strides:
        plot_learned_strides(strides, folder / STRIDES)
    return [folder / name for name, shown in ((COSTS, points), (STRIDES, strides)) if shown]


def _labels(entries: Sequence[Entry]) -> list[str]:
    """What each is called, with its recipe where that is not the one that most have."""
    recipes = [entry["config"] for entry in entries]
    usual = mode(recipes) if recipes else None
    return [
        entry.label if recipe == usual else f"{entry.label} ({recipe})"
        for entry, recipe in zip(entries, recipes, strict=True)
    ]
