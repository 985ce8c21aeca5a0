"""Plots of learned strides, windows, and accuracy against cost.

Every function returns its figure. With a ``path`` it also writes the figure to that file, whose
ending sets the format (``.png``, ``.svg``, ``.pdf``). Figures are transparent and in grey ink, so
that they can be read on a white and on a black page, from a width of 360 pixels on.
"""

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from math import ceil, inf
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diffstride._extras import require
from diffstride._stride_text import stride_text
from diffstride.graph.example_inputs import cast_to_weights
from diffstride.graph.restoring import evaluating
from diffstride.pooling.fixed import FixedSpectralPooling
from diffstride.pooling.learnable import DiffStride
from diffstride.spectral.axis_plan import Axis, window

try:
    from matplotlib import colormaps
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import LogLocator

    from diffstride._picture_style import COLOURS, DPI, INK, WIDTH, label_right, styled, wrapped
except ImportError:
    require("plots", "diffstride.plots")
    raise

AXES = {1: ("stride",), 2: ("height", "width"), 3: ("depth", "height", "width")}
STYLES = {"width": "--", "depth": ":"}
AXIS_COLOURS: dict[str, str] = dict(zip(("height", "width", "depth"), COLOURS[1:], strict=False))
MARKERS = ("o", "^", "s", "v", "D")
Trajectories = dict[str, tuple[list[int], list[float]]]
File = str | os.PathLike[str] | None


def read_trajectories(metrics: str | os.PathLike[str]) -> Trajectories:
    """Read steps and strides by ``LAYER/AXIS`` from the ``metrics.csv`` of a run.

    The columns are ``step`` and ``stride/LAYER/AXIS``; cells may be empty.
    """
    with Path(metrics).open(newline="") as file:
        return trajectories_in(csv.DictReader(file))


def trajectories_in(rows: Iterable[Mapping[str, Any]]) -> Trajectories:
    """Steps and strides by ``LAYER/AXIS`` from rows such as those of ``metrics.csv``.

    >>> trajectories_in([{"step": 5, "stride/pool/height": 1.9}, {"step": "0", "loss": 2.0}])
    {'pool/height': ([5], [1.9])}
    """
    trajectories: Trajectories = {}
    for row in sorted(rows, key=lambda row: int(row["step"])):
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


@styled
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
    axes = Figure(figsize=(WIDTH, 3), layout="constrained").add_subplot() if ax is None else ax
    axes.set(xlabel="step", ylabel="stride", title="Learned strides")
    layers = list(dict.fromkeys(name.rpartition("/")[0] or name for name in trajectories))
    for name, (steps, strides) in trajectories.items():
        layer, _, axis = name.rpartition("/")
        # The middle of the map: its ends are too dark or too bright for one of the pages.
        shade = 0.33 + 0.45 * layers.index(layer or name) / max(1, len(layers) - 1)
        axes.plot(steps, strides, STYLES.get(axis, "-"), color=_shade(shade), label=name)
    axes.grid()
    if trajectories:
        columns = 2 if max(map(len, trajectories)) < 26 else 1
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=columns)
    root: Any = axes.figure.figure  # also of axes in a subfigure
    return _save(root, path)


def _shade(share: float) -> Any:
    return colormaps["viridis"](share)


def _save(figure: Figure, path: File) -> Figure:
    if path is not None:
        figure.savefig(path, dpi=DPI)
    return figure


