"""The look of the pictures: readable 360 pixels wide, on a white and on a black page.

Pictures are transparent, and their ink is grey. A figure of `WIDTH` inches is 360 pixels wide at
100 dots an inch, so letters of 8 points are 11 pixels high there.
"""

import os
from collections.abc import Callable
from functools import wraps
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
AXIS_COLOURS: dict[str, str] = dict(zip(("height", "width", "depth"), COLOURS[1:], strict=False))
File = str | os.PathLike[str] | None
Drawing = TypeVar("Drawing", bound=Callable[..., Any])


def styled(draw: Drawing) -> Drawing:
    """Let a function draw in the style of this module."""

    @wraps(draw)
    def drawing(*args: Any, **kwargs: Any) -> Any:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return drawing  # type: ignore[return-value]


def save(figure: Any, path: File) -> Any:
    """Write a figure to a file, if there is one, and return it."""
    if path is not None:
        figure.savefig(path, dpi=DPI)
    return figure
