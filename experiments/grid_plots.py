"""The pictures of a grid: accuracy against cost, and learned strides."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from diffstride._picture_style import AXIS_COLOURS, COLOURS, INK, WIDTH, File, save, styled
from diffstride.plots import AXES
from experiments.labels import label_right, wrapped

MARKERS = ("o", "^", "s", "v", "D")


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
    return save(figure, path)


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
    return save(figure, path)


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
