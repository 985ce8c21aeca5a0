"""Strides at which the size of a map changes.

Strides are stored in float32, and where a size changes, that rounding decides.
"""

from array import array
from collections.abc import Callable, Iterable
from functools import lru_cache
from math import exp, log

from diffstride.spectral.axis_plan import Axis, FixedLength, WindowSettings

BEHIND = 2e-6  # how far a logarithm steps back behind a threshold


def as_stored(logs: Iterable[float]) -> list[float]:
    """The strides of these logarithms, rounded to float32 as in a layer.

    A stride may lie where the size of a map changes, and there the rounding decides.
    """
    return in_float32(map(exp, logs))


def in_float32(numbers: Iterable[float]) -> list[float]:
    """The nearest float32 of each number."""
    return array("f", numbers).tolist()


@lru_cache(maxsize=1 << 12)
def plan_at(settings: WindowSettings | FixedLength, size: int, at: float) -> Axis:
    """How an axis is pooled at the stride of a logarithm."""
    (stride,) = as_stored([at])
    return settings.plan(size, stride)


@lru_cache(maxsize=1 << 14)
def first_log(settings: WindowSettings | FixedLength, size: int, output_size: int) -> float:
    """The logarithm of the smallest stride that makes at most ``output_size`` of ``size`` samples.

    >>> settings = WindowSettings()
    >>> round(exp(first_log(settings, 32, 20)), 4)  # 32 / 20
    1.6
    """

    def holds(at: float) -> bool:
        (stride,) = as_stored([at])
        return settings.plan(size, stride).output_size <= output_size

    low, high = 0.0, log(2 * size)
    about = log(size / output_size) if output_size else high
    if holds(about + 1e-5) and not holds(about - 1e-5):  # without a passband edge
        low, high = about - 1e-5, about + 1e-5
    return threshold(holds, low, high)


def threshold(holds: Callable[[float], bool], low: float, high: float) -> float:
    """The smallest value from which on a condition holds, by bisection; ``high`` if there is none.

    >>> round(threshold(lambda x: x * x >= 2, 0.0, 4.0), 4)
    1.4142
    """
    if holds(low):
        return low
    while high - low > 1e-7:
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high + 5e-7  # strides are stored in float32: stay on the side where it holds
