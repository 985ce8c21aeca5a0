"""Labels in pictures that do not overlap."""

from collections.abc import Sequence
from math import inf
from textwrap import wrap
from typing import Any

from diffstride._picture_style import WIDTH


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


SIZE, LEFT = 7.0, 8.0  # of a label, and its distance from the axes, in points
End = tuple[float, float, str, Any]


def label_right(axes: Any, ends: Sequence[End]) -> None:
    """Write labels to the right of the axes, for points ``(x, y, text, colour)``.

    The labels do not overlap, and none reaches above the axes, where a title may be. Thin lines
    lead to the left of each. Call it when the limits of the axes are final.
    """
    low, high = axes.get_ylim()
    height = axes.get_position().height * axes.figure.figure.get_size_inches()[1] * 72
    points = (high - low) / height  # of data in a point
    lines = max((text.count("\n") + 1 for _, _, text, _ in ends), default=1)
    gap = (1.2 * lines + 0.3) * SIZE * points
    places = spread([y for _, y, _, _ in ends], gap, high - gap / 2)
    line = {"arrowstyle": "-", "lw": 0.5, "relpos": (0, 0.5), "shrinkA": 1, "shrinkB": 3}
    for (x, y, text, colour), place in zip(ends, places, strict=True):
        axes.annotate(
            text,
            (x, y),
            (1 + LEFT / (axes.get_position().width * WIDTH * 72), (place - low) / (high - low)),
            textcoords="axes fraction",
            color=colour,
            fontsize=SIZE,
            va="center",
            annotation_clip=False,
            arrowprops={**line, "color": colour},
        )
