"""Plots of learned strides and windows.

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
from typing import Any

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
    from matplotlib.patches import Rectangle

    from diffstride._picture_style import AXIS_COLOURS, COLOURS, INK, WIDTH, File, save, styled
except ImportError:
    require("plots", "diffstride.plots")
    raise

AXES = {1: ("stride",), 2: ("height", "width"), 3: ("depth", "height", "width")}
STYLES = {"width": "--", "depth": ":"}
Trajectories = dict[str, tuple[list[int], list[float]]]


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
    return save(root, path)


def _shade(share: float) -> Any:
    return colormaps["viridis"](share)


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
    return save(figure, path)


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
