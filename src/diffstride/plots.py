"""Plots of learned strides, windows, and accuracy against cost.

Every function returns its figure. With a ``path`` it also writes the figure to that file, whose
ending sets the format (``.png``, ``.svg``, ``.pdf``).
"""

import csv
import os
from collections.abc import Mapping, Sequence
from functools import partial
from math import ceil, inf, sqrt
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diffstride._extras import require
from diffstride._stride_text import stride_text
from diffstride.graph.example_inputs import cast_to_weights
from diffstride.graph.fake_run import evaluating
from diffstride.pooling.fixed import FixedSpectralPooling
from diffstride.pooling.learnable import DiffStride
from diffstride.spectral.axis_plan import Axis, window

try:
    from matplotlib import colormaps
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator
except ImportError:
    require("plots", "diffstride.plots")
    raise

AXES = {1: ("stride",), 2: ("height", "width"), 3: ("depth", "height", "width")}
STYLES = {"width": "--", "depth": ":"}
COLOURS = {"width": "C1", "depth": "C2"}
MARKERS = ("o", "^", "s", "v", "D")
Trajectories = dict[str, tuple[list[int], list[float]]]
File = str | os.PathLike[str] | None


def read_trajectories(metrics: str | os.PathLike[str]) -> Trajectories:
    """Read steps and strides by ``LAYER/AXIS`` from the ``metrics.csv`` of a run.

    The columns are ``step`` and ``stride/LAYER/AXIS``; cells may be empty.
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


def trajectories_of(history: Sequence[Mapping[str, float]]) -> Trajectories:
    """Stride trajectories from the `diffstride.stride_scalars` after steps 1, 2, …

    >>> trajectories_of([{"stride/pool/height": 2.0}, {"stride/pool/height": 1.9}])
    {'pool/height': ([1, 2], [2.0, 1.9])}
    """
    steps = list(range(1, len(history) + 1))
    return {
        name.removeprefix("stride/"): (steps, [scalars[name] for scalars in history])
        for name in (history[0] if history else ())
    }


def plot_stride_trajectories(
    trajectories: Trajectories, path: File = None, ax: Axes | None = None
) -> Figure:
    """Plot strides over training steps, with a colour per layer and a line style per axis.

    Args:
        trajectories: steps and strides by ``LAYER/AXIS``, as `read_trajectories` returns them.
        path: file to write; None writes none.
        ax: axes to draw into; None makes a figure.

    Returns:
        The figure, that of ``ax`` where it is given.

    >>> figure = plot_stride_trajectories({"pool/height": ([0, 9], [2.0, 1.7])})
    >>> figure.axes[0].get_ylabel()
    'stride'
    """
    # Without pyplot, which keeps global state and needs a display.
    axes = Figure(figsize=(8, 5), layout="constrained").add_subplot() if ax is None else ax
    axes.set(xlabel="step", ylabel="stride", title="Learned strides")
    layers = list(dict.fromkeys(name.rpartition("/")[0] or name for name in trajectories))
    for name, (steps, strides) in trajectories.items():
        layer, _, axis = name.rpartition("/")
        colour = colormaps["viridis"](layers.index(layer or name) / max(1, len(layers)))
        axes.plot(steps, strides, STYLES.get(axis, "-"), color=colour, label=name)
    axes.grid(alpha=0.3)
    if trajectories:
        axes.legend(fontsize="x-small", ncols=2)
    root: Any = axes.figure.figure  # also of axes in a subfigure
    return _save(root, path)


def _save(figure: Figure, path: File, dpi: int = 120) -> Figure:
    if path is not None:
        figure.savefig(path, dpi=dpi)
    return figure


def plot_windows(model: nn.Module, example: Any, path: File = None) -> Figure:
    """Plot the windows of a network, as gain over frequency with a panel per pooling layer.

    Frequencies are in cycles per sample of the layer's input. Dots are the bins that are kept. A
    vertical line marks the cutoff, where the gain reaches 0. The legend has the strides in use.

    Args:
        model: a network with `DiffStride` or `FixedSpectralPooling` layers.
        example: an input, or a tuple of inputs; the model runs on it in evaluation mode.
        path: file to write; None writes none.

    Returns:
        The figure.

    Raises:
        ValueError: the model runs no such layer.

    >>> from diffstride import DiffStride
    >>> figure = plot_windows(nn.Sequential(DiffStride(2.0)), torch.zeros(1, 1, 32, 32))
    >>> figure.axes[0].get_title()
    '0\\n32 x 32 → 16 x 16'
    """
    windows = _pooled_axes(model, example)
    if not windows:
        raise ValueError(
            f"{type(model).__name__} runs no DiffStride or FixedSpectralPooling layer on this "
            "example, so it has no windows to plot: call diffstride.convert first"
        )
    columns = min(5, ceil(sqrt(len(windows))))
    rows = ceil(len(windows) / columns)
    figure = Figure(figsize=(max(6, 2.8 * columns), 0.6 + 2.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for panel, (name, layer_axes) in zip(panels.flat, windows.items(), strict=False):
        _draw_windows(panel, name, layer_axes)
    for panel in panels.flat[len(windows) :]:
        panel.set_axis_off()
    figure.supxlabel("frequency, cycles per sample", fontsize="medium")
    figure.supylabel("gain", fontsize="medium")
    return _save(figure, path, dpi=100)


@torch.no_grad()
def _pooled_axes(model: nn.Module, example: Any) -> dict[str, tuple[Axis, ...]]:
    """The axes of each pooling layer for its first input, in order of execution."""
    axes: dict[str, tuple[Axis, ...]] = {}

    def note(name: str, layer: Any, inputs: tuple[Tensor, ...]) -> None:
        axes.setdefault(name, layer.plan(inputs[0].shape[2:]))

    hooks = [
        layer.register_forward_pre_hook(partial(note, name))
        for name, layer in model.named_modules()
        if isinstance(layer, DiffStride | FixedSpectralPooling)
    ]
    inputs = cast_to_weights(example, model)
    try:
        with evaluating(model):
            model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return axes


def _draw_windows(panel: Any, name: str, axes: Sequence[Axis]) -> None:
    before = " x ".join(str(axis.size) for axis in axes)
    after = " x ".join(str(axis.output_size) for axis in axes)
    panel.set_title(f"{name}\n{before} → {after}", fontsize="small")
    for label, axis in zip(AXES[len(axes)], axes, strict=True):
        style = {"linestyle": STYLES.get(label, "-"), "color": COLOURS.get(label, "C0")}
        gains, (frequencies, heights) = window(axis), _curve(axis)
        panel.plot(
            frequencies, heights, label=f"{label} {stride_text(axis.stride, axis.size)}", **style
        )
        panel.plot([k / axis.size for k in range(len(gains))], gains, ".", color=style["color"])
        panel.axvline(frequencies[-2], alpha=0.4, **style)
    panel.set(xlim=(0, 0.5), ylim=(-0.03, 1.08))
    panel.grid(alpha=0.3)
    panel.legend(fontsize="x-small", loc="lower left")


def _curve(axis: Axis) -> tuple[list[float], list[float]]:
    """The corners of a window: frequencies in cycles per sample, and gains."""
    cutoff = inf if axis.flat else axis.cutoff
    end = min(cutoff, axis.output_size / 2)  # the cutoff, or where the spectrum is cropped
    flat = min(max(cutoff - axis.transition, 0.0), end)
    ramp = [(k, min(max((cutoff - k) / axis.transition, 0.0), 1.0)) for k in (flat, end)]
    corners = [(0.0, 1.0), *ramp, (end, 0.0), (axis.size / 2, 0.0)]
    return [k / axis.size for k, _ in corners], [gain for _, gain in corners]


class CostPoint(NamedTuple):
    """A point of accuracy against cost: mean accuracy in percent and multiply-adds.

    ``spread`` is the spread of the accuracy over seeds, ``cost_range`` the least and largest
    multiply-adds. Points with the same ``label`` share a colour, with the same ``start`` a marker.
    """

    panel: str
    label: str
    start: str
    multiply_adds: float
    accuracy: float
    spread: float | None = None
    cost_range: tuple[float, float] | None = None

    @property
    def cost_bar(self) -> list[list[float]] | None:
        """Lengths of the horizontal error bar to the left and right, in millions."""
        if self.cost_range is None or self.cost_range[0] == self.cost_range[1]:
            return None
        low, high = self.cost_range
        return [[(self.multiply_adds - low) / 1e6], [(high - self.multiply_adds) / 1e6]]


class LearnedStrides(NamedTuple):
    """Learned strides of one network, by layer: one number per axis."""

    panel: str
    label: str
    layers: dict[str, Sequence[float]]


def pareto_front(points: Sequence[CostPoint]) -> list[CostPoint]:
    """The Pareto front, by cost: points that no point of the same or lower cost beats.

    >>> points = [CostPoint("", name, "", cost, accuracy) for name, cost, accuracy in
    ...           [("a", 2, 80.0), ("b", 3, 79.0), ("c", 4, 81.0)]]
    >>> [point.label for point in pareto_front(points)]
    ['a', 'c']
    """
    front: list[CostPoint] = []
    for point in sorted(points, key=lambda point: (point.multiply_adds, -point.accuracy)):
        if not front or point.accuracy > front[-1].accuracy:
            front.append(point)
    return front


def plot_accuracy_against_cost(points: Sequence[CostPoint], path: File = None) -> Figure:
    """Plot accuracy against multiply-adds, with a panel and a Pareto front per data set.

    Args:
        points: the points; ``panel`` is their data set.
        path: file to write; None writes none.

    Returns:
        The figure.

    >>> figure = plot_accuracy_against_cost([CostPoint("digits", "a", "2,2", 35e6, 87.0)])
    >>> [panel.get_title() for panel in figure.axes]
    ['digits']
    """
    figure, panels = _panels([point.panel for point in points], "Accuracy against cost")
    colours = _colours([point.label for point in points])
    starts = list(dict.fromkeys(point.start for point in points))
    for name, axes in panels.items():
        shown = [point for point in points if point.panel == name]
        front = pareto_front(shown)
        costs = [point.multiply_adds / 1e6 for point in front]
        line = {"color": "0.7", "zorder": 0, "label": "Pareto front"}
        axes.plot(costs, [point.accuracy for point in front], **line)
        for point in shown:
            axes.errorbar(
                point.multiply_adds / 1e6,
                point.accuracy,
                point.spread,
                point.cost_bar,
                fmt=MARKERS[starts.index(point.start) % len(MARKERS)],
                capsize=3,
                color=colours[point.label],
                label=f"{point.label}, from {point.start}",
            )
        axes.set(xlabel="multiply-adds per image in millions", ylabel="test accuracy in %")
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes.xaxis.set_major_formatter("{x:g}")  # not powers of ten
        axes.xaxis.set_minor_formatter("")
    _legend(figure)
    return _save(figure, path)


def plot_learned_strides(runs: Sequence[LearnedStrides], path: File = None) -> Figure:
    """Plot learned strides over the layers of networks, with height solid and width dashed.

    Args:
        runs: the strides of each network; ``panel`` is its data set.
        path: file to write; None writes none.

    Returns:
        The figure.

    >>> figure = plot_learned_strides([LearnedStrides("digits", "a", {"pool": [1.7, 1.9]})])
    >>> [float(line.get_ydata()[0]) for line in figure.axes[0].lines]
    [1.7, 1.9]
    """
    figure, panels = _panels(
        [run.panel for run in runs], "Learned strides, height solid and width dashed"
    )
    colours = _colours([run.label for run in runs])
    for run in runs:
        axes = panels[run.panel]
        lines = zip(*run.layers.values(), strict=True)
        for strides, style in zip(lines, ("-", "--", ":"), strict=False):
            look = {"color": colours[run.label], "marker": "o", "markersize": 4}
            axes.plot(list(run.layers), strides, style, label=run.label, **look)
        axes.set(xlabel="layer", ylabel="stride")
        axes.tick_params(axis="x", labelrotation=20)
    _legend(figure)
    return _save(figure, path)


def _panels(names: Sequence[str], title: str) -> tuple[Figure, dict[str, Axes]]:
    """A figure with a panel for each name, side by side."""
    names = list(dict.fromkeys(names))
    figure = Figure(figsize=(6 * max(1, len(names)), 6), layout="constrained")
    figure.suptitle(title)
    panels = {}
    for column, name in enumerate(names, start=1):
        panels[name] = figure.add_subplot(1, len(names), column, title=name)
        panels[name].grid(alpha=0.3)
    return figure, panels


def _colours(labels: Sequence[str]) -> dict[str, tuple[float, ...]]:
    labels = list(dict.fromkeys(labels))
    return {label: colormaps["tab10"](i % 10) for i, label in enumerate(labels)}


def _legend(figure: Figure) -> None:
    """Draw one legend below all panels, with each label once."""
    found = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    if found:
        place = {"loc": "outside lower center", "ncols": min(2, len(figure.axes))}
        figure.legend(list(found.values()), list(found), fontsize="x-small", **place)
