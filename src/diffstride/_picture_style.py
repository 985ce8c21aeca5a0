"""The look of the pictures: readable 360 pixels wide, on a white and on a black page.

Pictures are transparent, and their ink is grey. A figure of `WIDTH` inches is 360 pixels wide at
100 dots an inch, so letters of 8 points are 11 pixels high there.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, TypeVar

import matplotlib
from cycler import cycler

WIDTH = 3.6
DPI = 200  # for screens of two pixels where a page counts one
INK = "#7a7a7a"  # contrast of 4.3 to white, and of 4.9 to black
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


def spread(values: Sequence[float], gap: float) -> list[float]:
    """Move numbers apart until neighbours have a distance of ``gap``, each as little as possible.

    >>> spread([1.0, 1.0, 5.0], 1.0)
    [0.5, 1.5, 5.0]
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
        i: first + number * gap for number, (i, first) in enumerate(zip(order, firsts, strict=True))
    }
    return [moved[i] for i in range(len(values))]


def label_ends(
    axes: Any, ends: Sequence[tuple[float, float, str, Any]], size: float = 7.5, offset: float = 4
) -> None:
    """Write labels to the right of points ``(x, y, text, colour)``, apart from each other.

    Call it when the limits of the axes are final. A thin line leads to a label that was moved.
    """
    low, high = axes.get_ylim()
    height = axes.get_position().height * axes.figure.figure.get_size_inches()[1] * 72
    points = (high - low) / max(height, 1)  # of data in a point
    places = spread([y for _, y, _, _ in ends], 1.25 * size * points)
    for (x, y, text, colour), place in zip(ends, places, strict=True):
        moved = abs(place - y) > 2 * points
        axes.annotate(
            text,
            (x, y),
            (offset + 4 * moved, (place - y) / points),
            textcoords="offset points",
            color=colour,
            fontsize=size,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.5} if moved else None,
        )
