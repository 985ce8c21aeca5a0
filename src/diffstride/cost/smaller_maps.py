"""The network with one axis of one map smaller, and what that saves."""

from collections.abc import Callable, Mapping
from functools import cache, partial
from math import log
from typing import NamedTuple

from diffstride.cost.stride_space import Fit, Key, Logs, OutputSizes, StrideSpace

# Where maps are large, so much of an axis is left out: the rise without one sample would be lost in
# chance.
SAMPLES_PER_ONE = 16
# What a change of the logarithm of a map size is worth falls with this power of the size.
WORTH_POWER = 1.0
# A map is worth this power of the number of layers that run on it, in the prior.
LAYER_POWER = 0.5


class Smaller(NamedTuple):
    """The network with an axis of a map smaller: by one of each 16 samples, and by one at least.

    By two at least with ``edge="passband"``.

    Args:
        logs: the logarithms of the strides that lead there.
        step: the change of the logarithm of the map size, above 0.
        cost: the multiply-adds that a change of 1 would save.
        growth: how many times less a multiply-add of the next sample is worth than one of the last
            sample, about: with the ratio ``r`` of the sizes in the middle of both, the next one
            costs ``r`` times as much, to the power of the axes that share the stride, and brings
            ``1 / r`` as much.
        weight: of the prior: the root of the number of layers that run on the map. Maps behind that
            could not keep their sizes add theirs, times the change of their logarithm. A pooling
            layer that is called several times counts once.
    """

    logs: Logs
    step: float
    cost: float
    growth: float
    weight: float


def smaller_maps(space: StrideSpace, present: Logs) -> dict[Key, Smaller]:
    """The network with each axis of each layer smaller, where that saves cost and can be measured.

    Maps behind keep their sizes as far as strides allow. Where a layer would start to pool, its own
    multiply-adds are left out: they come all at once, with the first sample.
    """
    fit = space.fit(present)
    sizes, slopes = fit.sizes, space.size_slopes(present)
    layers = space.layers_on_maps(present)
    weights = {key: max(0.0, each) ** LAYER_POWER for key, each in layers.items()}
    found = {}
    for key, size in sizes.items():
        without = cache(partial(_without, space, present, sizes, key))
        smaller = _clearly_smaller(size, without, key)
        if smaller is None:
            continue
        without_pooling = sum(
            slope * (fit.maps[name][i].output_size - smaller.maps[name][i].output_size)
            for (name, i), slope in slopes.items()
            if name in fit.maps  # all but layers whose strides do not learn
        )
        saved = max(fit.cost - smaller.cost, without_pooling)
        if saved > 0:
            shared = len(fit.maps[key[0]]) / len(present[key[0]])  # a shared stride has all axes
            growth = _ratio(size, without, key) ** (shared + WORTH_POWER)
            step = log(size / smaller.sizes[key])
            weight = _weighted_change(fit, smaller, weights) / step
            found[key] = Smaller(smaller.logs, step, saved / step, growth, weight)
    return found


def _without(
    space: StrideSpace, present: Logs, sizes: OutputSizes, key: Key, samples: int
) -> Fit | None:
    """With so many samples less on an axis, as far as limits of strides allow."""
    return space.at_sizes(present, {**sizes, key: sizes[key] - samples})


def _clearly_smaller(size: int, without: Callable[[int], Fit | None], key: Key) -> Fit | None:
    """With a sixteenth of an axis less, or half of that if a map would be empty then.

    None where limits of strides leave less room: what is measured there would be chance.
    """
    most = max(1, size // SAMPLES_PER_ONE)
    for samples in dict.fromkeys((most, (most + 1) // 2)):
        fit = without(samples) if size > samples else None
        if fit and 2 * (size - fit.sizes[key]) >= most:
            return fit
    return None


def _ratio(size: int, without: Callable[[int], Fit | None], key: Key) -> float:
    """How many times as large as in the middle of its last sample a map is in that of its next."""
    less = without(1)
    samples = size - less.sizes[key] if less else 1  # two with ``edge="passband"``
    return (size + samples / 2) / (size - samples / 2)


def _weighted_change(larger: Fit, smaller: Fit, weights: Mapping[Key, float]) -> float:
    """The sum of the changes of the logarithms of all sizes that learn and become smaller."""
    return sum(
        weights[name, i] * max(0.0, log(before.output_size / after.output_size))
        for name in larger.logs
        for i, (before, after) in enumerate(zip(larger.maps[name], smaller.maps[name], strict=True))
    )
