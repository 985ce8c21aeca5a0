"""The bar chart that opens docs/benchmarks.md: a training step of a network with each pooling."""

from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.common import Report, only
from diffstride._picture_style import COLOURS, DPI, INK, WIDTH, styled

BARS = {
    "strided": "strided convolution",
    "average": "average pooling",
    "stopband": "DiffStride, stopband",
    "passband": "DiffStride, passband",
    "reference": "published layer",
}
SHOWN = {"phase": "training", "precision": "float32", "format": "contiguous"}


def step_seconds(report: Report) -> dict[str, float]:
    """The median time of a training step for each bar, from the report of a network."""
    measured = report["measurements"]
    return {name: only(measured, pooling=name, **SHOWN)["median"] for name in BARS}


@styled
def plot_steps(report: Report, path: Path) -> Figure:
    """Draw the times relative to the strided network, with seconds beside the bars."""
    seconds = step_seconds(report)
    ratios = [each / seconds["strided"] for each in seconds.values()]
    figure = Figure(figsize=(WIDTH, 2), layout="constrained")
    panel = figure.add_subplot()
    colours = [COLOURS[2] if name in ("stopband", "passband") else INK for name in BARS]
    panel.barh(list(BARS.values()), ratios, color=colours, height=0.7)
    panel.invert_yaxis()
    for i, (ratio, each) in enumerate(zip(ratios, seconds.values(), strict=True)):
        panel.text(ratio + 0.1, i, f"{ratio:.2f}  ({each:.2f} s)", va="center", fontsize=7.5)
    panel.set_xlim(0, 1.42 * max(ratios))
    panel.set_xlabel("time of a training step, relative to strided")
    panel.tick_params(axis="y", length=0)
    figure.savefig(path, dpi=DPI)
    return figure