@styled
def plot_windows(model: nn.Module, example: Any, path: File = None) -> Figure:
    """Plot the windows of a network, as gain over frequency with a panel per pooling layer.

    Frequencies are in cycles per sample of the layer's input. Dots are the bins that are kept. A
    vertical line marks the cutoff, where the gain reaches 0. The legend has the strides in use. The
    squares are the map before and after the layer, in one scale for all panels; the first two axes
    of maps of three.

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
    columns = min(2, len(windows))
    rows = ceil(len(windows) / columns)
    figure = Figure(figsize=(WIDTH, 0.4 + 1.75 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    largest = max(axis.size for axes in windows.values() for axis in axes)
    for panel, (name, layer_axes) in zip(panels.flat, windows.items(), strict=False):
        _draw_windows(panel, name, layer_axes)
        _draw_squares(panel, layer_axes, largest)
    for panel in panels.flat[len(windows) :]:
        panel.set_axis_off()
    figure.supxlabel("frequency, cycles per sample", fontsize=8)
    figure.supylabel("gain", fontsize=8)
    return _save(figure, path)


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
    panel.set_title(f"{name}\n{before} → {after}", fontsize=7.5 if len(name) < 24 else 6.5)
    for label, axis in zip(AXES[len(axes)], axes, strict=True):
        style = {"linestyle": STYLES.get(label, "-"), "color": AXIS_COLOURS.get(label, COLOURS[1])}
        gains, (frequencies, heights) = window(axis), _curve(axis)
        panel.plot(
            frequencies, heights, label=f"{label} {stride_text(axis.stride, axis.size)}", **style
        )
        panel.plot([k / axis.size for k in range(len(gains))], gains, ".", color=style["color"])
        panel.axvline(frequencies[-2], alpha=0.4, **style)
    panel.set(xlim=(0, 0.5), ylim=(-0.03, 1.08))
    panel.grid()
    panel.legend(loc="lower left", handlelength=1.4, borderaxespad=0.1)


def _draw_squares(panel: Any, axes: Sequence[Axis], largest: int) -> None:
    """Draw the map before and after a layer in the upper right corner, to scale."""
    corner = panel.inset_axes((0.62, 0.5, 0.36, 0.5))
    corner.set(xlim=(0, largest), ylim=(0, largest), aspect="equal", anchor="NE")
    corner.set_axis_off()
    thin = largest / 12  # the height of a map of one axis
    for sizes, look in (
        ([axis.size for axis in axes], {"fill": False, "edgecolor": INK, "lw": 1}),
        ([axis.output_size for axis in axes], {"facecolor": COLOURS[2], "alpha": 0.7, "lw": 0}),
    ):
        height, width = (sizes * 2)[:2] if len(sizes) > 1 else (thin, sizes[0])
        place = (largest - width, largest - height)
        corner.add_patch(Rectangle(place, width, height, clip_on=False, **look))


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
    """Learned strides of one network, by layer: one number per axis.

    ``start`` has the initial ones.
    """

    panel: str
    label: str
    layers: dict[str, Sequence[float]]
    start: Mapping[str, Sequence[float]] | None = None


@styled
def plot_accuracy_against_cost(points: Sequence[CostPoint], path: File = None) -> Figure:
    """Plot accuracy against multiply-adds, with a panel for each data set.

    Points of one label are joined by a line, which is labelled at its costliest point. Points of
    one start have the same marker.

    Args:
        points: the points; ``panel`` is their data set.
        path: file to write; None writes none.

    Returns:
        The figure.

    >>> figure = plot_accuracy_against_cost([CostPoint("digits", "a", "2,2", 35e6, 87.0)])
    >>> [panel.get_title("left") for panel in figure.axes]
    ['digits']
    """
    names = list(dict.fromkeys(point.panel for point in points))
    labels = list(dict.fromkeys(point.label for point in points))
    starts = list(dict.fromkeys(point.start for point in points))
    height = 0.5 + 3.0 * max(1, len(names))
    figure = Figure(figsize=(WIDTH, height))
    figure.subplots_adjust(0.12, 0.5 / height, 0.63, 1 - 0.5 / height, hspace=0.35)
    panels = figure.subplots(max(1, len(names)), squeeze=False)[:, 0]
    for axes, name in zip(panels, names, strict=False):
        shown = [point for point in points if point.panel == name]
        _draw_costs(axes, shown, labels, starts)
        axes.set_title(name, loc="left")
    panels[-1].set_xlabel("multiply-adds per image in millions")
    panels[0].set_ylabel("test accuracy in %")
    if len(starts) > 1:
        _mark_starts(figure, starts)
    return _save(figure, path)


def _draw_costs(
    axes: Axes, points: Sequence[CostPoint], labels: Sequence[str], starts: Sequence[str]
) -> None:
    ends = []
    for label in dict.fromkeys(point.label for point in points):
        colour = COLOURS[labels.index(label) % len(COLOURS)]
        line = sorted((p for p in points if p.label == label), key=lambda p: p.multiply_adds)
        costs, heights = [p.multiply_adds / 1e6 for p in line], [p.accuracy for p in line]
        axes.plot(costs, heights, color=colour, lw=1.2, label=label)
        for point, cost in zip(line, costs, strict=True):
            look: Any = {"fmt": MARKERS[starts.index(point.start) % len(MARKERS)], "ms": 4}
            bars = point.spread, point.cost_bar
            name = f"{label}, from {point.start}"
            axes.errorbar(
                cost, point.accuracy, *bars, color=colour, capsize=2, lw=0.8, label=name, **look
            )
        ends.append((costs[-1], heights[-1], wrapped(label), colour))
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.xaxis.set_major_formatter("{x:g}")  # not powers of ten
    axes.xaxis.set_minor_formatter("")
    axes.margins(x=0.12)
    axes.grid()
    label_right(axes, ends)


def _mark_starts(figure: Figure, starts: Sequence[str]) -> None:
    """Say above the panels which marker stands for which initial strides."""
    markers: list[Any] = [
        Line2D([], [], color=INK, ls="", ms=4, marker=MARKERS[i % len(MARKERS)], label=f"from {s}")
        for i, s in enumerate(starts)
    ]
    figure.legend(handles=markers, loc="upper left", ncols=2, handletextpad=0.1)


@styled
def plot_learned_strides(runs: Sequence[LearnedStrides], path: File = None) -> Figure:
    """Plot learned strides over the layers, from start to end, with a panel for each setting.

    Runs with the same ``panel`` (column) and ``label`` (row) are one setting. A point is the mean
    of its runs, a bar their range, and a line leads from the initial stride, a hollow point.

    Args:
        runs: the strides of each network; ``panel`` is its data set.
        path: file to write; None writes none.

    Returns:
        The figure.

    >>> figure = plot_learned_strides([LearnedStrides("digits", "a", {"pool": [1.7, 1.9]})])
    >>> figure.axes[0].get_title("left")
    'digits, a'
    """
    columns = list(dict.fromkeys(run.panel for run in runs))
    rows = list(dict.fromkeys(run.label for run in runs))
    shape = max(1, len(rows)), max(1, len(columns))
    figure = Figure(figsize=(WIDTH, 0.7 + 1.55 * shape[0]), layout="constrained")
    panels = figure.subplots(*shape, sharey=True, squeeze=False)
    for panel in panels.flat:
        panel.set_axis_off()  # until a run is drawn there
    found: dict[tuple[str, str], list[LearnedStrides]] = {}
    for run in runs:
        found.setdefault((run.label, run.panel), []).append(run)
    for (label, name), setting in found.items():
        panel = panels[rows.index(label), columns.index(name)]
        panel.set_axis_on()
        title = "\n".join((name, wrapped(label, 24))) if len(label) > 12 else f"{name}, {label}"
        panel.set_title(title, fontsize=7.5, loc="left")
        _draw_setting(panel, setting)
    if found:
        axes = AXES[max(len(values) for run in runs for values in run.layers.values())]
        _name_axes(figure, axes)
    return _save(figure, path)


def _draw_setting(panel: Any, runs: Sequence[LearnedStrides]) -> None:
    layers = list(runs[0].layers)
    names = AXES[max(map(len, runs[0].layers.values()))]
    for x, layer in enumerate(layers):
        for i, name in enumerate(names[: len(runs[0].layers[layer])]):
            ends = [float(run.layers[layer][i]) for run in runs]
            middle, colour = sum(ends) / len(ends), AXIS_COLOURS.get(name, COLOURS[1])
            at = x + 0.26 * (i - (len(names) - 1) / 2)
            start = (runs[0].start or {}).get(layer)
            if start is not None:
                begin = float(start[min(i, len(start) - 1)])
                panel.plot([at, at], [begin, middle], color=colour, lw=1, alpha=0.5)
                panel.plot([at], [begin], "o", mfc="none", color=colour, ms=4)
            bars = [[middle - min(ends)], [max(ends) - middle]]
            panel.errorbar([at], [middle], bars, fmt="o", color=colour, ms=3.5, capsize=2.5)
    panel.set(xlim=(-0.5, len(layers) - 0.5), xticks=range(len(layers)))
    panel.set_xticklabels([_short_name(layer) for layer in layers])
    panel.set_ylabel("stride" if panel.get_subplotspec().is_first_col() else "")
    panel.grid(axis="y")


def _short_name(layer: str) -> str:
    """The part of a layer's name that tells it from others.

    >>> _short_name("blocks.2.0.pooling"), _short_name("stem.pooling"), _short_name("0")
    ('blocks.2', 'stem', '0')
    """
    parts = layer.removesuffix(".pooling").split(".")
    return ".".join(parts[:2])


def _name_axes(figure: Figure, names: Sequence[str]) -> None:
    colours = [AXIS_COLOURS.get(name, COLOURS[1]) for name in names]
    look: Any = {"marker": "o", "ls": "", "ms": 4}
    handles: list[Any] = [
        *(Line2D([], [], color=c, label=n, **look) for n, c in zip(names, colours, strict=True)),
        Line2D([], [], color=INK, mfc="none", label="start", **look),
    ]
    place: Any = {"loc": "outside lower center", "ncols": len(handles), "handletextpad": 0.1}
    figure.legend(handles=handles, **place)
