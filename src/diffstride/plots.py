"""Pictures of what a training run learned."""

import csv
import os
from pathlib import Path

from matplotlib import colormaps
from matplotlib.figure import Figure

Trajectories = dict[str, tuple[list[int], list[float]]]


def read_trajectories(metrics: str | os.PathLike[str]) -> Trajectories:
    """The strides in a run's ``metrics.csv``.

    Arguments:
        metrics: a CSV file with a column ``step`` and columns ``stride/LAYER/AXIS``; cells may be
            empty.

    Returns:
        Steps and strides by ``LAYER/AXIS``, ordered by step.
    """
    trajectories: Trajectories = {}
    with Path(metrics).open(newline="") as file:
        for row in sorted(csv.DictReader(file), key=lambda row: int(row["step"])):
            for column, value in row.items():
                if column.startswith("stride/") and value:
                    steps, strides = trajectories.setdefault(column[7:], ([], []))
                    steps.append(int(row["step"]))
                    strides.append(float(value))
    return trajectories


def plot_stride_trajectories(trajectories: Trajectories, path: str | os.PathLike[str]) -> Figure:
    """Draw strides over the steps of training: a colour per layer, a line style per axis.

    Arguments:
        trajectories: steps and strides by ``LAYER/AXIS``, as `read_trajectories` returns them.
        path: picture to write, its ending names the format (``.png``, ``.svg``, ``.pdf``).

    Returns:
        The figure, for changes of one's own.

    >>> _ = plot_stride_trajectories({"pool/height": ([0, 9], [2.0, 1.7])}, "strides.png")
    ... # doctest: +SKIP
    """
    # A Figure of its own: pyplot would keep state and look for a display.
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="stride", title="Learned strides")
    layers = list(dict.fromkeys(name.rpartition("/")[0] or name for name in trajectories))
    for name, (steps, strides) in trajectories.items():
        layer, _, axis = name.rpartition("/")
        colour = colormaps["viridis"](layers.index(layer or name) / max(1, len(layers)))
        style = {"width": "--", "depth": ":"}.get(axis, "-")
        axes.plot(steps, strides, style, color=colour, label=name)
    axes.grid(alpha=0.3)
    if trajectories:
        axes.legend(fontsize="x-small", ncols=2)
    figure.savefig(path, dpi=120)
    return figure
