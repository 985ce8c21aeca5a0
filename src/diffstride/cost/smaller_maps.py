"""The network with one axis of one map smaller, and what that saves."""

from math import log
from typing import NamedTuple

from diffstride.cost.stride_space import Fit, Key, Logs, StrideSpace

# Where maps are large, so much of an axis is left out: the rise without one sample would be lost in
# chance. A change of the logarithm by as much as on a map of 16 samples is clear.
SAMPLES_PER_ONE = 16
# What a change of the logarithm of a map size is worth falls with this power of the size.
WORTH_POWER = 1.0


class Smaller(NamedTuple):
    """The network with an axis of a map smaller: by one sample of 16, and of fewer as well.

    By two at least with ``edge="passband"``.

    Args:
        logs: the logarithms of the strides that lead there.
        step: the change of the logarithm of the map size, above 0.
        cost: the multiply-adds that a change of 1 would save.
        growth: how many times less a multiply-add of the next sample is worth than one of the last
            sample, about: it costs ``r`` times as much, and brings ``1 / r`` as much, with the
            ratio ``r`` of the sizes in the middle of both.
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
    """The network with each axis of each layer smaller, where that saves cost.

    Maps behind keep their sizes as far as strides allow. Where a layer would start to pool, its own
    multiply-adds are left out: they come all at once, with the first sample.
    """
    fit = space.fit(present)
    sizes, slopes = fit.sizes, space.size_slopes(present)
    found = {}
    for key, size in sizes.items():

        def without(samples: int, key: Key = key, size: int = size) -> Fit | None:
            return space.at_sizes(present, {**sizes, key: size - samples})

        one_less = without(1) if size > 1 else None
        if not one_less:
            continue
        samples = size // SAMPLES_PER_ONE
        smaller = (without(samples) if samples > 1 else None) or one_less
        without_pooling = sum(
            slope * (fit.maps[name][i].output_size - smaller.maps[name][i].output_size)
            for (name, i), slope in slopes.items()
            if name in fit.maps  # all but layers whose strides do not learn
        )
        saved = max(fit.cost - smaller.cost, without_pooling)
        least = one_less.sizes[key]
        if least < size and saved > 0:
            shared = len(fit.maps[key[0]]) / len(present[key[0]])  # a shared stride has all axes
            ratio = (size + (size - least) / 2) / ((size + least) / 2)
            growth = ratio ** (shared + WORTH_POWER)
            step, change = log(size / smaller.sizes[key]), _change(fit, smaller)
            found[key] = Smaller(smaller.logs, step, saved / step, growth, change / step)
    return found


def _change(larger: Fit, smaller: Fit) -> float:
    """The sum of the changes of the logarithms of all sizes that learn and become smaller."""
    return sum(
        max(0.0, log(before.output_size / after.output_size))
        for name in larger.logs
        for before, after in zip(larger.maps[name], smaller.maps[name], strict=True)
    )
