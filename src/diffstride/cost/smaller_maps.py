"""The network with a sample less on one axis of one map, and what that saves."""

from math import log
from typing import NamedTuple

from diffstride.cost.stride_space import Fit, Key, Logs, StrideSpace


class Smaller(NamedTuple):
    """The network with one sample less on one axis of one map, or two with ``edge="passband"``.

    Args:
        logs: the logarithms of the strides that lead there.
        step: the change of the logarithm of the map size, above 0.
        cost: the multiply-adds that a change of 1 would save.
        growth: how many times as much as the last sample the next one costs, about: the ratio of
            the sizes in the middle of both.
        axes: how many axes of maps become smaller likewise for a change of 1, at least 1: those
            behind that could not keep their sizes count, too, each by the change of its logarithm.
            A layer that is called several times counts once.
    """

    logs: Logs
    step: float
    cost: float
    growth: float
    axes: float


def smaller_maps(space: StrideSpace, present: Logs) -> dict[Key, Smaller]:
    """The network with one sample less, for each axis of each layer where that saves cost.

    Maps behind keep their sizes as far as strides allow. Where a layer would start to pool, its own
    multiply-adds are left out: they come all at once, with the first sample.
    """
    fit = space.fit(present)
    sizes, slopes = fit.sizes, space.size_slopes(present)
    found = {}
    for key, size in sizes.items():
        smaller = space.at_sizes(present, {**sizes, key: size - 1}) if size > 1 else None
        if not smaller:
            continue
        less = smaller.sizes[key]
        without_pooling = sum(
            slope * (fit.maps[name][i].output_size - smaller.maps[name][i].output_size)
            for (name, i), slope in slopes.items()
            if name in fit.maps  # all but layers whose strides do not learn
        )
        saved = max(fit.cost - smaller.cost, without_pooling)
        if less < size and saved > 0:
            shared = len(fit.maps[key[0]]) / len(present[key[0]])  # a shared stride has all axes
            growth = ((size + (size - less) / 2) / ((size + less) / 2)) ** shared
            step, change = log(size / less), _change(fit, smaller)
            found[key] = Smaller(smaller.logs, step, saved / step, growth, change / step)
    return found


def _change(larger: Fit, smaller: Fit) -> float:
    """The sum of the changes of the logarithms of all sizes that learn and become smaller."""
    return sum(
        max(0.0, log(before.output_size / after.output_size))
        for name in larger.logs
        for before, after in zip(larger.maps[name], smaller.maps[name], strict=True)
    )
