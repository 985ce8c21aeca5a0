"""The picture of the walk-through: strides, map sizes and MACs over the epochs."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.common import Report
from diffstride._picture_style import COLOURS, DPI, INK, WIDTH, styled
from experiments.labels import End, label_right

STYLES = {"height": "-", "width": "--"}


@styled
def plot_walkthrough(found: Report, path: Path) -> Figure:
    """Draw strides, map sizes and MACs over the epochs of training, one below the other."""
    history = found["history"]
    steps_per_epoch = found["steps"] / len(found["networks"]["converted"]["epochs"])
    epochs = [each["step"] / steps_per_epoch for each in history]
    figure = Figure(figsize=(WIDTH, 5.6))
    strides, maps, cost = figure.subplots(3, sharex=True, height_ratios=(1.1, 1.4, 0.8))
    figure.subplots_adjust(left=0.13, right=0.72, top=0.95, bottom=0.08, hspace=0.32)
    names = sorted(history[0]["maps"])
    for i, name in enumerate(names):
        for axis, style in STYLES.items():
            look = {"color": COLOURS[i + 1], "linestyle": style, "lw": 1.3}
            line = [each["strides"][f"stride/{name}/{axis}"] for each in history]
            strides.plot(epochs, line, **look)
            sizes = [each["maps"][name][list(STYLES).index(axis)] for each in history]
            maps.step(epochs, sizes, where="post", **look)
    for panel, what in ((strides, "strides"), (maps, "maps")):
        panel.margins(x=0)
        label_right(panel, [_end(epochs[-1], history[-1], i, n, what) for i, n in enumerate(names)])
    _draw_cost(cost, found, epochs)
    strides.set_title("strides: height solid, width dashed", loc="left")
    maps.set_title("samples of the map", loc="left")
    cost.set(xlabel="epochs", xlim=(0, epochs[-1]))
    cost.set_title("MACs an image, in millions", loc="left")
    for panel in (strides, maps, cost):
        panel.grid()
    figure.savefig(path, dpi=DPI)
    return figure


def _end(at: float, last: Any, i: int, name: str, what: str) -> End:
    stage = name.partition(".")[0]
    if what == "maps":
        values = last["maps"][name]
        text = f"{stage}: {values[0]} x {values[1]}"
    else:
        values = [last["strides"][f"stride/{name}/{axis}"] for axis in STYLES]
        text = f"{stage}: {values[0]:.2f} x {values[1]:.2f}"
    return (at, sum(values) / 2, text, COLOURS[i + 1])


def _draw_cost(panel: Any, found: Report, epochs: list[float]) -> None:
    before = found["networks"]["strided"]["multiply_adds"] / 1e6
    costs = [each["multiply_adds"] / 1e6 for each in found["history"]]
    panel.axhline(before, color=INK, lw=1, linestyle=":")
    panel.plot(epochs, costs, color=COLOURS[2], lw=1.3)
    panel.set_ylim(0, 1.2 * before)
    ends = [
        (epochs[-1], before, f"before: {before:.2f}", INK),
        (epochs[-1], costs[-1], f"converted: {costs[-1]:.2f}", COLOURS[2]),
    ]
    label_right(panel, ends)
