"""The look of the pictures: readable 360 pixels wide, on a white and on a black page.

Pictures are transparent, and their ink is grey. A figure of `WIDTH` inches is 360 pixels wide at
100 dots an inch, so letters of 8 points are 11 pixels high there.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from math import inf
from textwrap import wrap
from typing import Any, TypeVar

import matplotlib
from cycler import cycler

WIDTH = 3.6
DPI = 200  # for screens of two pixels where a page counts one
INK = "#7d7d7d"  # contrast of 4.1 to white, and of 5.1 to black
COLOURS = ("#d1495b", "#2b7fd0", "#279b5e", "#c77c11", "#9a63c9", "#12969e", "#b55d9e", "#808a2c")
STYLE: Any = {
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.labelcolor": INK,
    "axes.labelsize": 8,
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 9,
    "figure.facecolor": "none",
    "font.size": 8,
    "grid.alpha": 0.25,
    "grid.color": INK,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "savefig.facecolor": "none",
    "text.color": INK,
    "xtick.color": INK,
    "xtick.labelsize": 7.5,
    "ytick.color": INK,
    "ytick.labelsize": 7.5,
}
Drawing = TypeVar("Drawing", bound=Callable[..., Any])


def styled(draw: Drawing) -> Drawing:
    """Let a function draw in the style of this module."""

    @wraps(draw)
    def drawing(*args: Any, **kwargs: Any) -> Any:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return drawing  # type: ignore[return-value]


def spread(values: Sequence[float], gap: float, most: float = inf) -> list[float]:
    """Move numbers apart until neighbours have a distance of ``gap``, each as little as possible.

    None is above ``most`` then.

    >>> spread([1.0, 1.0, 5.0], 1.0)
    [0.5, 1.5, 5.0]
    >>> spread([1.0, 1.0, 5.0], 1.0, most=2.0)
    [0.0, 1.0, 2.0]
    """
    order = sorted(range(len(values)), key=lambda i: values[i])
    blocks: list[list[float]] = []  # mean of the first places, and number of members
    for number, i in enumerate(order):
        blocks.append([values[i] - number * gap, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            mean, count = blocks.pop()
            before = blocks[-1]
            before[0] = (before[0] * before[1] + mean * count) / (before[1] + count)
            before[1] += count
    firsts = [mean for mean, count in blocks for _ in range(int(count))]
    moved = {
        i: min(first + number * gap, most - (len(values) - 1 - number) * gap)
        for number, (i, first) in enumerate(zip(order, firsts, strict=True))
    }
    return [moved[i] for i in range(len(values))]


def wrapped(label: str, width: int = 22) -> str:
    """Break a label into lines.

    >>> wrapped("DiffStride, stopband, at the strided cost")
    'DiffStride, stopband,\\nat the strided cost'
    """
    return "\n".join(wrap(label, width))


End = tuple[float, float, str, Any]


def label_right(axes: Any, ends: Sequence[End], size: float = 7.0, left: float = 8.0) -> None:
    """Write labels to the right of the axes, for points ``(x, y, text, colour)``.

    The labels do not overlap, and none reaches above the axes, where a title may be. Thin lines
    lead to the left of each. Call it when the limits of the axes are final.
    """
    low, high = axes.get_ylim()
    height = axes.get_position().height * axes.figure.figure.get_size_inches()[1] * 72
    points = (high - low) / height  # of data in a point
    lines = max((text.count("\n") + 1 for _, _, text, _ in ends), default=1)
    gap = (1.2 * lines + 0.3) * size * points
    places = spread([y for _, y, _, _ in ends], gap, high - gap / 2)
    line = {"arrowstyle": "-", "lw": 0.5, "relpos": (0, 0.5), "shrinkA": 1, "shrinkB": 3}
    for (x, y, text, colour), place in zip(ends, places, strict=True):
        axes.annotate(
            text,
            (x, y),
            (1 + left / (axes.get_position().width * WIDTH * 72), (place - low) / (high - low)),
            textcoords="axes fraction",
            color=colour,
            fontsize=size,
            va="center",
            annotation_clip=False,
            arrowprops={**line, "color": colour},
        )
