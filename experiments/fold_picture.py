"""The picture of strides that were learned in folds: where each run keeps its samples."""

from collections.abc import Sequence
from itertools import accumulate
from operator import mul
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from diffstride._picture_style import COLOURS, DPI, INK, WIDTH, styled
from experiments.averages import Entry
from experiments.results import Row, initial_strides

AXES = {1: ("time",), 2: ("frequency", "time")}


def samples_left(row: Row, axis: int) -> list[float]:
    """The number of input samples for each sample behind each layer, on one axis.

    That is the product of the strides up to the layer, of which those before the first that learns
    are left out.

    >>> samples_left({"strides_end": {"blocks.1.0.pooling": [2.0], "blocks.2.0.pooling": [3.0]}}, 0)
    [2.0, 6.0]
    """
    return list(accumulate((float(each[axis]) for each in row["strides_end"].values()), mul))


@styled
def plot_strides_of_folds(entries: Sequence[Entry], path: Path) -> Figure:
    """Draw a line for each run, a row of panels for each start and a column for each axis.

    ``entries`` are those of strides that learned, in folds; ``path`` is the file to write.

    Raises:
        ValueError: there are none, or they have different numbers of axes.
    """
    if not entries:
        raise ValueError("no run of these recipes has learned strides in folds: train one first")
    counts = {len(next(iter(entry.learned.values()))) for entry in entries}
    if len(counts) > 1:
        raise ValueError(
            f"these recipes have strides on {' and '.join(map(str, sorted(counts)))} axes: give "
            "each kind a mark, and a picture, of its own"
        )
    (count,) = counts
    starts = {entry.start: list(initial_strides(entry.rows[0]).values()) for entry in entries}
    folds = sorted({row["fold"] for entry in entries for row in entry.rows})
    figure = Figure(figsize=(WIDTH, 0.75 + 1.5 * len(starts)), layout="constrained")
    panels = figure.subplots(len(starts), count, sharey=True, squeeze=False)
    for line, (start, layers) in zip(panels, starts.items(), strict=True):
        rows = [row for entry in entries if entry.start == start for row in entry.rows]
        for axis, panel in enumerate(line):
            _draw(panel, rows, folds, [strides[axis] for strides in layers], axis)
            panel.set_title(f"{AXES[count][axis]}, from {start}", fontsize=7.5, loc="left")
    figure.supxlabel("block that pools", fontsize=8, color=INK)
    figure.supylabel("input samples for each one left", fontsize=8, color=INK)
    handles: list[Any] = [
        Line2D([], [], color=COLOURS[number % len(COLOURS)], label=f"fold {fold}")
        for number, fold in enumerate(folds)
    ]
    handles.append(Line2D([], [], color=INK, ls="--", label="at the start"))
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles))
    figure.savefig(path, dpi=DPI)
    return figure


def _draw(
    panel: Any, rows: Sequence[Row], folds: Sequence[int], start: Sequence[float], axis: int
) -> None:
    places = range(1, len(start) + 1)
    panel.plot(places, list(accumulate(map(float, start), mul)), "--", color=INK, lw=1)
    for row in rows:
        colour = COLOURS[folds.index(row["fold"]) % len(COLOURS)]
        panel.plot(places, samples_left(row, axis), "o-", color=colour, lw=1, ms=3, alpha=0.8)
    panel.set_yscale("log", base=2)
    panel.yaxis.set_major_formatter("{x:g}")
    panel.set(xticks=list(places))
    panel.grid(axis="y")
